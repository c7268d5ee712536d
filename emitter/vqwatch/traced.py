"""The way of codes out of a region that torch.compile has compiled: an operator that calls back at run time.

A hook inside such a region is traced once, so it cannot ask anything that changes from step to step without causing
recompilation, and cannot do what the tracer does not know without breaking the graph. The operator is one opaque node
of the graph instead: it says that it changes ``token``, so the compiler keeps it, and that it cannot be part of a
CUDA graph, so the compiler runs it between two of them. Only the norms of the vectors go through it; they are fused
into the kernels that compute the vectors, which are therefore not written out for our sake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

Receiver: TypeAlias = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""Called with indices, and the norms of vectors before and after the layer where it has them."""

_SCHEMA = "assigned(Tensor(a!) token, Tensor indices, Tensor? before, Tensor? after, int key) -> ()"
_receivers: WeakValueDictionary[int, Door] = WeakValueDictionary()
_library: Any = torch.library.Library("vqwatch", "DEF")  # type: ignore[no-untyped-call]


class Door:
    """Where one hook's codes leave compiled regions; ``receiver`` gets them."""

    def __init__(self, key: int, receiver: Receiver, device: torch.device) -> None:
        self.key = key
        self.receiver = receiver
        self.token = torch.zeros((), device=device)
        _receivers[key] = self

    def leave(self, indices: Tensor, before: Tensor | None, after: Tensor | None) -> None:
        """Put the operator into the graph that is being traced."""
        torch.ops.vqwatch.assigned(self.token, indices, before, after, self.key)


def _assigned(_token: Tensor, indices: Tensor, before: Tensor | None, after: Tensor | None, key: int) -> None:
    door = _receivers.get(key)
    if door is not None:
        door.receiver(indices, before, after)


def _no_shapes(*_arguments: object) -> None:
    """Tell the tracer that the operator returns nothing."""


def _define() -> None:
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)  # torch 2.9 and later cut the CUDA graph there
    _library.define(_SCHEMA, tags=(tag,) if tag is not None else ())
    _library.impl("assigned", _assigned, "CompositeExplicitAutograd")
    torch.library.register_fake("vqwatch::assigned", _no_shapes, lib=_library)


_define()
