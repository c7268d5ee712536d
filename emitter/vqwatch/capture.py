"""Takes arrays as they are now, so that they can be sent when they have arrived on the host. The torch file.

Host arrays are copied at once. CUDA tensors are copied into a staging slot on the current stream, because the next
in-place update would race with a later read, and from there to pinned memory on a side stream; two events tell when the
staging is filled and when the host has it. Nothing here waits for either, and after the first steps nothing is
allocated. Torch is imported only where a CUDA tensor has been given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .arrays import Host, Refused, gather
from .link import ZERO_COPY_BYTES
from .wire import ITEM_BYTES, Tensor

if TYPE_CHECKING:
    import torch

    from .staging import Slot

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


Builder = Callable[[dict[Key, Tensor], int], Any]
"""Makes a message from the arrays taken and the message's number."""
