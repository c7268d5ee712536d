"""Copies CUDA tensors to the host without waiting. Imports torch.

A slot holds one step, or a few that are copied together: the numbers as float32, then the arrays. All is copied on the
trainer's stream, narrowed on the way, because the next in-place update would race with a later read; an event tells
when it has arrived, and a slot is used again only after that, and after libzmq let go of it.

Small slots are pinned host memory that the device writes to directly: no second copy and no second stream, which cost
host time. Large ones, for codebooks and reconstructions, are staged in device memory first, and a side stream takes
them to pinned memory, so that the training does not wait for the bus. Slots are allocated at first use, grow to a
power of two when a step does not fit, and never shrink.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import zmq

from . import schedule
from .arrays import Refused
from .capture import Item, Key
from .wire import Tensor

MOST_SCALARS: Final = 512
SMALL_SLOTS: Final = 12
LARGE_SLOTS: Final = 3

_ALIGNMENT: Final = 256
_SMALLEST: Final = 64 * 1024
_MOST_LAYOUTS: Final = 32
_TORCH_DTYPES: Final = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip

_NOTHING: Final = contextlib.nullcontext()
_make_event: Callable[[], Any] = torch.cuda.Event
_make_stream: Callable[..., Any] = torch.cuda.Stream
_foreach_copy: Callable[..., Any] = torch._foreach_copy_
# Event.record without its Python; a build without CUDA lacks it.
_record: Callable[..., Any] = getattr(torch._C._CudaEventBase, "record", torch.cuda.Event.record)


class _Layout:
    """Where the numbers and arrays of some steps lie in one slot: views to copy into, and host memory to send."""

    __slots__ = ("data", "device", "groups", "host", "places", "tensors")

    def __init__(
        self,
        slot: Slot,
        numbers: Sequence[torch.Tensor],
        parts: Sequence[Sequence[Item]],
        sources: Sequence[torch.Tensor],
    ) -> None:
        views = slot.scalar_views[: len(numbers)]
        self.tensors: list[dict[Key, Tensor]] = []
        self.places: dict[int, int] = {}
        at = start = 4 * MOST_SCALARS
        for items in parts:
            tensors: dict[Key, Tensor] = {}
            for item in items:
                view = slot.device[at : at + item.nbytes].view(_TORCH_DTYPES[item.dtype]).view(item.shape)
                views.extend(view.unbind(0) if item.rows else [view])
                data = slot.memory[at : at + item.nbytes]
                tensors[item.key] = Tensor(item.dtype, item.shape, data)
                self.places[id(data)] = at - start
                at += aligned(item.nbytes)
            self.tensors.append(tensors)
        self.device = slot.device[:at]
        self.host = slot.host[:at]
        self.data = slot.memory[start:at]
        # One call for each pair of dtypes: few launches cost less than fast ones.
        groups: dict[Any, tuple[list[torch.Tensor], list[int]]] = {}
        for index, (view, source) in enumerate(zip(views, [*numbers, *sources], strict=True)):
            into, of = groups.setdefault((source.dtype, view.dtype), ([], []))
            into.append(view)
            of.append(index)
        self.groups = list(groups.values())


class Slot:
    """Memory for the steps copied together, and the events that tell where it is on its way.

    ``users`` counts the steps in it that are not sent yet. ``mapped`` says that the device writes to the host's memory.
    """

    def __init__(self, staging: Staging, mapped: bool) -> None:
        self._staging = staging
        self.mapped = mapped
        self.capacity = 0
        self.users = 0
        self._on_its_way = True
        self._filled = _make_event()
        self._arrived = _make_event()
        self._trackers: list[zmq.MessageTracker] = []
        self._layouts: dict[Any, _Layout] = {}
        self._layout: _Layout

    @property
    def free(self) -> bool:
        """Return whether nothing under way refers to this slot's memory."""
        if self.users:
            return False
        if self._trackers:
            self._trackers = [tracker for tracker in self._trackers if not tracker.done]
        return not self._trackers

    def allocate(self, capacity: int, device: torch.device) -> None:
        """Give the slot memory of this many bytes, or raise RuntimeError and leave it as it was."""
        with torch.inference_mode(False):
            host = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
            if self.mapped:
                self.device = torch.as_tensor(_Mapped(host), device=device)
            else:
                self.device = torch.empty(capacity, dtype=torch.uint8, device=device)
            self.host = host
            self.scalar_views = list(self.device[: 4 * MOST_SCALARS].view(torch.float32).unbind(0))
            self._numbers = self.host[: 4 * MOST_SCALARS].view(torch.float32).numpy()
        self.memory = self.host.numpy().data
        self.capacity = capacity
        self._layouts.clear()

    def copy(
        self,
        numbers: Sequence[torch.Tensor],
        parts: Sequence[Sequence[Item]],
        sources: Sequence[torch.Tensor],
        plan: Any,
    ) -> None:
        """Enqueue copies, with gradients off; nothing is waited for. ``plan`` tells apart what is laid out otherwise.

        ``numbers`` go to the slot's first places, ``sources`` are those of the items of each part.
        """
        layout = self._layouts.get(plan)
        if layout is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[plan] = _Layout(self, numbers, parts, sources)
        self._layout = layout
        given = [*numbers, *sources]
        for into, of in layout.groups:
            if len(of) == 1:
                into[0].copy_(given[of[0]], non_blocking=True)
            else:
                _foreach_copy(into, [given[index] for index in of], non_blocking=True)
        _record(self._arrived if self.mapped else self._filled, self._staging.current_stream())
        self._on_its_way = self.mapped

    def _fetch(self) -> None:
        """Begin the copy from the device to the host."""
        side = self._staging.side
        with torch.no_grad(), torch.cuda.stream(side):
            self._filled.wait(side)
            self._layout.host.copy_(self._layout.device, non_blocking=True)
            self._arrived.record(side)
        self._on_its_way = True

    @property
    def data(self) -> memoryview:
        """Return the host memory that holds all arrays of all parts, once arrived."""
        return self._layout.data

    def place(self, data: memoryview) -> int:
        """Return where in :attr:`data` an array of :meth:`tensors` lies, as an offset in bytes."""
        return self._layout.places[id(data)]

    def tensors(self, part: int) -> dict[Key, Tensor]:
        """Return the arrays of one part in host memory, once arrived."""
        return self._layout.tensors[part]

    @property
    def arrived(self) -> bool:
        """Return whether everything has arrived in host memory. Does not wait.

        The first look at a large slot begins its copy to the host: in a later call than the one that filled it.
        """
        if not self._on_its_way:
            self._fetch()
        return bool(self._arrived.query())

    def numbers(self, at: int, count: int) -> list[float]:
        """Return some of the numbers, once arrived."""
        values: list[float] = self._numbers[at : at + count].tolist()
        return values

    def release(self, trackers: list[zmq.MessageTracker]) -> None:
        """Let go of the slot for one of its steps: it is used again when all have, and libzmq is done with these."""
        self._trackers += trackers
        self.users -= 1


class _Mapped:
    """Shows pinned host memory, which has the same address on the device, as device memory."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (host.numel(),), "typestr": "|u1", "data": (host.data_ptr(), False), "strides": None, "version": 3,
        }  # fmt: skip


def aligned(size: int) -> int:
    """Return the bytes that an array of this size takes in a slot."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Staging:
    """The slots of one device: many small, few large, at most ``most_bytes`` on the device and as many pinned."""

    def __init__(self, device: torch.device, most_bytes: int) -> None:
        self.device_bytes = self.pinned_bytes = 0
        self._device = device
        self._most_bytes = most_bytes
        with torch.cuda.device(device):
            self.side = _make_stream(device)
            self._current: torch.cuda.Stream = torch.cuda.current_stream(device)
            mapped = _can_map(device)
            self._small = [Slot(self, mapped) for _ in range(SMALL_SLOTS)]
            self._large = [Slot(self, False) for _ in range(LARGE_SLOTS)]

    def take(
        self, scalars: Sequence[torch.Tensor], items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any
    ) -> Slot:
        """Enqueue a step's copies and return its slot. Raises :class:`Refused` where no slot is free or can be had."""
        if len(scalars) > MOST_SCALARS:
            raise Refused("limit", f"{len(scalars)} numbers on the device in one step, at most {MOST_SCALARS}")
        end = 4 * MOST_SCALARS
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
            with torch.no_grad():
                slot.copy(scalars, [items], sources, plan)
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
    def small_bytes(self) -> int:
        """Return what the largest small slot holds."""
        return max(slot.capacity for slot in self._small)

    def reserve(self, size: int) -> None:
        """Let the small slots that are free be this large, if there is memory for it."""
        self._grow_others(self._small, max(_SMALLEST, 1 << (size - 1).bit_length()))

    def is_current(self, stream: torch.cuda.Stream) -> bool:
        """Return whether this is the current stream of the device."""
        return bool(torch._C._cuda_getCurrentRawStream(self._device.index) == stream.cuda_stream)

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
            more = capacity - slot.capacity
            if max(self.pinned_bytes, 0 if slot.mapped else self.device_bytes) + more <= self._most_bytes:
                break
        else:
            raise Refused("staging_bytes", f"{size} bytes do not fit into staging_bytes={self._most_bytes}")
        try:
            slot.allocate(capacity, self._device)
        except RuntimeError as error:  # no pinned or no device memory left
            raise Refused("memory", f"no staging memory: {error}") from error
        self.pinned_bytes += more
        if not slot.mapped:
            self.device_bytes += more


def _free_slot(slots: list[Slot]) -> Slot:
    for slot in slots:
        if slot.free:
            return slot
    raise Refused("ring_busy", "the device is far behind: every staging slot is under way")


def _can_map(device: torch.device) -> bool:
    """Return whether pinned memory can be written to from the device at its own address."""
    try:
        host = torch.empty(64, dtype=torch.uint8, pin_memory=True)
        return torch.as_tensor(_Mapped(host), device=device).data_ptr() == host.data_ptr()
    except (RuntimeError, TypeError, ValueError):
        return False
