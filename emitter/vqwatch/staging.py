"""Copies CUDA tensors to the host without waiting. Imports torch.

A slot holds one step, or a few that are copied together: the numbers as float32, then the arrays. All is copied on the
trainer's stream, narrowed on the way, because the next in-place update would race with a later read; an event tells
when it has arrived, and a slot is used again only after that, and after libzmq let go of it.

Slots are pinned host memory that the device writes to directly: no second copy and no second stream, which cost host
time. Those larger than :data:`MAPPED_BYTES`, for codebooks and reconstructions, are staged in device memory first, and
a side stream takes them to pinned memory, so that the training does not wait for the bus. Slots are allocated at first
use, grow to a power of two when a step does not fit, and never shrink.

In a steady state a copy makes no tensor, not even a view: memory for its object would have to be allocated, and the
first allocation of a call that malloc cannot serve from its cache costs as much as several copies.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from . import schedule
from .arrays import Refused
from .capture import Item, aligned
from .layout import BARE_BYTES, MOST_SCALARS
from .slots import Slot, can_map

if TYPE_CHECKING:
    from .routine import Arrays

SMALL_SLOTS: Final = schedule.MOST_TOGETHER + 5
"""Enough for all steps that are kept where each needs one of its own after all, while some are under way."""

TOGETHER_SLOTS: Final = 8
"""Of the small slots, those that hold many steps: fewer are ever under way than of single ones."""

LARGE_SLOTS: Final = 3
MAPPED_BYTES: Final = 16 << 20
"""A slot up to this size is written to directly: over the bus it takes the device 0.3 ms or more, seldom enough."""
LAID_OUT: Final = 3
"""Small slots that are laid out when a kind of step is met first; the others when they are needed."""

_SMALLEST: Final = 64 * 1024
_NOTHING: Final = contextlib.nullcontext()
_make_stream: Callable[..., Any] = torch.cuda.Stream


class Staging:
    """The slots of one device: many small, few large, at most ``most_bytes`` on the device and as many pinned.

    ``small_bytes`` is what the largest small one holds, ``raw_current`` tells the handle of the current stream.
    """

    def __init__(self, device: torch.device, most_bytes: int) -> None:
        self.device_bytes = self.pinned_bytes = self.small_bytes = 0
        self._device = device
        self._most_bytes = most_bytes
        with torch.cuda.device(device):
            self.side = _make_stream(device)
            self.raw_current: Callable[[], int] = functools.partial(torch._C._cuda_getCurrentRawStream, device.index)
            self._current: torch.cuda.Stream = torch.cuda.current_stream(device)
            self._can_map = can_map(device)
            self._small = [Slot(self) for _ in range(SMALL_SLOTS)]
            self._large = [Slot(self) for _ in range(LARGE_SLOTS)]
        self._between: torch.Tensor | None = None

    def take(
        self, scalars: Sequence[torch.Tensor], items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any
    ) -> Slot:
        """Enqueue a step's copies and return its slot. Raises :class:`Refused` where no slot is free or can be had."""
        if len(scalars) > MOST_SCALARS:
            raise Refused("limit", f"{len(scalars)} numbers on the device in one step, at most {MOST_SCALARS}")
        end = BARE_BYTES
        large = False
        for item in items:
            end += aligned(item.nbytes)
            large = large or item.kind in schedule.LARGE
        slots = self._large if large else self._small
        slot = _free_slot(slots)
        if slot.capacity < end:
            self._grow(slot, end)
            self._grow_others(slots, slot.capacity)
        slot.users = 1
        try:
            slot.copy(scalars, items, sources, plan)
        except Exception:
            slot.users = 0
            raise
        return slot

    def free_small(self, size: int) -> Slot | None:
        """Return a small slot, or None where none is free and as large as this."""
        for slot in self._small:
            if slot.capacity >= size and slot.free:
                return slot
        return None

    @property
    def few_left(self) -> bool:
        """Return whether no more than one of the large slots is free."""
        return [slot.users for slot in self._large].count(0) <= 1

    def maps(self, capacity: int) -> bool:
        """Return whether the device writes to the host's memory itself where a slot is of this size."""
        return self._can_map and capacity <= MAPPED_BYTES

    def reserve(self, arrays: Arrays, most: int) -> None:
        """Let some of the small slots hold arrays of so many steps like this one, as far as there is memory."""
        self._grow_others(self._small[:TOGETHER_SLOTS], 1 << (_room(arrays, most) - 1).bit_length())
        if any(item.turned for item in arrays.items):
            self.between(most * arrays.nbytes)

    def lay_out(self, arrays: Arrays, most: int) -> None:
        """Lay out the small slots that are used first, for up to so many steps; it takes as long as some of them."""
        for slot in self._small[:LAID_OUT]:
            if slot.free and slot.capacity >= _room(arrays, most):
                for count in range(1, most + 1):
                    slot.lay_out(arrays, count)

    def between(self, size: int) -> torch.Tensor | None:
        """Return device memory of this many bytes for what is copied twice, or None where there is none left.

        All of one stream use it, one after the other; see :meth:`forget_between`.
        """
        memory = self._between
        if memory is None or memory.numel() < size:
            more = size - (0 if memory is None else memory.numel())
            if self.device_bytes + more > self._most_bytes:
                return None
            self.forget_between()
            with torch.inference_mode(False):
                try:
                    self._between = torch.empty(size, dtype=torch.uint8, device=self._device)
                except RuntimeError:  # no memory left on the device
                    return None
            self.device_bytes += size
        return self._between

    def forget_between(self) -> None:
        """Have no memory between any more: what is copied on another stream must not use that of this one."""
        if self._between is not None:
            self.device_bytes -= self._between.numel()
            self._between = None
            for slot in self._small:
                slot.forget()

    def is_current(self, stream: torch.cuda.Stream) -> bool:
        """Return whether this is the current stream of the device."""
        return bool(self.raw_current() == stream.cuda_stream)

    def current_stream(self) -> torch.cuda.Stream:
        """Return the current stream of the device; made anew only where it is another, as that costs more."""
        if not self.is_current(self._current):
            self._current = torch.cuda.current_stream(self._device)
        return self._current

    def on(self, stream: torch.cuda.Stream) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which this stream is the current one."""
        return _NOTHING if self.is_current(stream) else torch.cuda.stream(stream)

    def _grow_others(self, slots: list[Slot], capacity: int) -> None:
        """Let the slots that are free follow at once, so that nothing is allocated later."""
        for slot in slots:
            if slot.free and slot.capacity < capacity:
                try:
                    self._grow(slot, capacity)
                except Refused:
                    return

    def _grow(self, slot: Slot, size: int) -> None:
        for capacity in (max(_SMALLEST, 1 << (size - 1).bit_length()), size):
            pinned = self.pinned_bytes - slot.capacity + capacity
            staged = (
                self.device_bytes - (0 if slot.mapped else slot.capacity) + (0 if self.maps(capacity) else capacity)
            )
            if max(pinned, staged) <= self._most_bytes:
                break
        else:
            raise Refused("staging_bytes", f"{size} bytes do not fit into staging_bytes={self._most_bytes}")
        try:
            slot.allocate(capacity, self._device)
        except RuntimeError as error:  # no pinned or no device memory left
            raise Refused("memory", f"no staging memory: {error}") from error
        self.pinned_bytes, self.device_bytes = pinned, staged
        self.small_bytes = max([small.capacity for small in self._small])


def _room(arrays: Arrays, most: int) -> int:
    """Return the bytes of a slot that holds arrays of so many steps, and some extras."""
    return BARE_BYTES + most * arrays.nbytes + _SMALLEST


def _free_slot(slots: list[Slot]) -> Slot:
    for slot in slots:
        if slot.free:
            return slot
    raise Refused("ring_busy", "the device is far behind: every staging slot is under way")
