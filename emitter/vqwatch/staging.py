"""Copies CUDA tensors to the host without waiting: staging slot, pinned memory, two events. Imports torch.

A slot holds one step: its numbers as float32, then its arrays. On the current stream everything is copied into the
slot's device memory, narrowed on the way; a side stream waits for that and copies the slot to pinned memory; the step is
sent when the second event is seen to have happened. A slot is used again only after that, and after libzmq let go of it.
Slots are allocated at first use, grow to a power of two when a step does not fit, and never shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import zmq

from . import schedule
from .arrays import Refused
from .capture import Item, Key
from .wire import Tensor

MOST_SCALARS: Final = 512
SMALL_SLOTS: Final = 16
LARGE_SLOTS: Final = 3

_ALIGNMENT: Final = 256
_SMALLEST: Final = 64 * 1024
_MOST_LAYOUTS: Final = 32
_TORCH_DTYPES: Final = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip


_make_event: Callable[[], Any] = torch.cuda.Event
_make_stream: Callable[..., Any] = torch.cuda.Stream


class _Layout:
    """Where the arrays of one kind of step lie in one slot: device views to copy into, host memory to send."""

    __slots__ = ("device", "groups", "host", "tensors", "views")

    def __init__(self, slot: Slot, items: Sequence[Item], end: int) -> None:
        self.device = slot.device[:end]
        self.host = slot.host[:end]
        self.views: list[torch.Tensor] = []
        self.tensors: dict[Key, Tensor] = {}
        memory = slot.memory
        at = 4 * MOST_SCALARS
        for item in items:
            dtype = _TORCH_DTYPES[item.dtype]
            view = slot.device[at : at + item.nbytes].view(dtype).view(item.shape)
            whole = len(item.sources) == 1 and tuple(item.sources[0].shape) == item.shape
            self.views.extend([view] if whole else view.unbind(0))
            self.tensors[item.key] = Tensor(item.dtype, item.shape, memory[at : at + item.nbytes])
            at += _aligned(item.nbytes)


class Slot:
    """Device and pinned memory for one step, and the events that tell where it is on its way."""

    def __init__(self) -> None:
        self.capacity = 0
        self._filled: torch.cuda.Event = _make_event()
        self._arrived: torch.cuda.Event = _make_event()
        self._in_use = False
        self._trackers: list[zmq.MessageTracker] = []
        self._layouts: dict[Any, _Layout] = {}
        self._scalar_count = 0
        self.tensors: dict[Key, Tensor] = {}

    @property
    def free(self) -> bool:
        """Return whether nothing under way refers to this slot's memory."""
        if self._in_use:
            return False
        if self._trackers:
            self._trackers = [tracker for tracker in self._trackers if not tracker.done]
        return not self._trackers

    def allocate(self, capacity: int, device: torch.device) -> None:
        """Give the slot memory of this many bytes on both sides; what it had is let go."""
        with torch.inference_mode(False):
            self.host = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
            self.device = torch.empty(capacity, dtype=torch.uint8, device=device)
            scalars = self.device[: 4 * MOST_SCALARS].view(torch.float32)
            self._scalar_views = list(scalars.unbind(0))
            self._scalars = self.host[: 4 * MOST_SCALARS].view(torch.float32).numpy()
        self.memory = self.host.numpy().data
        self.capacity = capacity
        self._layouts.clear()

    def fill(self, scalars: Sequence[torch.Tensor], items: Sequence[Item], end: int, side: torch.cuda.Stream) -> None:
        """Enqueue the copies of one step; nothing is waited for."""
        signature = tuple([(item.key, item.shape, item.dtype, len(item.sources)) for item in items])
        layout = self._layouts.get(signature)
        if layout is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[signature] = _Layout(self, items, end)
        sources: list[Any] = list(scalars)
        for item in items:
            sources.extend(item.sources)
        targets = self._scalar_views[: len(scalars)] + layout.views
        with torch.no_grad():
            _copy(targets, sources)
            self._filled.record(torch.cuda.current_stream(self.device.device))
            with torch.cuda.stream(side):
                side.wait_event(self._filled)
                layout.host.copy_(layout.device, non_blocking=True)
                self._arrived.record(side)
        self._in_use = True
        self._scalar_count = len(scalars)
        self.tensors = layout.tensors

    @property
    def arrived(self) -> bool:
        """Return whether the step has arrived in host memory. Does not wait."""
        return bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def scalars(self) -> list[float]:
        """Return the step's numbers, once arrived."""
        values: list[float] = self._scalars[: self._scalar_count].tolist()
        return values

    def release(self, trackers: list[zmq.MessageTracker]) -> None:
        """Let the slot be used again as soon as libzmq is done with these."""
        self._trackers = trackers
        self._in_use = False


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy all, in one call for each pair of dtypes: few launches cost less than fast ones."""
    groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = groups.get((source.dtype, target.dtype))
        if group is None:
            group = groups[source.dtype, target.dtype] = ([], [])
        group[0].append(target)
        group[1].append(source)
    for into, of in groups.values():
        if len(of) == 1:
            into[0].copy_(of[0], non_blocking=True)
        else:
            torch._foreach_copy_(into, of, non_blocking=True)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Staging:
    """The slots of one device: many small ones, few large ones, together at most ``most_bytes`` on each side."""

    def __init__(self, device: torch.device, most_bytes: int) -> None:
        self.device = device
        self.allocated_bytes = 0
        self._most_bytes = most_bytes
        with torch.cuda.device(device):
            self._side = _make_stream(device)
            self._small = [Slot() for _ in range(SMALL_SLOTS)]
            self._large = [Slot() for _ in range(LARGE_SLOTS)]

    def take(self, scalars: Sequence[torch.Tensor], items: Sequence[Item]) -> Slot:
        """Enqueue a step's copies and return its slot. Raises :class:`Refused` where no slot is free or can be had."""
        if len(scalars) > MOST_SCALARS:
            raise Refused("limit", f"{len(scalars)} numbers on the device in one step, at most {MOST_SCALARS}")
        end = 4 * MOST_SCALARS
        large = False
        for item in items:
            end += _aligned(item.nbytes)
            large = large or item.kind in schedule.LARGE
        slot = self._free_slot(self._large if large else self._small)
        if slot.capacity < end:
            self._grow(slot, end)
        slot.fill(scalars, items, end, self._side)
        return slot

    def _free_slot(self, slots: list[Slot]) -> Slot:
        for slot in slots:
            if slot.free:
                return slot
        raise Refused("ring_busy", "the device is far behind: every staging slot is under way")

    def _grow(self, slot: Slot, size: int) -> None:
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length())
        if self.allocated_bytes - slot.capacity + capacity > self._most_bytes:
            capacity = size
        if self.allocated_bytes - slot.capacity + capacity > self._most_bytes:
            raise Refused("staging_bytes", f"{size} bytes do not fit into staging_bytes={self._most_bytes}")
        try:
            old = slot.capacity
            slot.allocate(capacity, self.device)
        except RuntimeError as error:  # no pinned or no device memory left
            raise Refused("memory", f"no staging memory: {error}") from error
        self.allocated_bytes += capacity - old
