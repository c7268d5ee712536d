"""Takes arrays as they are now, so that they can be sent when they have arrived on the host.

Host arrays are there already: they are sent at once, or copied where that has to wait. CUDA tensors go through
:mod:`vqwatch.staging`, which is imported when the first of them is given.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import schedule
from .arrays import Host, Refused, gather
from .complaints import Complaints
from .dealer import ZERO_COPY_BYTES
from .wire import ITEM_BYTES, Tensor

if TYPE_CHECKING:
    import torch

    from .entry import Entry
    from .staging import Staging

Key = tuple[str, ...]

_ALIGNMENT: Final = 256


@dataclass(frozen=True, slots=True)
class Item:
    """An array to take: from ``count`` sources, one of its shape or, where ``rows``, one for each row.

    ``kind`` is the schedule's; ``on_host`` tells where the sources are, ``turned`` that its first axis is their last.
    """

    key: Key
    kind: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    rows: bool
    on_host: bool
    nbytes: int
    turned: bool = False


def item_of(key: Key, kind: str, sources: Sequence[Host | torch.Tensor], shape: tuple[int, ...], dtype: str) -> Item:
    """Return the item that these sources make. Raises :class:`Refused` where only some are on the host."""
    hosts = sum(isinstance(source, Host) for source in sources)
    if hosts not in (0, len(sources)):
        raise Refused("device", f"{'/'.join(key)} is partly on the host and partly on a device")
    rows = len(sources) != 1 or tuple(sources[0].shape) != shape
    return Item(key, kind, shape, dtype, len(sources), rows, hosts > 0, math.prod(shape) * ITEM_BYTES[dtype])


def aligned(size: int) -> int:
    """Return the bytes that an array of this size takes in a slot."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def of_host(item: Item, sources: Sequence[Any], later: bool) -> Tensor:
    """Return a host item's data: a copy where it will be sent later or without a copy, else the memory itself."""
    return gather(sources, item.shape, item.dtype, owned=later or item.nbytes >= ZERO_COPY_BYTES)


class Capture:
    """The staging of one process, made when the first CUDA tensor is given."""

    def __init__(self, staging_bytes: int) -> None:
        self._staging_bytes = staging_bytes
        self._staging: Staging | None = None

    @property
    def staging(self) -> Staging | None:
        """Return the staging, None before any CUDA tensor was given."""
        return self._staging

    @property
    def staged_bytes(self) -> int:
        """Return the device memory taken for staging; at least as much is pinned on the host."""
        return self._staging.device_bytes if self._staging is not None else 0

    @property
    def pinned_bytes(self) -> int:
        """Return the pinned host memory taken for staging."""
        return self._staging.pinned_bytes if self._staging is not None else 0

    def blocked(self) -> bool:
        """Return whether a CUDA graph is being captured on the current stream, in which nothing may be done."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return False
        return bool(torch.cuda.is_current_stream_capturing())

    def stage(self, entry: Entry, complaints: Complaints, later: bool) -> None:
        """Begin the copies of what is on a device, and take what is on the host. What cannot be had is counted.

        ``later`` says that other steps will be sent before this one.
        """
        if entry.plan is not None:  # arrays on a device, and nothing else
            self._enqueue(entry, entry.items, entry.sources, complaints)
            return
        waiting: list[tuple[Item, list[Any]]] = []
        staged: list[tuple[Item, list[Any]]] = []
        at = 0
        for item in entry.items:
            (waiting if item.on_host else staged).append((item, entry.sources[at : at + item.count]))
            at += item.count
        if staged or entry.scalars.tensors:
            for chosen in (staged, [pair for pair in staged if pair[0].kind not in schedule.LARGE]):
                items = [item for item, _ in chosen]
                sources = [source for _, several in chosen for source in several]
                if self._enqueue(entry, items, sources, complaints) or len(chosen) == len(items) == 0:
                    break
        for item, sources in waiting:
            started = time.monotonic()
            entry.tensors[item.key] = of_host(item, sources, later or entry.slot is not None)
            entry.costs[item.kind] = entry.costs.get(item.kind, 0.0) + time.monotonic() - started

    def _enqueue(self, entry: Entry, items: list[Item], sources: list[Any], complaints: Complaints) -> bool:
        """Begin the copies; return whether they are under way. What is not is counted."""
        started = time.monotonic()
        numbers = entry.scalars.tensors
        plan = entry.plan or (
            *[tensor.dtype for tensor in numbers],
            *[(item.key, item.shape, item.dtype, item.rows) for item in items],
            *[source.dtype for source in sources],
        )
        try:
            if self._staging is None:
                from .staging import Staging

                self._staging = Staging((numbers[0] if numbers else sources[0]).device, self._staging_bytes)
            entry.slot = self._staging.take(numbers, items, sources, plan)
        except Exception as error:  # what is on the host goes on without them
            large = {item.kind for item in items if item.kind in schedule.LARGE}
            for kind in large or {item.kind for item in items} | {schedule.SCALARS}:
                if isinstance(error, Refused):
                    complaints.refused(kind, error)
                else:
                    complaints.failed(kind, error)
            return not large
        seconds = time.monotonic() - started
        costly = {item.kind for item in items}
        for kind in costly:
            entry.costs[kind] = entry.costs.get(kind, 0.0) + seconds / (1 + len(costly))
        return True
