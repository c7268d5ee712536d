"""The ordinary step on a CUDA device: numbers and codes that look as they did before, kept, then copied together.

Everything else is left to the general way, one step at a time and in order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from . import schedule
from .capture import item_of
from .collect import GRADIENT_KEY, Entry
from .held import Held, Keeper, any_changed
from .routine import Batch, Routine, Taken, look
from .staging import MOST_SCALARS, SMALL_SLOTS, aligned
from .wire import MAX_BUNDLED

if TYPE_CHECKING:
    from .capture import Item
    from .collect import Collector
    from .outbox import Outbox
    from .schedule import Schedule
    from .staging import Staging

MOST_ROUTINES: Final = 512
PATIENCE_SECONDS: Final = 0.1
"""Where a loop slows down, what is kept waits at most so long, or as long as so many steps used to take."""

TOGETHER_BYTES: Final = 4 << 20
"""What the arrays of steps copied together may take as sent; where one step alone needs more, it gets it."""

_is_capturing: Any = torch.cuda.is_current_stream_capturing

_Ordered = tuple[Held, Routine, list[torch.Tensor]]
"""A step, how it is taken, and its numbers on the device."""


class Ordinary:
    """The ordinary steps of one emitter."""

    def __init__(
        self,
        plan: Schedule,
        staging: Staging,
        collector: Collector,
        outbox: Outbox,
        groups: Sequence[Mapping[str, Any]],
        dropped: Counter[str],
        general: Callable[[Held], None],
    ) -> None:
        self.keeper = Keeper(collector, groups, plan.last)
        self._plan = plan
        self._staging = staging
        self._collector = collector
        self._outbox = outbox
        self._dropped = dropped
        self._general = general
        self._stream = staging.current_stream()
        self._routines: dict[Any, Routine] = {}
        self._latest: list[Routine | None] = [None, None]  # without codes, and with them
        self._beside: list[Entry] = []
        self._gradient_part = self._gradient_parts = 0
        self._most_bytes = 0
        self._most_messages = 1
        self._one_by_one = False
        self._strange = 0
        self._patience_seconds = PATIENCE_SECONDS

    def keep(self, step: int, losses: Any, codes: Any, mask: Any, grad_norm: Any, now: float) -> bool:
        """Keep a step that can be an ordinary one; return False, with nothing done, where it cannot."""
        keeper = self.keeper
        if type(step) is not int or step <= self._plan.last:
            return False
        if not self._staging.is_current(self._stream):
            return False
        if not keeper.held:
            if _is_capturing():
                return False
            keeper.at_once = keeper.most > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()
        return keeper.keep(step, losses, codes, mask, grad_norm, now)

    @property
    def more_gradients(self) -> bool:
        """Return whether parts of the gradient norms are left to take."""
        return self._gradient_part < self._gradient_parts

    def take_gradients(self, due: bool) -> None:
        """Let the last step kept have gradient norms: of all modules where it is told no norm, else of a part.

        Where they are due the first part is taken, and one more at each step that follows.
        """
        held = self.keeper.held[-1]
        if due:
            self._gradient_part = 0
            self._gradient_parts = self._collector.gradient_parts(whole=held.norm is None)
        if self.more_gradients:
            part = None if held.norm is None else self._gradient_part
            held.gradients = self._collector.gradient_norms(part)
            self._gradient_part += 1

    def beside(self, entry: Entry) -> None:
        """Take arrays of the last step kept, to be sent after it."""
        self._beside.append(entry)

    def due(self, now: float) -> bool:
        """Return whether the steps kept are to be copied now."""
        keeper = self.keeper
        if len(keeper.held) >= keeper.most or keeper.numbers_reused or keeper.arrays_reused:
            return True
        return now - keeper.since >= self._patience_seconds

    def pace(self) -> None:
        """Choose how many steps to keep in a loop of this pace."""
        strange = self._strange >= SMALL_SLOTS // 2  # each of these needs a slot of its own
        self._strange = 0
        most = 1 if self._one_by_one or strange else schedule.steps_together(self._plan.step_seconds)
        self._patience_seconds = max(PATIENCE_SECONDS, most * self._plan.step_seconds)
        if self._most_bytes:
            most = min(most, max(1, TOGETHER_BYTES // self._most_bytes))
        self.keeper.most = min(most, (MAX_BUNDLED - 1) // self._most_messages)

    def copy(self) -> None:
        """Begin the copies of the steps kept, in one go where they are ordinary; the others go the general way."""
        keeper = self.keeper
        if not keeper.held or _is_capturing():
            return
        started = time.monotonic()
        plan = self._plan
        before = plan.last
        held = keeper.take()
        if keeper.numbers_reused or keeper.arrays_reused:
            self._leave_out(held[-2], keeper.numbers_reused, keeper.arrays_reused)
            keeper.numbers_reused = keeper.arrays_reused = False
        if any_changed(held):
            for one in held:
                numbers, arrays = one.changed()
                if numbers or arrays:
                    self._leave_out(one, numbers, arrays)
        batch: list[_Ordered] = []
        for one in held:
            with_codes = (one.codes is not None or len(one.tapped) > 0) and plan.codes_due(one.step)
            given = one.scalars
            routine = self._latest[with_codes]
            if routine is None or not routine.fits(one, given):
                routine = self._routine(one, given, with_codes)
            if routine is None:
                self._copy(batch, started)
                batch = []
                self._strange += 1
                self._general(one)
                started = time.monotonic()
            else:
                plan.last = one.step
                batch.append((one, routine, given))
        clusters = plan.is_due(schedule.CLUSTERS, held[-1].step, before)
        self._copy(batch, started, clusters)
        for entry in self._beside:
            self._outbox.add(entry)
        self._beside.clear()

    def _routine(self, held: Held, numbers: list[torch.Tensor], with_codes: bool) -> Routine | None:
        """Return how a step is taken that is not as the last one was, None where nothing like it was met before."""
        routine = self._routines.get(look(held, numbers, with_codes))
        if routine is None or not routine.fits(held, numbers):
            return None
        self._latest[with_codes] = routine
        return routine

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
                for held, _, _ in chosen:
                    self._leave_out(held, numbers=True, arrays=True)
            if not done:
                for held, _, _ in chosen:  # it counts what it cannot take, and sends the rest
                    self._general(held)

    def _fitting(self, batch: list[_Ordered]) -> int:
        """Return how many of the steps fit into one slot, at least one."""
        size, numbers = 4 * MOST_SCALARS, 0
        for count, (_, routine, given) in enumerate(batch):
            size += routine.nbytes
            numbers += len(given)
            if count and (size > self._staging.small_bytes or numbers > MOST_SCALARS):
                return count
        return len(batch)

    def _copy_together(self, chosen: list[_Ordered], started: float, clusters: bool) -> bool:
        """Enqueue the copies of some steps into one slot; return False where none is free."""
        numbers: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        parts: list[Sequence[Item]] = []
        steps: list[Taken] = []
        plan: list[Any] = []
        size = 4 * MOST_SCALARS
        for held, routine, given in chosen:
            taken = Taken(held, routine, len(numbers), len(parts))
            steps.append(taken)
            parts.append(routine.items)
            numbers += given
            plan.append(routine)
            if routine.items:
                size += routine.nbytes
                arrays = held.arrays[: routine.sources]
                if routine.moved:
                    arrays[0] = arrays[0].movedim(-1, 0)
                sources += arrays
            if held.gradients is not None:
                norms, taken.modules = held.gradients
                item = item_of(GRADIENT_KEY, schedule.GRADIENTS, [norms], tuple(norms.shape), "f32")
                taken.items = parts[-1] = [*routine.items, item]
                sources.append(norms)
                plan.append(item.shape)
                size += aligned(item.nbytes)
        if clusters:
            entry = Entry(steps[-1].step)
            self._collector.take_clusters(entry)
            steps[-1].items = parts[-1] = [*parts[-1], *entry.items]
            steps[-1].outgoing = [*steps[-1].outgoing, *entry.outgoing]
            sources.extend(entry.sources)
            plan.append(entry.plan or tuple([(item.key, item.shape, item.dtype) for item in entry.items]))
            size += sum(aligned(item.nbytes) for item in entry.items)
        slot = self._staging.free_small(size)
        if slot is None:
            return False
        with torch.no_grad(), self._staging.on(self._stream):
            slot.copy(numbers, parts, sources, tuple(plan))
        slot.users = 1
        self._outbox.add(Batch(slot, steps, len(numbers), time.monotonic() - started))
        return True

    def learn(self, entry: Entry, held: Held, with_codes: bool) -> None:
        """Keep what the general way made of a step, if the next of its kind can be taken the same way."""
        self._stream = self._staging.current_stream()
        if len(self._routines) >= MOST_ROUTINES:
            self._routines.clear()
        numbers = held.scalars
        without = Routine.of(entry, held, with_codes=False)
        if without is not None:
            self._routines[look(held, numbers, with_codes=False)] = without
        routine = Routine.of(entry, held, with_codes=True) if with_codes else None
        if routine is not None:
            routine.nbytes = sum(aligned(item.nbytes) for item in routine.items)
            self._routines[look(held, numbers, with_codes=True)] = routine
            self._most_messages = max(self._most_messages, 1 + len(routine.outgoing))
            if routine.nbytes > self._most_bytes:
                self._most_bytes = routine.nbytes
                together = max(1, min(schedule.MOST_TOGETHER, TOGETHER_BYTES // routine.nbytes))
                self._staging.reserve(4 * MOST_SCALARS + together * routine.nbytes + (64 << 10))
