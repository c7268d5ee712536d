"""The ordinary step on a CUDA device: numbers and codes that look as they did before, kept, then copied together.

Everything else is left to the general way, one step at a time and in order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from . import schedule
from .batch import Batch, Taken
from .begun import Begun, Looked
from .capture import aligned
from .entry import Entry
from .held import Held, Keeper, any_changed
from .layout import BARE_BYTES, MOST_NUMBERS, MOST_SCALARS, Extra
from .routine import Routine, Routines
from .staging import SMALL_SLOTS
from .wire import MAX_BUNDLED, MAX_STEPS

if TYPE_CHECKING:
    from .collect import Collector
    from .entry import Build
    from .outbox import Outbox
    from .schedule import Schedule
    from .staging import Staging

PATIENCE_SECONDS: Final = 0.1
"""Where a loop slows down, what is kept waits at most so long, or as long as so many steps used to take."""

TOGETHER_BYTES: Final = 8 << 20
"""What the arrays of steps copied together may take as sent; where one step alone needs more, it gets it."""

LAID_OUT_KINDS: Final = 2
"""Kinds of arrays that are laid out when they are met; of more, as where lengths differ, most never come again."""

_LEGACY_STREAM: Final = 0
"""The handle of the stream that a training uses where it chooses none. On it nothing can be captured."""

_is_capturing: Any = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)  # a build without CUDA lacks it

_Ordered = tuple[Held, Routine]
"""A step, and how it is taken."""


class Ordinary:
    """The ordinary steps of one emitter; ``gradient_parts`` are the parts of the gradient norms left to take."""

    def __init__(
        self,
        plan: Schedule,
        staging: Staging,
        collector: Collector,
        outbox: Outbox,
        optimizers: Sequence[Any],
        dropped: Counter[str],
        general: Callable[[Held], None],
    ) -> None:
        self.keeper = Keeper(collector, optimizers, plan.last)
        self.gradient_parts = 0
        self._gradient_seconds = 0.0  # that those of this time took
        self._plan = plan
        self._staging = staging
        self._raw_current = staging.raw_current
        self._collector = collector
        self._outbox = outbox
        self._dropped = dropped
        self._general = general
        self._use(staging.current_stream())
        self._routines = Routines()
        self._beside: list[Entry] = []
        self._one_by_one = False
        self._strange = 0
        self._looked: Looked | None = None
        self._begun: Begun | None = None
        self._copied: list[Held] = []  # nobody needs them any more
        self._patience_seconds = PATIENCE_SECONDS

    def keep(self, step: int, losses: Any, codes: Any, mask: Any, grad_norm: Any, now: float) -> bool:
        """Keep a step that can be an ordinary one; return False, with nothing done, where it cannot."""
        keeper = self.keeper
        if self._raw_current() != self._raw_stream:
            return False
        if not keeper.held and self.capturing():
            return False
        return keeper.keep(step, losses, codes, mask, grad_norm, now)

    def _use(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._raw_stream = stream.cuda_stream

    def capturing(self) -> bool:
        """Return whether a CUDA graph is being captured, in which nothing may be done."""
        return self._raw_current() != _LEGACY_STREAM and bool(_is_capturing())

    def want_gradients(self) -> None:
        """Begin with the gradient norms: of all modules at once where the last step is told no norm, else in parts.

        Where parts are left of the last time, they come first: else those that come last would never have a turn.
        """
        if not self.gradient_parts:
            self.gradient_parts = self._collector.gradient_parts(whole=self.keeper.held[-1].norm is None)
            self._gradient_seconds = 0.0

    def take_gradients(self) -> float:
        """Let the last step kept have the next part of the gradient norms; return the seconds that it took."""
        started = time.monotonic()
        held = self.keeper.held[-1]
        whole = held.norm is None
        self.gradient_parts = 0 if whole else self.gradient_parts - 1
        held.gradients = self._collector.gradient_norms(None if whole else self.gradient_parts)
        seconds = time.monotonic() - started
        self._gradient_seconds += seconds
        if not self.gradient_parts:
            self._plan.spent({schedule.GRADIENTS: self._gradient_seconds})
        return seconds

    def beside(self, entry: Entry) -> None:
        """Take arrays of the last step kept, to be sent after it."""
        self._beside.append(entry)

    @property
    def full(self) -> bool:
        """Return whether there may be no slot for what is taken beside the next steps, until those kept are copied."""
        return self._staging.few_left

    @property
    def under_way(self) -> bool:
        """Return whether something was begun that calls are to go on with."""
        return self._half_copied or self.gradient_parts > 0

    @property
    def _half_copied(self) -> bool:
        return self._looked is not None or self._begun is not None

    def due(self, now: float) -> bool:
        """Return whether there is something to copy now."""
        keeper = self.keeper
        return self._half_copied or len(keeper.held) >= keeper.most or keeper.reused or now >= self.due_at(now)

    def due_at(self, now: float) -> float:
        """Return when there will be something to copy at the latest, if steps are kept from now on."""
        keeper = self.keeper
        return (keeper.since if keeper.held else now) + self._patience_seconds

    def pace(self) -> None:
        """Choose how many steps to keep in a loop of this pace."""
        strange = self._strange >= SMALL_SLOTS // 2  # each of these needs a slot of its own
        self._strange = 0
        most = 1 if self._one_by_one or strange else schedule.steps_together(self._plan.step_seconds)
        self._patience_seconds = max(PATIENCE_SECONDS, most * self._plan.step_seconds)
        if self._routines.most_bytes:
            most = min(most, max(1, TOGETHER_BYTES // self._routines.most_bytes))
        self.keeper.most = most = min(most, (MAX_BUNDLED - 1) // self._routines.most_messages)
        self.keeper.at_once = most > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()

    def copy(self, in_part: bool = False, late: bool = False) -> None:
        """Begin the copies of the steps kept, together where they are ordinary; the others go the general way.

        ``in_part`` does one of three parts: ordinary steps are looked at, then their numbers are copied, then their
        arrays. What it takes for all at once is long. ``late`` says that the training has gone on since the last step.
        """
        if not (self.keeper.held or self._begun) or self.capturing():
            return
        self._copy_part(late)
        while not in_part and (self.keeper.held or self._begun):
            self._copy_part(late)

    def _copy_part(self, late: bool) -> None:
        started = time.monotonic()
        if self._begun is not None:
            self._finish(self._begun, started)
        elif self._looked is None and (looked := self._look(started, late)) is not None:
            self._looked = looked
        else:
            self._begun = begun = self._begin(started)
            if begun is None:
                self._copy_separately(started, late)
            elif not begun.looked.parts:
                self._finish(begun, started)

    def _copy_separately(self, started: float, late: bool) -> None:
        """Leave out what was written to, and take each of the steps kept by itself."""
        keeper = self.keeper
        numbers_reused, arrays_reused = keeper.take_reused()
        held, _ = keeper.take()
        for index in numbers_reused:
            self._leave_out(held[index], numbers=True, arrays=False)
        for index in arrays_reused:
            self._leave_out(held[index], numbers=False, arrays=True)
        for one in held:
            numbers, arrays = one.changed()
            if numbers or arrays:
                self._leave_out(one, numbers, arrays)
        self._copy_each(held, started, late)
        self._done(held)

    def _done(self, held: list[Held]) -> None:
        """Let go of steps whose copies are under way, and of what was taken beside them."""
        last, beside = held[-1].step, self._beside
        while beside and beside[0].step <= last:
            self._outbox.add(beside.pop(0))
        for one in held:
            one.let_go_of_arrays()
        self._copied = [*held]

    def _look(self, started: float, late: bool) -> Looked | None:
        """Choose a slot for the steps kept, and enqueue the copies of what comes seldom; return how to go on.

        Returns None, with nothing done, where that cannot be, or codes differ in shape from those before. Most steps
        come this way: nothing is done for each of them that can be done for all at once.
        """
        self._copied = []
        held = self.keeper.held
        if len(held) > MAX_STEPS:  # calls that were busy with other things came together
            held, late = held[:MAX_STEPS], True
        last = held[-1]
        due = self._plan.codes_due_at([one.step for one in held])
        parts = [index for index in due if held[index].codes is not None or held[index].tapped]
        routine = self._routines.latest(len(parts) > 0)
        if routine is None:
            return None
        arrays = routine.arrays if parts else None
        if parts and (arrays is None or not routine.has_shapes(held[parts[-1]])):
            return None  # where lengths differ, no other need be looked at
        special = [index for index, one in enumerate(held) if one.norms or one.gradients is not None]
        seldom = [number for index in special for number in held[index].seldom]
        if False in [number.is_cuda for number in seldom]:
            return None
        numbers = routine.numbers * len(held)
        count = numbers + sum([held[index].seldom_count for index in special])
        size = BARE_BYTES if arrays is None else BARE_BYTES + len(parts) * arrays.nbytes
        if size > self._staging.small_bytes or numbers > MOST_SCALARS or count > MOST_NUMBERS:
            return None
        extras: list[Extra] = []
        told: Sequence[tuple[str, Build]] = ()
        if not late and self._plan.is_due(schedule.CLUSTERS, last.step, self._plan.last):
            told = self._take_clusters(last.step, len(held) - 1, extras)
        plan = extras[0].plan if extras else None
        slot = self._staging.free_small(size + sum([aligned(item.nbytes) for extra in extras for item in extra.items]))
        if slot is None:
            return None
        try:
            with self._staging.on(self._stream):
                slot.copy_extras(arrays, len(parts), extras, seldom, numbers)
        except Exception:  # such as memory of a CUDA graph that torch has taken back
            return None
        slot.users = 1
        seconds = time.monotonic() - started
        return Looked(slot, routine, len(held), parts, told, plan, len(special) > 0, seconds)

    def _begin(self, started: float) -> Begun | None:
        """Enqueue the copies of the numbers of the steps looked at.

        Returns None, with nothing done, where there are none, they are not all of one routine, or some of those kept
        were written to meanwhile.
        """
        keeper, looked, self._looked = self.keeper, self._looked, None
        if looked is None:
            return None
        held = keeper.held[: looked.steps]
        found = None
        if not (keeper.reused or any_changed(held)):
            found = looked.routine.tensors_of(held, looked.parts)
        if found is None or not self._copied_numbers(looked, found[0]):
            looked.slot.release([])
            return None
        held, keeper.begun = keeper.take(looked.steps)
        keeper.since = started  # a step or two may be left
        self._plan.last = held[-1].step
        sources = found[1]
        versions = looked.routine.versions_of(held, looked.parts)
        return Begun(looked, held, sources, versions, looked.seconds + time.monotonic() - started)

    def _copied_numbers(self, looked: Looked, numbers: list[torch.Tensor]) -> bool:
        try:
            with self._staging.on(self._stream):
                looked.slot.copy_numbers(numbers, looked.routine.dtype)
        except Exception:  # such as memory of a CUDA graph that torch has taken back: whose is it?
            return False
        return True

    def _finish(self, begun: Begun, started: float) -> None:
        """Enqueue the copies of the arrays, and have it all sent."""
        self._begun = None
        looked, held, lost = begun.looked, begun.held, self._overwritten(begun)
        with self._staging.on(self._stream):
            try:
                looked.slot.copy_arrays(begun.sources)
            except Exception:  # such as memory of a CUDA graph that torch has taken back
                lost = looked.parts
                looked.slot.copy_arrays(())
        seconds = begun.seconds + time.monotonic() - started
        self._outbox.add(begun.unlike(lost, seconds) if lost or looked.special else begun.regular(seconds))
        for index in lost:
            self._leave_out(held[index], numbers=False, arrays=True)
        self._done(held)

    def _overwritten(self, begun: Begun) -> list[int]:
        """Return whose arrays were written to before they could be copied, as places among the steps begun."""
        keeper, looked = self.keeper, begun.looked
        parts = looked.parts
        lost = [index for index in keeper.begun_reused if index in parts]
        keeper.begun, keeper.begun_reused = [], []
        if [source._version for source in begun.sources] != begun.versions:
            lost += [index for index in parts if index not in lost and begun.held[index].changed()[1]]
        return lost

    def _copy_each(self, held: list[Held], started: float, late: bool) -> None:
        """Take each step as one like it was taken, and enqueue their copies together as far as that goes."""
        plan = self._plan
        before = plan.last
        batch: list[_Ordered] = []
        for one in held:
            with_codes = (one.codes is not None or len(one.tapped) > 0) and len(plan.codes_due_at([one.step])) > 0
            routine = self._routines.of(one, with_codes)
            if routine is None or one.numbers + one.seldom_count > MOST_NUMBERS:
                self._copy(batch, started)
                batch = []
                self._strange += 1
                self._general(one)
                started = time.monotonic()
            else:
                plan.last = one.step
                batch.append((one, routine))
        self._copy(batch, started, not late and plan.is_due(schedule.CLUSTERS, held[-1].step, before))

    def _leave_out(self, held: Held, numbers: bool, arrays: bool) -> None:
        """Leave out what was written to, and keep nothing any more."""
        self._one_by_one = True
        self.keeper.most = 1
        if numbers:
            self._dropped["scalars:overwritten"] += 1
        if arrays:
            self._dropped["codes:overwritten"] += 1
        held.leave_out(numbers, arrays)

    def _copy(self, batch: list[_Ordered], started: float, clusters: bool = False) -> None:
        """Enqueue the copies of steps that have a routine, as many at a time as a slot holds."""
        while batch:
            count = self._fitting(batch)
            chosen, batch = batch[:count], batch[count:]
            try:
                done = self._copy_together(chosen, started, clusters and not batch)
            except Exception:  # such as memory of a CUDA graph that torch has taken back
                done = False
                for held, _ in chosen:
                    self._leave_out(held, numbers=True, arrays=True)
            if not done:
                for held, _ in chosen:  # it counts what it cannot take, and sends the rest
                    self._general(held)

    def _fitting(self, batch: list[_Ordered]) -> int:
        """Return how many of the steps fit into one slot, at least one."""
        size, numbers, all_numbers, most = BARE_BYTES, 0, 0, self._staging.small_bytes
        for count, (held, routine) in enumerate(batch):
            if routine.arrays is not None:
                size += routine.arrays.nbytes
            numbers += held.numbers
            all_numbers += held.numbers + held.seldom_count
            if count and (size > most or numbers > MOST_SCALARS or all_numbers > MOST_NUMBERS):
                return count
        return len(batch)

    def _copy_together(self, chosen: list[_Ordered], started: float, clusters: bool) -> bool:
        """Enqueue the copies of some steps into one slot; return False where none is free."""
        numbers: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        steps: list[Taken] = []
        parts: list[Taken] = []
        extras: list[Extra] = []
        told: Sequence[tuple[str, Build]] = ()
        if clusters:  # before all other extras, so that they always lie in the same place
            told = self._take_clusters(chosen[-1][0].step, len(chosen) - 1, extras)
        seldom: list[torch.Tensor] = []
        plain = sum([held.numbers for held, _ in chosen])
        end = plain
        kinds = [routine.arrays for _, routine in chosen if routine.arrays is not None]
        common = max(set(kinds), key=kinds.count, default=None)
        for held, routine in chosen:
            arrays = routine.arrays
            taken = Taken.of(held, routine, len(numbers), end, routine.outgoing)
            numbers += held.tensors[: held.numbers]
            seldom += held.seldom
            end += held.seldom_count
            if arrays is not None:
                of_step = arrays.of(held)
                if arrays is common:
                    sources += of_step
                    parts.append(taken)
                else:
                    extras.append(Extra(len(steps), arrays.items, of_step, arrays))
            steps.append(taken)
        if told:
            steps[-1].outgoing = [*steps[-1].outgoing, *told]
        size = BARE_BYTES + (0 if common is None else len(parts) * common.nbytes)
        slot = self._staging.free_small(size + sum([aligned(item.nbytes) for extra in extras for item in extra.items]))
        if slot is None:
            return False
        with self._staging.on(self._stream):
            slot.copy_extras(common, len(parts), extras, seldom, plain)
            slot.copy_numbers(numbers)
            slot.copy_arrays(sources)
        slot.users = 1
        self._outbox.add(Batch(slot, steps, parts, end, time.monotonic() - started))
        return True

    def _take_clusters(self, step: int, owner: int, extras: list[Extra]) -> Sequence[tuple[str, Build]]:
        """Add the cluster sizes to the extras, as those of a step at this place; return what tells them."""
        entry = Entry(step)
        self._collector.take_clusters(entry)
        if not entry.items:
            return ()
        looks = entry.plan or tuple([(item.key, item.shape, item.dtype, item.rows) for item in entry.items])
        extras.append(Extra(owner, entry.items, entry.sources, looks))
        return entry.outgoing

    def let_go(self, most: int) -> None:
        """Free so many of the steps that were copied; the next look frees those that are left."""
        del self._copied[-most:]

    def give_up(self) -> None:
        """Let go of the slot of steps that are half copied: nothing more will be done for them."""
        looked = self._begun.looked if self._begun is not None else self._looked
        self._looked = self._begun = None
        if looked is not None:
            looked.slot.release([])

    def learn(self, entry: Entry, held: Held, with_codes: bool) -> None:
        """Keep what the general way made of a step, if the next of its kind can be taken the same way."""
        stream = self._staging.current_stream()
        if stream is not self._stream:
            self._use(stream)
            self._staging.forget_between()
        arrays = self._routines.learn(entry, held, with_codes)
        if arrays is not None:
            together = max(1, min(schedule.MOST_TOGETHER, TOGETHER_BYTES // arrays.nbytes))
            self._staging.reserve(arrays, together + 1)
            if self._routines.kinds <= LAID_OUT_KINDS:
                self._staging.lay_out(arrays, together + 1)
