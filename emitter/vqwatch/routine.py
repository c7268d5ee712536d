"""The ordinary step: only numbers and codes, on one CUDA device, looking as they did before.

What is cold costs: between two of the trainer's steps every cache is the trainer's, and a Python function that is
called once in between takes several times as long as in a loop. So what the general way of :mod:`vqwatch.collect` found
out is kept, and an ordinary step is one function: compare, copy, record an event. Everything else is left to be done
for several steps at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from . import schedule
from .scalars import LOSS, NORM, RATE

if TYPE_CHECKING:
    from .capture import Item
    from .collect import Build, Collector, Entry
    from .schedule import Schedule
    from .staging import Slot, Staging

MOST_ROUTINES: Final = 64

_set_grad_enabled: Any = torch._C._set_grad_enabled
_is_capturing: Any = torch.cuda.is_current_stream_capturing
_foreach_copy: Any = torch._foreach_copy_
_Tensor: Final = torch.Tensor


class Routine:
    """How to take the numbers and codes of steps whose inputs look alike; known by the shape of the codes."""

    __slots__ = ("codes_dtype", "items", "layers", "mask", "moved", "names", "norm", "outgoing", "scalar_dtypes")

    def __init__(
        self,
        entry: Entry,
        codes: torch.Tensor | None,
        tapped: Sequence[tuple[str, torch.Tensor]],
        mask: Any,
        with_codes: bool = True,
    ) -> None:
        self.names = [name for group, name in entry.scalars.names if group == LOSS]
        self.norm = len(self.names) < len(entry.scalars.names)
        self.scalar_dtypes = [tensor.dtype for tensor in entry.scalars.tensors]
        self.items: list[Item] = entry.items if with_codes else []
        self.outgoing: list[tuple[str, Build]] = entry.outgoing if with_codes else []
        self.layers = [layer for layer, _ in tapped] if codes is None else None
        self.mask = None if mask is None else (mask.shape, mask.dtype)
        self.codes_dtype = entry.sources[0].dtype if with_codes else None
        self.moved = False
        if codes is not None:
            first = entry.sources[0]
            self.moved = first.shape != codes.shape or first.stride() != codes.stride()


class Taken:
    """An ordinary step on its way: as little as tells what to send when it has arrived."""

    __slots__ = ("known", "rates", "routine", "seconds", "slot", "step", "time_ns")

    def __init__(
        self, step: int, time_ns: int, slot: Slot, routine: Routine, known: Mapping[str, float] | None, rates: list[Any]
    ) -> None:
        self.step = step
        self.time_ns = time_ns
        self.slot = slot
        self.routine = routine
        self.known = known
        self.rates = rates
        self.seconds = 0.0

    @property
    def arrived(self) -> bool:
        """Return whether everything is on the host. Does not wait."""
        return self.slot.arrived

    def fill(self, entry: Entry) -> None:
        """Make of it what the general way would have made."""
        routine, scalars = self.routine, entry.scalars
        entry.time_ns = self.time_ns
        entry.slot = self.slot
        entry.outgoing = routine.outgoing
        if routine.items:
            entry.costs[schedule.CODES] = self.seconds / 2
        scalars.names = [(LOSS, name) for name in routine.names]
        if routine.norm:
            scalars.names.append((NORM, ""))
        if self.known:
            scalars.known[LOSS] = dict(self.known)
        if self.rates:
            scalars.known[RATE] = {str(index): rate for index, rate in enumerate(self.rates)}


class Routines:
    """The ordinary steps of one emitter. ``own_seconds`` adds up what they cost."""

    def __init__(
        self,
        plan: Schedule,
        staging: Staging,
        collector: Collector,
        pending: deque[Any],
        groups: Sequence[Mapping[str, Any]],
    ) -> None:
        self.own_seconds = 0.0
        self._plan = plan
        self._staging = staging
        self._collector = collector
        self._pending = pending
        self._groups = groups
        self._owner = threading.get_ident()
        self._routines: dict[Any, Routine] = {}

    def take(self, step: int, losses: Any, codes: Any, mask: Any, grad_norm: Any) -> bool:
        """Take a step that is as ordinary as one before; return False, with nothing done, where it is not."""
        started = time.monotonic()
        plan, collector = self._plan, self._collector
        if type(step) is not int or not plan.last < step < plan.next_special or collector.norms:
            return False
        if type(losses) is not dict or self._owner != threading.get_ident() or _is_capturing():
            return False
        tapped = collector.tapped
        with_codes = plan.codes_due(step)
        if not with_codes:
            routine = self._routines.get(None)
        elif codes is None:
            routine = self._routines.get(tapped[0][1].shape) if tapped else None
        elif type(codes) is _Tensor:
            routine = self._routines.get(codes.shape)
        else:
            return False
        if routine is None:
            return False
        given: list[torch.Tensor] = []
        names: list[str] = []
        known: dict[str, float] | None = None
        for name, value in losses.items():
            if type(value) is _Tensor and value.is_cuda and not value.shape:
                names.append(name)
                given.append(value)
            elif type(value) is float:
                known = known or {}
                known[name] = value
            else:
                return False
        if routine.norm:
            if type(grad_norm) is not _Tensor or not grad_norm.is_cuda or grad_norm.shape:
                return False
            given.append(grad_norm)
        elif grad_norm is not None:
            return False
        if names != routine.names or [value.dtype for value in given] != routine.scalar_dtypes:
            return False
        if not with_codes:
            pass
        elif codes is not None:
            if routine.layers is not None or codes.dtype is not routine.codes_dtype or not codes.is_cuda:
                return False
            given.append(codes.movedim(-1, 0) if routine.moved else codes)
        else:
            if [layer for layer, _ in tapped] != routine.layers:
                return False
            shape = tapped[0][1].shape
            for _, indices in tapped:
                if indices.shape != shape or indices.dtype is not routine.codes_dtype or not indices.is_cuda:
                    return False
                given.append(indices)
        if with_codes and mask is not None:
            if type(mask) is not _Tensor or (mask.shape, mask.dtype) != routine.mask or not mask.is_cuda:
                return False
            given.append(mask)
        elif with_codes and routine.mask is not None:
            return False
        rates = [group["lr"] for group in self._groups]
        for rate in rates:
            if type(rate) is not float:
                return False
        slot = self._staging.ordinary(routine, len(names) + routine.norm, given)
        if slot is None:
            return False
        with_grad = torch.is_grad_enabled()
        if with_grad:
            _set_grad_enabled(False)
        try:
            slot.copy(given)
        finally:
            if with_grad:
                _set_grad_enabled(True)
        taken = Taken(step, time.time_ns(), slot, routine, known, rates)
        self._pending.append(taken)
        plan.last = step
        if tapped:
            collector.tapped = []
        collector.wants_codes = codes is None
        taken.seconds = time.monotonic() - started
        self.own_seconds += taken.seconds
        return True

    def learn(
        self, entry: Entry, with_codes: bool, codes: Any, tapped: Sequence[tuple[str, torch.Tensor]], mask: Any
    ) -> None:
        """Keep what the general way made of a step, if a routine can do the same for the next of its kind."""
        sources, items, numbers = entry.sources, entry.items, entry.scalars.tensors
        groups = [group for group, _ in entry.scalars.names]
        if not numbers or groups not in ([LOSS] * len(groups), [LOSS] * (len(groups) - 1) + [NORM]):
            return
        if any(group not in (LOSS, RATE) for group in entry.scalars.known):
            return
        arrays: list[Any] = []
        if with_codes:
            arrays = [indices for _, indices in tapped] if codes is None else [codes]
            if mask is not None:
                arrays.append(mask)
            if len(sources) != len(arrays) or len(items) != 1 + (mask is not None):
                return
            if any(type(array) is not _Tensor or not array.is_cuda for array in arrays):
                return
            if mask is not None and sources[-1].shape != mask.shape:
                return
            if codes is not None and sources[0].shape not in (codes.shape, codes.movedim(-1, 0).shape):
                return
        if len(self._routines) >= MOST_ROUTINES:
            self._routines.clear()
        if with_codes:
            self._routines[arrays[0].shape] = Routine(entry, codes, tapped, mask)
        self._routines[None] = Routine(entry, None, (), None, with_codes=False)
