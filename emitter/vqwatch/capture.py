"""Takes arrays as they are now, so that they can be sent when they have arrived on the host.

Host arrays are there already: they are sent at once, or copied where that has to wait. CUDA tensors go through
:mod:`vqwatch.staging`, which is imported when the first of them is given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arrays import Host, Refused, gather
from .link import ZERO_COPY_BYTES
from .wire import ITEM_BYTES, Tensor

if TYPE_CHECKING:
    import torch

    from .staging import Slot, Staging

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """An array to take: from ``count`` sources, one of its shape or, where ``rows``, one for each row.

    ``kind`` is the schedule's; ``on_host`` tells where the sources are.
    """

    key: Key
    kind: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    rows: bool
    on_host: bool
    nbytes: int


def item_of(key: Key, kind: str, sources: Sequence[Host | torch.Tensor], shape: tuple[int, ...], dtype: str) -> Item:
    """Return the item that these sources make. Raises :class:`Refused` where only some are on the host."""
    hosts = sum(isinstance(source, Host) for source in sources)
    if hosts not in (0, len(sources)):
        raise Refused("device", f"{'/'.join(key)} is partly on the host and partly on a device")
    rows = len(sources) != 1 or tuple(sources[0].shape) != shape
    return Item(key, kind, shape, dtype, len(sources), rows, hosts > 0, math.prod(shape) * ITEM_BYTES[dtype])


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

    def enqueue(
        self, scalars: Sequence[torch.Tensor], items: Sequence[Item], sources: Sequence[torch.Tensor], plan: Any
    ) -> Slot:
        """Begin to copy device numbers and arrays; the slot tells when they have arrived. Raises :class:`Refused`.

        ``plan`` is something hashable that says which items these are, of which dtypes they come, and how many numbers.
        """
        if self._staging is None:
            from .staging import Staging

            self._staging = Staging((scalars[0] if scalars else sources[0]).device, self._staging_bytes)
        return self._staging.take(scalars, items, sources, plan)
