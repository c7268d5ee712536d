"""How the general way of :mod:`vqwatch.collect` took a step, kept for the steps after it that look the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from . import schedule
from .capture import aligned
from .entry import GRADIENT_KEY, energies, gradient_norms
from .scalars import ENERGY, LOSS, NORM, RATE
from .wire import MAX_STEPS

if TYPE_CHECKING:
    import torch

    from .capture import Item, Key
    from .entry import Build, Entry
    from .held import Held
    from .slots import Slot
    from .wire import Tensor

MOST_TOLD: Final = 512
"""Numbers in a message that tells several steps at most, so that with their names they always fit into its header."""

_NO_AXES: Final[Any] = ()


def look(held: Held, numbers: Sequence[torch.Tensor], with_codes: bool) -> Any:
    """Return what a step's routine is found by: what :meth:`Routine.fits` compares. Unlike that, it can be hashed."""
    arrays = [(array.dtype, array.shape) for array in held.arrays] if with_codes else []
    types = [type(value) for value in held.values]
    dtypes = [number.dtype for number in numbers]
    none = held.norm is None, held.codes is None, held.mask is None
    return held.names, tuple(types), tuple(dtypes), tuple(held.norms), *(none if with_codes else none[:1]), *arrays


@dataclass(frozen=True, eq=False)
class Arrays:
    """The codes of a step, and its mask: from what they are taken, and how they are told.

    One object stands for all that are alike, and is known by identity.
    """

    items: tuple[Item, ...]
    outgoing: tuple[tuple[str, Build], ...]
    dtypes: tuple[torch.dtype, ...]

    @cached_property
    def nbytes(self) -> int:
        """Return the bytes that they take in a slot."""
        return sum(aligned(item.nbytes) for item in self.items)


class Routine:
    """How to take the numbers and codes of steps that look alike: what the general way made of one."""

    __slots__ = (
        "_dtypes", "_layers", "_masked", "_names", "_normed", "_norms", "_number_dtypes", "_shapes", "_types", "arrays",
        "losses",
    )  # fmt: skip

    def __init__(self, entry: Entry, held: Held, with_codes: bool) -> None:
        self.losses = [name for group, name in entry.scalars.names if group == LOSS]
        self.arrays: Arrays | None = None
        if with_codes:
            dtypes = tuple(source.dtype for source in entry.sources)
            self.arrays = Arrays(_as_given(entry, held), tuple(entry.outgoing), dtypes)
        self._names = held.names
        self._types = [type(value) for value in held.values]
        self._number_dtypes = [number.dtype for number in held.scalars]
        self._normed = held.norm is not None
        self._norms = list(held.norms)
        self._layers = [layer for layer, _ in held.tapped] if held.codes is None else None
        self._masked = held.mask is not None
        self._dtypes = [array.dtype for array in held.arrays]
        self._shapes = [array.shape for array in held.arrays]

    @classmethod
    def of(cls, entry: Entry, held: Held, with_codes: bool) -> Routine | None:
        """Return the routine for a step that was taken the general way, None where it was no ordinary one."""
        scalars = entry.scalars
        losses = sum(type(value) is not float for value in held.values)
        wanted = [LOSS] * losses + [NORM] * (held.norm is not None) + [ENERGY] * len(held.norms)
        if not wanted or [group for group, _ in scalars.names] != wanted or scalars.known.keys() - {LOSS, RATE}:
            return None
        floats = [name for name, value in zip(held.names, held.values, strict=True) if type(value) is float]
        if list(scalars.group(LOSS)) != floats or len(scalars.group(RATE)) != len(held.rates):
            return None  # some were refused, or are called otherwise
        if any(value.is_inference() for value in scalars.tensors):  # they have no versions
            return None
        if with_codes:
            arrays = held.arrays
            masked = held.mask is not None and len(entry.items) == 2  # one that fits; hooks may tell codes in one row
            if held.mask is not None and not masked:
                arrays.pop()
            if len(entry.sources) != len(arrays) or len(entry.items) != 1 + masked:
                return None
            if any(not array.is_cuda or array.is_inference() for array in arrays):
                return None
            if masked and entry.sources[-1].shape != held.arrays[-1].shape:
                return None
            if held.codes is not None and entry.sources[0].shape not in (
                held.codes.shape,
                held.codes.movedim(-1, 0).shape,
            ):
                return None
        return cls(entry, held, with_codes)

    def fits_all(self, steps: Sequence[Held]) -> bool:
        """Return whether :meth:`fits` holds for each of some steps: for a fraction of what asking each would take."""
        codes = self._layers is None
        for one in steps:
            if one.names != self._names or (one.norm is not None) != self._normed or one.norms:
                return False
            if self.arrays is not None and ((one.codes is not None) != codes or (one.mask is not None) != self._masked):
                return False
            if one.tapped and [layer for layer, _ in one.tapped] != self._layers:
                return False
        times = len(steps)
        dtypes, shapes = self._number_dtypes, [_NO_AXES] * len(self._number_dtypes)
        if self.arrays is not None:
            tensors = [tensor for one in steps for tensor in one.tensors]
            dtypes, shapes = dtypes + self._dtypes, shapes + self._shapes
        else:
            tensors = [tensor for one in steps for tensor in one.tensors[: one.numbers]]
        return (
            [type(value) for one in steps for value in one.values] == self._types * times
            and {type(rate) for one in steps for rate in one.rates} <= {float}
            and False not in [tensor.is_cuda for tensor in tensors]
            and [tensor.dtype for tensor in tensors] == dtypes * times
            and [tensor.shape for tensor in tensors] == shapes * times
        )

    def fits(self, held: Held, numbers: Sequence[torch.Tensor]) -> bool:
        """Return whether a step is taken this way: it looks as that one did, and all of it is on the device."""
        if (
            held.names != self._names
            or [type(value) for value in held.values] != self._types
            or [number.dtype for number in numbers] != self._number_dtypes
            or (held.norm is not None) != self._normed
            or list(held.norms) != self._norms
        ):
            return False
        for number in numbers:
            if not number.is_cuda or number.shape:
                return False
        for rate in held.rates:
            if type(rate) is not float:
                return False
        if self.arrays is None:
            return True
        arrays = held.arrays
        if (
            [array.shape for array in arrays] != self._shapes
            or [array.dtype for array in arrays] != self._dtypes
            or (held.mask is not None) != self._masked
            or (None if held.codes is not None else [layer for layer, _ in held.tapped]) != self._layers
        ):
            return False
        return False not in [array.is_cuda for array in arrays]


def _as_given(entry: Entry, held: Held) -> tuple[Item, ...]:
    """Return an entry's items, the codes turned where they were given with the layers in the last axis."""
    codes, first = held.codes, entry.sources[0]
    if codes is None or (first.shape == codes.shape and first.stride() == codes.stride()):
        return tuple(entry.items)
    return replace(entry.items[0], turned=True), *entry.items[1:]


class Taken:
    """An ordinary step on its way: as little as tells what to send when it has arrived."""

    __slots__ = (
        "_at", "_known", "_losses", "_rates", "_rows", "_with_norm", "modules", "outgoing", "step", "tensors",
        "time_ns",
    )  # fmt: skip

    def __init__(self, held: Held, routine: Routine, at: int) -> None:
        self.step = held.step
        self.time_ns = held.time_ns
        self.outgoing: Sequence[tuple[str, Build]] = () if routine.arrays is None else routine.arrays.outgoing
        self.modules: list[str] = []
        self.tensors: Mapping[Key, Tensor] = {}
        self._at = at
        self._losses = routine.losses
        self._with_norm = held.norm is not None
        self._known: dict[str, float] = {}
        if len(held.names) > len(routine.losses):
            pairs = zip(held.names, held.values, strict=True)
            self._known = {name: value for name, value in pairs if type(value) is float}
        self._rates: list[float] = held.rates
        self._rows = {layer: rows for layer, (_, rows) in held.norms.items()} if held.norms else None

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
        losses = {name: numbers[self._at + index : end : width] for index, name in enumerate(self._losses)}
        losses.update({name: [taken._known[name] for taken in steps] for name in self._known})
        found: dict[str, Any] = {"losses": losses} if losses else {}
        if self._with_norm:
            found["gradient_norm"] = numbers[self._at + width - 1 : end : width]
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
        norm = None
        if self._with_norm:
            norm = numbers[end]
            end += 1
        norms = dict(zip(self._rows, numbers[end : end + len(self._rows)], strict=True)) if self._rows else {}
        found: dict[str, Any] = {"losses": losses} if losses else {}
        if self._rates:
            found["learning_rates"] = {str(index): rate for index, rate in enumerate(self._rates)}
        if self._rows:
            found.update(energies(norms, self._rows))
        found.update(gradient_norms(norm, self.tensors.get(GRADIENT_KEY), self.modules))
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
    """Ordinary steps that lie in one slot, with so many numbers in all; ``parts`` of them have arrays."""

    def __init__(
        self, slot: Slot, steps: Sequence[Taken], parts: Sequence[Taken], numbers: int, seconds: float
    ) -> None:
        self.slot = slot
        self.steps = steps
        self._parts = parts
        self._numbers = numbers
        self._seconds = seconds

    def resolve(self) -> list[float]:
        """Give each step its arrays, once arrived, and return the numbers of all."""
        slot = self.slot
        for part, taken in enumerate(self._parts):
            taken.tensors = slot.tensors(part)
        for owner, more in slot.extras():
            taken = self.steps[owner]
            taken.tensors = {**taken.tensors, **more}
        return slot.numbers(0, self._numbers)

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what the arrays of one of the steps cost, told what it took to send them all."""
        share = (self._seconds / 2 + seconds) / len(self.steps)
        return {schedule.CODES: share} if self._parts else {}
