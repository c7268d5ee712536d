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
from .capture import aligned, item_of
from .entry import GRADIENT_KEY, Entry
from .held import Held, Keeper, any_changed
from .layout import BARE_BYTES, MOST_SCALARS, Extra
from .routine import Arrays, Batch, Routine, Taken, look
from .staging import SMALL_SLOTS
from .wire import MAX_BUNDLED

if TYPE_CHECKING:
    from .collect import Collector
    from .entry import Build
    from .outbox import Outbox
    from .schedule import Schedule
    from .staging import Staging

MOST_ROUTINES: Final = 512
PATIENCE_SECONDS: Final = 0.1
"""Where a loop slows down, what is kept waits at most so long, or as long as so many steps used to take."""

TOGETHER_BYTES: Final = 4 << 20
"""What the arrays of steps copied together may take as sent; where one step alone needs more, it gets it."""

LAID_OUT_KINDS: Final = 2
"""Kinds of arrays that are laid out when they are met; of more, as where lengths differ, most never come again."""

_is_capturing: Any = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)  # a build without CUDA lacks it

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
        self._arrays: dict[Any, Arrays] = {}
        self._latest: list[Routine | None] = [None, None]  # without codes, and with them; no layers' norms
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
        if not keeper.held and self.capturing():
            return False
        return keeper.keep(step, losses, codes, mask, grad_norm, now)

    def capturing(self) -> bool:
        """Return whether a CUDA graph is being captured, in which nothing may be done."""
        return bool(_is_capturing())

    @property
    def more_gradients(self) -> bool:
        """Return whether parts of the gradient norms are left to take."""
        return self._gradient_part < self._gradient_parts

    def want_gradients(self) -> None:
        """Begin with the gradient norms: of all modules at once where the last step is told no norm, else in parts."""
        self._gradient_part = 0
        self._gradient_parts = self._collector.gradient_parts(whole=self.keeper.held[-1].norm is None)

    def take_gradients(self) -> None:
        """Let the last step kept have the next part of the gradient norms."""
        held = self.keeper.held[-1]
        held.gradients = self._collector.gradient_norms(None if held.norm is None else self._gradient_part)
        self._gradient_part += 1

    def beside(self, entry: Entry) -> None:
        """Take arrays of the last step kept, to be sent after it."""
        self._beside.append(entry)

    def due(self, now: float) -> bool:
        """Return whether the steps kept are to be copied now."""
        keeper = self.keeper
        if len(keeper.held) >= keeper.most or keeper.numbers_reused is not None or keeper.arrays_reused is not None:
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
        self.keeper.most = most = min(most, (MAX_BUNDLED - 1) // self._most_messages)
        self.keeper.at_once = most > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()

    def copy(self) -> None:
        """Begin the copies of the steps kept, in one go where they are ordinary; the others go the general way."""
        keeper = self.keeper
        if not keeper.held or self.capturing():
            return
        started = time.monotonic()
        plan = self._plan
        before = plan.last
        held = keeper.take()
        if keeper.numbers_reused is not None:
            self._leave_out(held[keeper.numbers_reused], numbers=True, arrays=False)
            keeper.numbers_reused = None
        if keeper.arrays_reused is not None:
            self._leave_out(held[keeper.arrays_reused], numbers=False, arrays=True)
            keeper.arrays_reused = None
        if any_changed(held):
            for one in held:
                numbers, arrays = one.changed()
                if numbers or arrays:
                    self._leave_out(one, numbers, arrays)
        batch: list[_Ordered] = []
        most: dict[bool, Routine | None] = {}  # how steps without layers' norms are taken, if all as the last one was
        for one in held:
            with_codes = (one.codes is not None or len(one.tapped) > 0) and plan.codes_due(one.step)
            given = one.scalars
            if with_codes not in most:
                latest = self._latest[with_codes]
                fits = latest is not None and latest.fits_all([each for each in held if not each.norms])
                most[with_codes] = latest if fits else None
            routine = None if one.norms else most[with_codes]
            if routine is None:
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
        for one in held:
            one.let_go_of_arrays()
        keeper.copied = held

    def _routine(self, held: Held, numbers: list[torch.Tensor], with_codes: bool) -> Routine | None:
        """Return how a step is taken: as the last one was, or one before; None where nothing like it was met."""
        latest = self._latest[with_codes]
        if latest is not None and not held.norms and latest.fits(held, numbers):
            return latest
        routine = self._routines.get(look(held, numbers, with_codes))
        if routine is None or not routine.fits(held, numbers):
            return None
        if not held.norms:
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
        size, numbers, most = BARE_BYTES, 0, self._staging.small_bytes
        for count, (_, routine, given) in enumerate(batch):
            if routine.arrays is not None:
                size += routine.arrays.nbytes
            numbers += len(given)
            if count and (size > most or numbers > MOST_SCALARS):
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
            entry = Entry(chosen[-1][0].step)
            self._collector.take_clusters(entry)
            if entry.items:
                looks = entry.plan or tuple([(item.key, item.shape, item.dtype, item.rows) for item in entry.items])
                extras.append(Extra(len(chosen) - 1, entry.items, entry.sources, looks))
                told = entry.outgoing
        kinds = [routine.arrays for _, routine, _ in chosen if routine.arrays is not None]
        common = max(set(kinds), key=kinds.count, default=None)
        for held, routine, given in chosen:
            taken = Taken(held, routine, len(numbers))
            numbers += given
            arrays = routine.arrays
            if arrays is not None:
                of_step = held.tensors[held.numbers : held.numbers + len(arrays.dtypes)]
                if arrays is common:
                    sources += of_step
                    parts.append(taken)
                else:
                    extras.append(Extra(len(steps), arrays.items, of_step, arrays))
            if held.gradients is not None:
                norms, taken.modules = held.gradients
                item = item_of(GRADIENT_KEY, schedule.GRADIENTS, [norms], tuple(norms.shape), "f32")
                extras.append(Extra(len(steps), [item], [norms], item.shape))
            steps.append(taken)
        if told:
            steps[-1].outgoing = [*steps[-1].outgoing, *told]
        size = BARE_BYTES + (0 if common is None else len(parts) * common.nbytes)
        slot = self._staging.free_small(size + sum([aligned(item.nbytes) for extra in extras for item in extra.items]))
        if slot is None:
            return False
        with self._staging.on(self._stream):
            slot.copy_alike(numbers, common, len(parts), sources, extras)
        slot.users = 1
        self._outbox.add(Batch(slot, steps, parts, len(numbers), time.monotonic() - started))
        return True

    def learn(self, entry: Entry, held: Held, with_codes: bool) -> None:
        """Keep what the general way made of a step, if the next of its kind can be taken the same way."""
        stream = self._staging.current_stream()
        if stream is not self._stream:
            self._stream = stream
            self._staging.forget_between()
        if len(self._routines) >= MOST_ROUTINES:
            self._routines.clear()
            self._arrays.clear()
        numbers = held.scalars
        without = Routine.of(entry, held, with_codes=False)
        if without is not None:
            self._routines[look(held, numbers, with_codes=False)] = without
        routine = Routine.of(entry, held, with_codes=True) if with_codes else None
        if routine is None or routine.arrays is None:
            return
        self._routines[look(held, numbers, with_codes=True)] = routine
        arrays = routine.arrays
        kind = arrays.items, arrays.outgoing, arrays.dtypes
        known = self._arrays.get(kind)
        if known is not None:
            routine.arrays = known
            return
        self._arrays[kind] = arrays
        self._most_messages = max(self._most_messages, 1 + len(arrays.outgoing))
        self._most_bytes = max(self._most_bytes, arrays.nbytes)
        together = max(1, min(schedule.MOST_TOGETHER, TOGETHER_BYTES // arrays.nbytes))
        self._staging.reserve(arrays, together + 1)
        if len(self._arrays) <= LAID_OUT_KINDS:
            sources = held.tensors[held.numbers : held.numbers + len(arrays.dtypes)]
            self._staging.lay_out(arrays, together + 1, sources)
