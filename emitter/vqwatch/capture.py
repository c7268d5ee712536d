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


@dataclass(slots=True)
class Item:
    """An array to take: one source of its shape, or one source for each row of its first axis."""

    key: Key
    kind: str
    sources: Sequence[Host | torch.Tensor]
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Return how many bytes the array has on the wire."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def on_host(self) -> bool:
        """Return whether all sources are in host memory; raises :class:`Refused` where only some are."""
        count = sum(isinstance(source, Host) for source in self.sources)
        if count not in (0, len(self.sources)):
            raise Refused("device", f"{'/'.join(self.key)} is partly on the host and partly on a device")
        return count > 0


def of_host(item: Item, later: bool) -> Tensor:
    """Return a host item's data: a copy where it will be sent later or without a copy, else the memory itself."""
    sources: Any = item.sources
    return gather(sources, item.shape, item.dtype, owned=later or item.nbytes >= ZERO_COPY_BYTES)


class Capture:
    """The staging of one process, made when the first CUDA tensor is given."""

    def __init__(self, staging_bytes: int) -> None:
        self._staging_bytes = staging_bytes
        self._staging: Staging | None = None

    @property
    def staged_bytes(self) -> int:
        """Return the device memory taken for staging; as much is pinned on the host."""
        return self._staging.allocated_bytes if self._staging is not None else 0

    def blocked(self) -> bool:
        """Return whether a CUDA graph is being captured on the current stream, in which nothing may be done."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return False
        return bool(torch.cuda.is_current_stream_capturing())

    def enqueue(self, scalars: Sequence[torch.Tensor], items: Sequence[Item]) -> Slot:
        """Begin to copy device numbers and arrays; the slot tells when they have arrived. Raises :class:`Refused`."""
        if self._staging is None:
            from .staging import Staging

            first = scalars[0] if scalars else items[0].sources[0]
            assert not isinstance(first, Host)
            self._staging = Staging(first.device, self._staging_bytes)
        return self._staging.take(scalars, items)
