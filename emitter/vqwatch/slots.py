"""The memory that steps are copied to on their way to the host, and the events that tell how far. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from . import schedule
from .capture import Item, Key
from .dealer import Loan
from .layout import BARE_BYTES, MOST_NUMBERS, MOST_SCALARS, START, Extra, Layout
from .wire import Frame, Tensor

if TYPE_CHECKING:
    from .routine import Arrays
    from .staging import Staging

MOST_ALIKE: Final = schedule.MOST_TOGETHER + 1
"""Steps copied together, at most as a rule: one that is busy with other things leaves the copying to the next."""

_Copies = dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]]
"""For each pair of dtypes what to copy into, and from."""

_MOST_LAYOUTS: Final = 32
_MOST_VIEWS: Final = 256
_make_event: Callable[[], Any] = torch.cuda.Event
_foreach_copy: Callable[..., Any] = torch._foreach_copy_
# torch.no_grad() without its Python.
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
# Event.record without its Python; a build without CUDA lacks it.
_record: Callable[..., Any] = getattr(torch._C._CudaEventBase, "record", torch.cuda.Event.record)


class Slot:
    """Memory for the steps copied together, and the events that tell where it is on its way.

    ``users`` counts the steps in it that are not sent yet. ``mapped`` says that the device writes to the host's memory,
    so that none of its own is taken.
    """

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self.mapped = True
        self.capacity = 0
        self.users = 0
        self._on_its_way = True
        self._filled = _make_event()
        self._arrived = _make_event()
        self._loans: list[Loan] = []
        self._layouts: dict[Any, Layout] = {}
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._layout: Layout  # of what was copied last,
        self._extras: list[tuple[int, Layout]] = []  # what lies behind it,
        self._last: Layout  # and the last of all

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
        mapped = self._staging.maps(capacity)
        with torch.inference_mode(False):
            host = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
            if mapped:
                self.device = torch.as_tensor(_Mapped(host), device=device)
            else:
                self.device = torch.empty(capacity, dtype=torch.uint8, device=device)
            self.host, self.mapped = host, mapped
            self.scalar_views = list(self.device[: 4 * MOST_SCALARS].view(torch.float32).unbind(0))
            self._vectors = self.device[: 4 * MOST_NUMBERS].view(torch.float32)
            self._numbers = self.host[: 4 * MOST_NUMBERS].view(torch.float32).numpy().data
        self.memory = self.host.numpy().data
        self.capacity = capacity
        self._layouts.clear()
        self._views.clear()

    def copy(
        self, numbers: Sequence[torch.Tensor], items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any
    ) -> None:
        """Enqueue copies of one step; nothing is waited for. ``plan`` tells apart what is laid out otherwise.

        ``numbers`` go to the slot's first places, ``sources`` are those of its items.
        """
        layout = self._layouts.get(plan)
        if layout is None:
            dtypes = [source.dtype for source in sources]
            layout = self._learn(plan, Layout(self, START, [items], dtypes, self._staging.between))
        copies = self._begin(layout, ())
        _add_numbers(copies, self.scalar_views, numbers)
        self._finish(copies, sources)

    def copy_extras(
        self,
        arrays: Arrays | None,
        count: int,
        extras: Sequence[Extra],
        numbers: Sequence[torch.Tensor],
        at: int,
    ) -> None:
        """Begin with several steps: enqueue copies of what few of them have, if there is any.

        Such numbers, one or several in a tensor, go to the places from ``at`` on. ``count`` of the steps have arrays,
        one like the other: a part for each. To follow are :meth:`copy_numbers` and :meth:`copy_arrays`.
        """
        layout = self._layouts.get((arrays, count)) or self.lay_out(arrays, count)
        copies = self._begin(layout, extras)
        seldom: _Copies = {}
        for number in numbers:
            several = number.numel()
            view = self.scalar_views[at] if number.dim() == 0 and at < MOST_SCALARS else self._vector(at, several)
            into, of = seldom.setdefault((number.dtype, torch.float32), ([], []))
            into.append(view)
            of.append(number)
            at += several
        for dtypes, (into, of) in seldom.items():
            _add(copies, dtypes, into, of)
        if copies:
            _run(copies)

    def _vector(self, at: int, count: int) -> torch.Tensor:
        """Return the places of so many numbers."""
        view = self._views.get((at, count))
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = self._views[at, count] = self._vectors[at : at + count]
        return view

    def copy_numbers(self, numbers: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> None:
        """Enqueue copies of the numbers of several steps, of this dtype if all of them have one."""
        copies: _Copies = {}
        _add_numbers(copies, self.scalar_views, numbers, dtype)
        _run(copies)

    def copy_arrays(self, sources: Sequence[torch.Tensor]) -> None:
        """Enqueue copies of the arrays, all that :meth:`copy_extras` was told of, or none; then it is on its way."""
        self._finish({}, sources)

    def lay_out(self, arrays: Arrays | None, count: int) -> Layout:
        """Work out where arrays of this kind lie: for as many as there is room for, so that few look like most."""
        if arrays is None or count == 0:
            return self._learn((arrays, count), Layout(self, START, (), (), self._staging.between))
        run = self._layouts.get(arrays)
        if run is None:
            most = max(count, min(MOST_ALIKE, (self.capacity - BARE_BYTES) // arrays.nbytes))
            run = self._learn(arrays, self._run_of(arrays, most))
        if count > len(run.tensors):
            run = self._run_of(arrays, count)
        return self._learn((arrays, count), run.first(count, self))

    def _run_of(self, arrays: Arrays, count: int) -> Layout:
        return Layout(self, START, [arrays.items] * count, arrays.dtypes * count, self._staging.between)

    def _learn(self, plan: Any, layout: Layout) -> Layout:
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[plan] = layout
        return layout

    def _begin(self, layout: Layout, extras: Sequence[Extra]) -> _Copies:
        """Choose where everything goes; return what to copy of the extras."""
        self._layout = self._last = layout
        self._extras = []
        copies: _Copies = {}
        for extra in extras:
            self._last = self._behind(layout, self._last.end, extra)
            self._extras.append((extra.owner, self._last))
            for dtypes, (into, of) in self._last.groups.items():
                _add(copies, dtypes, into, [extra.sources[index] for index in of])
        return copies

    def _finish(self, copies: _Copies, sources: Sequence[torch.Tensor]) -> None:
        """Enqueue these copies and those of the arrays, if there are any, and the event behind all."""
        layout = self._layout
        if sources:
            for dtypes, (into, of) in layout.groups.items():
                _add(copies, dtypes, into, [sources[index] for index in of])
        _run(copies, layout.turned if sources else None)
        _record(self._arrived if self.mapped else self._filled, self._staging.current_stream())
        self._on_its_way = self.mapped

    def _behind(self, layout: Layout, at: int, extra: Extra) -> Layout:
        """Return how an extra lies behind what is laid out."""
        found = layout.extras.get((extra.plan, at))
        if found is None:
            if len(layout.extras) >= _MOST_LAYOUTS:
                layout.extras.clear()
            dtypes = [source.dtype for source in extra.sources]
            found = Layout(self, at, [extra.items], dtypes, self._staging.between)
            layout.extras[extra.plan, at] = found
        return found

    def fetch(self) -> bool:
        """Begin the copy of what is in device memory to the host; return whether that was left to do.

        It is done in a later call than the one that filled the slot, and takes long.
        """
        if self._on_its_way:
            return False
        side = self._staging.side
        with torch.no_grad(), torch.cuda.stream(side):
            self._filled.wait(side)
            self._last.host.copy_(self._last.device, non_blocking=True)
            self._arrived.record(side)
        self._on_its_way = True
        return True

    @property
    def data(self) -> memoryview:
        """Return host memory: the head of a message, the arrays of all parts, once arrived, and :attr:`spare` bytes."""
        return self._last.data

    @property
    def spare(self) -> int:
        """Return how many bytes at the end of :attr:`data` hold nothing: these and the head may be written to."""
        return self._last.spare

    def place(self, data: Frame) -> tuple[int, int]:
        """Return where in :attr:`data` an array of :meth:`tensors` lies: its offset behind the head, and its size.

        Raises LookupError for one that lies elsewhere.
        """
        name = id(data)
        found = self._layout.places.get(name)
        for _, extra in self._extras:
            found = found or extra.places.get(name)
        if found is None:
            raise LookupError("a buffer that does not lie in this slot")
        return found

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
        """Return whether everything has arrived in host memory. Does not wait. Only once :meth:`fetch` was called."""
        return bool(self._arrived.query())

    def numbers(self, count: int) -> memoryview:
        """Return the first so many of the numbers, floats, once arrived; of use until the slot is released."""
        return self._numbers[:count]

    def release(self, loans: list[Loan]) -> None:
        """Let go of the slot for one of its steps: it is used again when all have, and libzmq is done with these."""
        self._loans += loans
        self.users -= 1


def _run(copies: _Copies, turned: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
    """Enqueue copies, and then one that turns what was copied."""
    enabled = torch.is_grad_enabled()
    _set_grad_enabled(False)
    try:
        for into, found in copies.values():
            if len(into) == 1:
                into[0].copy_(found[0], non_blocking=True)
            else:
                _foreach_copy(into, found, non_blocking=True)
        if turned is not None:
            turned[0].copy_(turned[1], non_blocking=True)
    finally:
        _set_grad_enabled(enabled)


def _add(copies: _Copies, dtypes: Any, into: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    if dtypes in copies:
        before = copies[dtypes]
        into, sources = before[0] + into, before[1] + sources
    copies[dtypes] = into, sources


def _add_numbers(
    copies: _Copies, views: list[torch.Tensor], numbers: Sequence[torch.Tensor], dtype: torch.dtype | None = None
) -> None:
    """Add copies of numbers to the first of these views; ``dtype`` is that of all of them, if it is known."""
    if not numbers:
        return
    dtypes = [number.dtype for number in numbers] if dtype is None else [dtype]
    if dtypes.count(dtypes[0]) == len(dtypes):
        copies[dtypes[0], torch.float32] = views[: len(numbers)], [*numbers]
        return
    for each, view, number in zip(dtypes, views, numbers, strict=False):
        _add(copies, (each, torch.float32), [view], [number])


class _Mapped:
    """Shows pinned host memory, which has the same address on the device, as device memory."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (host.numel(),), "typestr": "|u1", "data": (host.data_ptr(), False), "strides": None, "version": 3,
        }  # fmt: skip


def can_map(device: torch.device) -> bool:
    """Return whether pinned memory can be written to from the device at its own address."""
    try:
        host = torch.empty(64, dtype=torch.uint8, pin_memory=True)
        return torch.as_tensor(_Mapped(host), device=device).data_ptr() == host.data_ptr()
    except (RuntimeError, TypeError, ValueError):
        return False
