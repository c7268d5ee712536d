"""Ordinary steps that were copied together, on their way from the slot that they lie in to the daemon."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import schedule
from .entry import energies, gradient_norms
from .wire import MAX_STEPS

if TYPE_CHECKING:
    from .capture import Key
    from .entry import Build
    from .held import Held
    from .routine import Routine
    from .slots import Slot
    from .telling import Telling
    from .wire import Groups, Marks, Tensor

MOST_TOLD: Final = 512
"""Numbers in a message that tells several steps at most, so that with their names they always fit into its header."""


_NOTHING: Final[Mapping[str, float]] = {}


class Taken:
    """An ordinary step on its way: as little as tells what to send when it has arrived."""

    __slots__ = (
        "_at", "_known", "_losses", "_rates", "_rows", "_seldom_at", "_with_norm", "modules", "outgoing", "step",
        "tensors", "time_ns",
    )  # fmt: skip

    def __init__(
        self,
        step: int,
        time_ns: int,
        routine: Routine,
        at: int,
        floats: Sequence[float],
        rates: Sequence[float],
        outgoing: Sequence[tuple[str, Build]],
        rows: Mapping[str, int] | None = None,
        seldom_at: int = 0,
    ) -> None:
        self.step = step
        self.time_ns = time_ns
        self.outgoing = outgoing
        self.modules: list[str] = []
        self.tensors: Mapping[Key, Tensor] = {}
        self._at = at
        self._losses = routine.losses
        self._with_norm = routine.normed
        self._known = dict(zip(routine.floats, floats, strict=True)) if routine.floats else _NOTHING
        self._rates = rates
        self._rows = rows
        self._seldom_at = seldom_at

    @classmethod
    def of(cls, held: Held, routine: Routine, at: int, seldom_at: int, outgoing: Sequence[tuple[str, Build]]) -> Taken:
        """Return a step that was kept, taken like this: in the slot its numbers lie from ``at`` on.

        What few steps have, lies from ``seldom_at`` on.
        """
        rows = {layer: rows for layer, (_, rows) in held.norms.items()} if held.norms else None
        taken = cls(held.step, held.time_ns, routine, at, held.floats, held.rates, outgoing, rows, seldom_at)
        if held.gradients is not None:
            taken.modules = held.gradients[1]
        return taken

    @property
    def plain(self) -> bool:
        """Return whether it has nothing to tell but losses, the gradient norm and learning rates."""
        return not self._rows and not self.modules

    def like(self, other: Taken) -> bool:
        """Return whether it tells numbers of the same names as another."""
        return (
            self._losses == other._losses
            and self._with_norm == other._with_norm
            and self._known.keys() == other._known.keys()
            and len(self._rates) == len(other._rates)
        )

    @property
    def told(self) -> int:
        """Return how many numbers its message tells, if it is :attr:`plain`."""
        return len(self._losses) + len(self._known) + len(self._rates) + 1

    def columns(self, numbers: Sequence[float], steps: Sequence[Taken]) -> dict[str, Any]:
        """Return what one message tells of itself and the steps that follow it, all plain and alike."""
        width = len(self._losses) + self._with_norm
        end = self._at + len(steps) * width
        losses = {name: [*numbers[self._at + index : end : width]] for index, name in enumerate(self._losses)}
        losses.update({name: [taken._known[name] for taken in steps] for name in self._known})
        found: dict[str, Any] = {"losses": losses} if losses else {}
        if self._with_norm:
            found["gradient_norm"] = [*numbers[self._at + width - 1 : end : width]]
        if self._rates:
            rates = zip(*[taken._rates for taken in steps], strict=True)
            found["learning_rates"] = {str(index): of_steps for index, of_steps in enumerate(rates)}
        return found

    def fields(self, numbers: Sequence[float]) -> dict[str, Any]:
        """Return what its message tells, given the numbers of all steps that lie in the slot."""
        at = self._at
        end = at + len(self._losses)
        losses = dict(zip(self._losses, numbers[at:end], strict=True))
        losses.update(self._known)
        norm = numbers[end] if self._with_norm else None
        seldom = self._seldom_at
        found: dict[str, Any] = {"losses": losses} if losses else {}
        if self._rates:
            found["learning_rates"] = {str(index): rate for index, rate in enumerate(self._rates)}
        if self._rows:
            found.update(energies(dict(zip(self._rows, numbers[seldom:], strict=False)), self._rows))
            seldom += len(self._rows)
        found.update(gradient_norms(norm, numbers[seldom : seldom + len(self.modules)], self.modules))
        return found


def alike(steps: Sequence[Taken]) -> Iterator[Sequence[Taken]]:
    """Split steps into those that one message can tell, in order."""
    start = 0
    for end, taken in enumerate(steps):
        first = steps[start]
        count = end - start
        if count and not (
            count < MAX_STEPS
            and (count + 1) * first.told <= MOST_TOLD
            and first.plain
            and taken.plain
            and taken.like(first)
        ):
            yield steps[start:end]
            start = end
    yield steps[start:]


def arrays_of(steps: Sequence[Taken]) -> list[tuple[str, Build, list[Taken]]]:
    """Return which messages tell the arrays of some steps, in order: their kinds, what makes them, and of which steps.

    The codes of steps that have one routine are told together.
    """
    runs: list[tuple[str, Build, list[Taken]]] = []
    for taken in steps:
        for kind, build in taken.outgoing:
            if runs and kind == schedule.CODES and runs[-1][1] is build and len(runs[-1][2]) < MAX_STEPS:
                runs[-1][2].append(taken)
            else:
                runs.append((kind, build, [taken]))
    return runs


class Batch:
    """Ordinary steps that lie in one slot, with so many numbers in all; ``parts`` of them have arrays.

    ``telling`` is what tells them, once that was begun.
    """

    def __init__(
        self, slot: Slot, steps: Sequence[Taken], parts: Sequence[Taken], numbers: int, seconds: float
    ) -> None:
        self.slot = slot
        self.steps = steps
        self.telling: Telling | None = None
        self._parts = parts
        self._numbers = numbers
        self._seconds = seconds

    def __len__(self) -> int:
        return len(self.steps)

    def resolve(self) -> Sequence[float]:
        """Give each step its arrays, once arrived, and return the numbers of all, of use until the slot is released.

        They are looked at where they lie: a list of so many would be a large allocation.
        """
        slot = self.slot
        for part, taken in enumerate(self._parts):
            taken.tensors = slot.tensors(part)
        for owner, more in slot.extras():
            taken = self.steps[owner]
            taken.tensors = {**taken.tensors, **more}
        return slot.numbers(self._numbers)

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what the arrays of one of the steps cost, told what it took to send them all."""
        return _costs(self._seconds, seconds, len(self)) if self._parts else {}


class Regular:
    """Ordinary steps that all look alike, in one slot: batches of the same ``look`` differ in nothing but numbers.

    Those at the places ``parts`` have arrays, and ``beside`` tells what lies behind all of those, laid out by ``plan``,
    as of the last step.
    """

    __slots__ = (
        "_beside", "_floats", "_owners", "_parts", "_rates", "_routine", "_seconds", "_steps", "_times", "look", "slot",
    )  # fmt: skip

    def __init__(
        self,
        slot: Slot,
        routine: Routine,
        held: Sequence[Held],
        parts: Sequence[int],
        beside: Sequence[tuple[str, Build]],
        plan: Any,
        seconds: float,
    ) -> None:
        self.slot = slot
        self._routine = routine
        self._parts = parts
        self._beside = beside
        self._steps = [one.step for one in held]
        self._times = [one.time_ns for one in held]
        self._rates = [one.rates for one in held]
        self._floats = [one.floats for one in held] if routine.floats else None
        self._seconds = seconds
        self._owners = parts
        self.look: Any = routine, len(held), len(held[0].rates), len(parts)
        if plan is not None:
            last = len(held) - 1
            self._owners = parts if last in parts else [*parts, last]
            self.look = *self.look, plan, last in parts

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last_step(self) -> int:
        """Return the last of the steps."""
        return self._steps[-1]

    @property
    def count(self) -> int:
        """Return how many numbers lie in the slot."""
        return len(self._steps) * self._routine.numbers

    def told(self, numbers: Sequence[float], of_arrays: Regular | None = None) -> Groups:
        """Return all in which what is told of these steps can differ from what is told of others of this look.

        Of the arrays the steps and times are those of another, if that is given.
        """
        other, owners = self if of_arrays is None else of_arrays, self._owners
        steps, times = [other._steps[index] for index in owners], [other._times[index] for index in owners]
        return [self._steps, self._times, steps, times, numbers, *self._rates, *(self._floats or ())]

    def marked(self, marks: Marks) -> Regular:
        """Return the same with marks in place of all that is told but the numbers."""
        marked = copy.copy(self)
        marked._steps, marked._times = marks.whole(len(self)), marks.whole(len(self))
        marked._rates = [marks.floating(len(rates)) for rates in self._rates]
        if self._floats is not None:
            marked._floats = [marks.floating(len(floats)) for floats in self._floats]
        return marked

    def apart(self) -> Batch:
        """Return the same as a batch of steps that can each be told in its own way."""
        routine = self._routine
        steps: list[Taken] = []
        for index, step in enumerate(self._steps):
            floats = self._floats[index] if self._floats is not None else ()
            outgoing = routine.outgoing if index in self._parts else ()
            at = index * routine.numbers
            steps.append(Taken(step, self._times[index], routine, at, floats, self._rates[index], outgoing))
        return _batch(self.slot, steps, self._parts, self._beside, self.count, self._seconds)

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what the arrays of one of the steps cost, told what it took to send them all."""
        return _costs(self._seconds, seconds, len(self)) if self._parts else {}


@dataclass(eq=False, slots=True)
class Unlike:
    """Ordinary steps of one routine in one slot, of which some have numbers beside, or lost their arrays.

    Those at the places ``parts`` have arrays, unless they are ``lost``; ``beside`` tells what lies behind those, as of
    the last step.
    """

    slot: Slot
    routine: Routine
    held: Sequence[Held]
    parts: Sequence[int]
    lost: Sequence[int]
    beside: Sequence[tuple[str, Build]]
    seconds: float

    def __len__(self) -> int:
        return len(self.held)

    def apart(self) -> Batch:
        """Return the same as a batch of steps that can each be told in its own way."""
        routine = self.routine
        seldom_at = routine.numbers * len(self)
        steps: list[Taken] = []
        for index, one in enumerate(self.held):
            outgoing = routine.outgoing if index in self.parts and index not in self.lost else ()
            steps.append(Taken.of(one, routine, index * routine.numbers, seldom_at, outgoing))
            seldom_at += one.seldom_count
        return _batch(self.slot, steps, self.parts, self.beside, seldom_at, self.seconds)


def _batch(
    slot: Slot,
    steps: list[Taken],
    parts: Sequence[int],
    beside: Sequence[tuple[str, Build]],
    numbers: int,
    seconds: float,
) -> Batch:
    """Return steps as a batch, the last one with what tells the rest."""
    steps[-1].outgoing = [*steps[-1].outgoing, *beside]
    return Batch(slot, steps, [steps[index] for index in parts], numbers, seconds)


def _costs(copying: float, sending: float, steps: int) -> dict[str, float]:
    """Return what the codes of one of some steps cost: half of the copying goes to the numbers."""
    return {schedule.CODES: (copying / 2 + sending) / steps}
