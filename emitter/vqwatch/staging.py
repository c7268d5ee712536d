"""Copies CUDA tensors to the host without waiting. Imports torch.

A slot holds one step, or a few that are copied together: the numbers as float32, then the arrays. All is copied on the
trainer's stream, narrowed on the way, because the next in-place update would race with a later read; an event tells
when it has arrived, and a slot is used again only after that, and after libzmq let go of it.

Small slots are pinned host memory that the device writes to directly: no second copy and no second stream, which cost
host time. Large ones, for codebooks and reconstructions, are staged in device memory first, and a side stream takes
them to pinned memory, so that the training does not wait for the bus. Slots are allocated at first use, grow to a
power of two when a step does not fit, and never shrink.

In a steady state a copy makes no tensor, not even a view: memory for its object would have to be allocated, and the
first allocation of a call that malloc cannot serve from its cache costs as much as several copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch

from . import schedule
from .arrays import Refused
from .capture import Item, Key, aligned
from .link import Loan
from .wire import HEAD_BYTES, Frame, Tensor

MOST_SCALARS: Final = 512
SMALL_SLOTS: Final = 12
LARGE_SLOTS: Final = 3
LAID_OUT: Final = 3
"""Small slots that are laid out when a kind of step is met first; the others when they are needed."""

SPARE_BYTES: Final = 8192
"""What each slot has room for behind its arrays: the index of the message that they are sent in."""

MOST_ALIKE: Final = schedule.MOST_TOGETHER + 1
"""Steps copied together, at most as a rule: one that is busy with other things leaves the copying to the next."""

_START: Final = 4 * MOST_SCALARS + 256  # of the arrays, behind the numbers and the head of a message
_SMALLEST: Final = 64 * 1024
BARE_BYTES: Final = _START + SPARE_BYTES
"""What a slot takes without any array."""

_MOST_LAYOUTS: Final = 32
_TORCH_DTYPES: Final = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip

_NOTHING: Final = contextlib.nullcontext()
_make_event: Callable[[], Any] = torch.cuda.Event
_make_stream: Callable[..., Any] = torch.cuda.Stream
_foreach_copy: Callable[..., Any] = torch._foreach_copy_
# torch.no_grad() without its Python.
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
# Event.record without its Python; a build without CUDA lacks it.
_record: Callable[..., Any] = getattr(torch._C._CudaEventBase, "record", torch.cuda.Event.record)


class Arrays(Protocol):
    """The arrays of one step, as many others have them too; known by identity."""

    @property
    def items(self) -> Sequence[Item]:
        """Return what they are."""

    @property
    def nbytes(self) -> int:
        """Return the bytes that they take in a slot."""


class Extra(NamedTuple):
    """Arrays that few steps have, to lie behind those that all have; ``plan`` tells apart what lies otherwise."""

    owner: int
    items: Sequence[Item]
    sources: Sequence[torch.Tensor]
    plan: Any


class _Layout:
    """Where arrays of some steps lie in one slot: views to copy into, and host memory to send.

    What is to be turned, such as codes with the layers in their last axis, is copied as it is to memory ``between``,
    then turned, all of it at once: ``turned`` is what is copied to, and from. ``groups`` has, for each pair of dtypes,
    the views and the indices of their sources: few launches cost less than fast ones.
    """

    __slots__ = ("data", "device", "end", "extras", "groups", "host", "places", "spare", "tensors", "turned")

    def __init__(
        self,
        slot: Slot,
        at: int,
        parts: Sequence[Sequence[Item]],
        sources: Sequence[torch.Tensor],
        between: Callable[[int], torch.Tensor | None],
    ) -> None:
        views: list[torch.Tensor] = []
        turned: list[tuple[int, int, Item]] = []  # the index of a view, where it lies, and what it is
        self.tensors: list[dict[Key, Tensor]] = []
        self.places: dict[int, tuple[int, int]] = {}
        for items in parts:
            tensors: dict[Key, Tensor] = {}
            for item in items:
                view = slot.device[at : at + item.nbytes].view(_TORCH_DTYPES[item.dtype]).view(item.shape)
                if item.rows:
                    views.extend(view.unbind(0))
                elif item.turned:
                    turned.append((len(views), at, item))
                    views.append(view.movedim(0, -1))
                else:
                    views.append(view)
                data = slot.memory[at : at + item.nbytes]
                tensors[item.key] = Tensor(item.dtype, item.shape, data)
                self.places[id(data)] = at - _START, item.nbytes
                at += aligned(item.nbytes)
            self.tensors.append(tensors)
        self.turned = _turned(slot, turned, views, between)
        groups: _Groups = {}
        for index, (view, source) in enumerate(zip(views, sources, strict=True)):
            into, of = groups.setdefault((source.dtype, view.dtype), ([], []))
            into.append(view)
            of.append(index)
        self._until(slot, at, groups)

    def _until(self, slot: Slot, end: int, groups: _Groups) -> None:
        self.groups = groups
        self.extras: dict[Any, _Layout] = {}
        self.end = end
        self.device = slot.device[:end]
        self.host = slot.host[:end]
        self.spare = min(SPARE_BYTES, slot.capacity - end)
        self.data = slot.memory[_START - HEAD_BYTES : end + self.spare]

    def first(self, count: int, slot: Slot) -> _Layout:
        """Return how the first parts lie, where all of them are alike."""
        found = _Layout.__new__(_Layout)
        parts = len(self.tensors)
        found.tensors = self.tensors[:count]
        found.places = self.places
        found.turned = None
        if self.turned is not None:
            found.turned = self.turned[0][:count], self.turned[1][:count]
        groups = {}
        for dtypes, (into, of) in self.groups.items():
            many = len(into) // parts * count
            groups[dtypes] = into[:many], of[:many]
        found._until(slot, _START + (self.end - _START) // parts * count, groups)
        return found


_Groups = dict[tuple[torch.dtype, torch.dtype], tuple[list[torch.Tensor], list[int]]]


def _turned(
    slot: Slot,
    turned: Sequence[tuple[int, int, Item]],
    views: list[torch.Tensor],
    between: Callable[[int], torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Let several arrays that are alike be turned at once, by way of memory between.

    Changes their ``views`` to such of that memory, and returns where to copy it to, and it, turned. None where they are
    not alike or there is no memory: each is then turned as it is copied, which takes a launch each.
    """
    if len(turned) < 2:
        return None
    _, first, item = turned[0]
    apart = turned[1][1] - first
    if any(at != first + index * apart or of != item for index, (_, at, of) in enumerate(turned)):
        return None
    memory = between(len(turned) * item.nbytes)
    if memory is None:
        return None
    dtype = _TORCH_DTYPES[item.dtype]
    straight = memory[: len(turned) * item.nbytes].view(dtype).view(len(turned), *item.shape[1:], item.shape[0])
    for (index, _, _), view in zip(turned, straight.unbind(0), strict=True):
        views[index] = view
    size = (len(turned) - 1) * apart + item.nbytes
    rows = slot.device[first : first + size].view(dtype)
    strides = torch.empty(item.shape, device="meta").stride()
    return rows.as_strided((len(turned), *item.shape), (apart // rows.itemsize, *strides)), straight.movedim(-1, 1)


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
        self._loans: list[Loan] = []
        self._layouts: dict[Any, _Layout] = {}
        self._layout: _Layout  # of what was copied last,
        self._extras: list[tuple[int, _Layout]] = []  # what lies behind it,
        self._last: _Layout  # and the last of all

    @property
    def free(self) -> bool:
        """Return whether nothing under way refers to this slot's memory."""
        if self.users:
            return False
        if self._loans:
            self._loans = [loan for loan in self._loans if loan() is not None]
        return not self._loans

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
        self, numbers: Sequence[torch.Tensor], items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any
    ) -> None:
        """Enqueue copies of one step; nothing is waited for. ``plan`` tells apart what is laid out otherwise.

        ``numbers`` go to the slot's first places, ``sources`` are those of its items.
        """
        layout = self._layouts.get(plan)
        if layout is None:
            layout = self.lay_out_one(items, sources, plan)
        self._enqueue(layout, numbers, sources, ())

    def lay_out_one(self, items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any) -> _Layout:
        """Work out where the arrays of one step lie."""
        return self._learn(plan, _Layout(self, _START, [items], sources, self._staging.between))

    def copy_alike(
        self,
        numbers: Sequence[torch.Tensor],
        arrays: Arrays | None,
        count: int,
        sources: Sequence[torch.Tensor],
        extras: Sequence[Extra],
    ) -> None:
        """Enqueue copies of several steps, ``count`` of which have arrays, one like the other: a part for each."""
        layout = self._layouts.get((arrays, count)) or self.lay_out(arrays, count, sources)
        self._enqueue(layout, numbers, sources, extras)

    def lay_out(self, arrays: Arrays | None, count: int, sources: Sequence[torch.Tensor]) -> _Layout:
        """Work out where arrays of this kind lie: for as many as there is room for, so that few look like most."""
        if arrays is None or count == 0:
            return self._learn((arrays, count), _Layout(self, _START, (), (), self._staging.between))
        run = self._layouts.get(arrays)
        if run is None:
            most = max(count, min(MOST_ALIKE, (self.capacity - BARE_BYTES) // arrays.nbytes))
            one = sources[: len(sources) // count]
            run = _Layout(self, _START, [arrays.items] * most, [*one] * most, self._staging.between)
            self._learn(arrays, run)
        if count > len(run.tensors):
            run = _Layout(self, _START, [arrays.items] * count, sources, self._staging.between)
        return self._learn((arrays, count), run.first(count, self))

    def _learn(self, plan: Any, layout: _Layout) -> _Layout:
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[plan] = layout
        return layout

    def _enqueue(
        self,
        layout: _Layout,
        numbers: Sequence[torch.Tensor],
        sources: Sequence[torch.Tensor],
        extras: Sequence[Extra],
    ) -> None:
        self._layout = self._last = layout
        self._extras = []
        copies: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        if numbers:
            _add_numbers(copies, self.scalar_views, numbers)
        for dtypes, (into, of) in layout.groups.items():
            _add(copies, dtypes, into, [sources[index] for index in of])
        for extra in extras:
            self._last = self._behind(layout, self._last.end, extra)
            self._extras.append((extra.owner, self._last))
            for dtypes, (into, of) in self._last.groups.items():
                _add(copies, dtypes, into, [extra.sources[index] for index in of])
        enabled = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            for into, found in copies.values():
                if len(into) == 1:
                    into[0].copy_(found[0], non_blocking=True)
                else:
                    _foreach_copy(into, found, non_blocking=True)
            if layout.turned is not None:
                layout.turned[0].copy_(layout.turned[1], non_blocking=True)
        finally:
            _set_grad_enabled(enabled)
        _record(self._arrived if self.mapped else self._filled, self._staging.current_stream())
        self._on_its_way = self.mapped

    def _behind(self, layout: _Layout, at: int, extra: Extra) -> _Layout:
        """Return how an extra lies behind what is laid out."""
        found = layout.extras.get((extra.plan, at))
        if found is None:
            if len(layout.extras) >= _MOST_LAYOUTS:
                layout.extras.clear()
            found = _Layout(self, at, [extra.items], extra.sources, self._staging.between)
            layout.extras[extra.plan, at] = found
        return found

    def _fetch(self) -> None:
        """Begin the copy from the device to the host."""
        side = self._staging.side
        with torch.no_grad(), torch.cuda.stream(side):
            self._filled.wait(side)
            self._last.host.copy_(self._last.device, non_blocking=True)
            self._arrived.record(side)
        self._on_its_way = True

    @property
    def data(self) -> memoryview:
        """Return host memory: the head of a message, the arrays of all parts, once arrived, and :attr:`spare` bytes."""
        return self._last.data

    @property
    def spare(self) -> int:
        """Return how many bytes at the end of :attr:`data` hold nothing: these and the head may be written to."""
        return self._last.spare

    def place(self, data: Frame) -> tuple[int, int]:
        """Return where in :attr:`data` an array of :meth:`tensors` lies: its offset behind the head, and its size."""
        name = id(data)
        found = self._layout.places.get(name)
        for _, extra in self._extras:
            found = found or extra.places.get(name)
        assert found is not None
        return found

    def knows(self, plan: Any) -> bool:
        """Return whether what this plan stands for was laid out here."""
        return plan in self._layouts

    def forget(self) -> None:
        """Forget how anything was laid out here."""
        self._layouts.clear()

    def tensors(self, part: int) -> dict[Key, Tensor]:
        """Return the arrays of one part in host memory, once arrived."""
        return self._layout.tensors[part]

    def extras(self) -> Iterator[tuple[int, dict[Key, Tensor]]]:
        """Yield the extras, each with its owner, once arrived."""
        return ((owner, extra.tensors[0]) for owner, extra in self._extras)

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

    def release(self, loans: list[Loan]) -> None:
        """Let go of the slot for one of its steps: it is used again when all have, and libzmq is done with these."""
        self._loans += loans
        self.users -= 1


_Copies = dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]]
"""For each pair of dtypes what to copy into, and from."""


def _add(copies: _Copies, dtypes: Any, into: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    if dtypes in copies:
        before = copies[dtypes]
        into, sources = before[0] + into, before[1] + sources
    copies[dtypes] = into, sources


def _add_numbers(copies: _Copies, views: list[torch.Tensor], numbers: Sequence[torch.Tensor]) -> None:
    dtypes = [number.dtype for number in numbers]
    if dtypes.count(dtypes[0]) == len(dtypes):
        copies[dtypes[0], torch.float32] = views[: len(numbers)], [*numbers]
        return
    for dtype, view, number in zip(dtypes, views, numbers, strict=False):
        _add(copies, (dtype, torch.float32), [view], [number])


class _Mapped:
    """Shows pinned host memory, which has the same address on the device, as device memory."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (host.numel(),), "typestr": "|u1", "data": (host.data_ptr(), False), "strides": None, "version": 3,
        }  # fmt: skip


class Staging:
    """The slots of one device: many small, few large, at most ``most_bytes`` on the device and as many pinned.

    ``small_bytes`` is what the largest small one holds.
    """

    def __init__(self, device: torch.device, most_bytes: int) -> None:
        self.device_bytes = self.pinned_bytes = self.small_bytes = 0
        self._device = device
        self._most_bytes = most_bytes
        with torch.cuda.device(device):
            self.side = _make_stream(device)
            self._current: torch.cuda.Stream = torch.cuda.current_stream(device)
            mapped = _can_map(device)
            self._small = [Slot(self, mapped) for _ in range(SMALL_SLOTS)]
            self._large = [Slot(self, False) for _ in range(LARGE_SLOTS)]
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
            if large and not slot.knows(plan):  # they come seldom: let it take long once, not with each slot
                for other in slots:
                    if other.capacity >= end and other.free:
                        other.lay_out_one(items, sources, plan)
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

    def expect(self, arrays: Arrays, most: int, sources: Sequence[torch.Tensor]) -> None:
        """Let the small slots that are free hold arrays of so many steps like this one, if there is memory for it.

        Those that are used first are laid out at once, which takes as long as several steps.
        """
        size = BARE_BYTES + most * arrays.nbytes + _SMALLEST
        self._grow_others(self._small, 1 << (size - 1).bit_length())
        if any(item.turned for item in arrays.items):
            self.between(most * arrays.nbytes)
        for slot in self._small[:LAID_OUT]:
            if slot.free and slot.capacity >= size:
                for count in range(1, most + 1):
                    slot.lay_out(arrays, count, [*sources] * count)

    def between(self, size: int) -> torch.Tensor | None:
        """Return device memory of this many bytes for what is copied twice, or None where there is none left.

        All of one stream use it, one after the other; see :meth:`another_stream`.
        """
        memory = self._between
        if memory is None or memory.numel() < size:
            more = size - (0 if memory is None else memory.numel())
            if self.device_bytes + more > self._most_bytes:
                return None
            self._forget_between()
            with torch.inference_mode(False):
                try:
                    self._between = torch.empty(size, dtype=torch.uint8, device=self._device)
                except RuntimeError:  # no memory left on the device
                    return None
            self.device_bytes += size
        return self._between

    def another_stream(self) -> None:
        """Share no memory between what was copied on one stream and what will be on another."""
        self._forget_between()

    def _forget_between(self) -> None:
        if self._between is not None:
            self.device_bytes -= self._between.numel()
            self._between = None
            for slot in self._small:
                slot.forget()

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
        self.small_bytes = max([small.capacity for small in self._small])
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
