"""Models whose parameters lie in pieces on several ranks: FullyShardedDataParallel, ``fully_shard``, any DTensor.

A guest asks nothing of other ranks, so it cannot put the pieces together. What it can know without asking is how large
the whole is, and that is all it takes to recognise a quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class _Piece(NamedTuple):
    """A parameter of which this rank has a part: where it is kept, and the shape of the whole."""

    store: dict[str, Any]
    name: str
    module: nn.Module
    shape: tuple[int, ...]


@contextmanager
def whole(model: nn.Module) -> Iterator[frozenset[int]]:
    """Show, for a while, tensors without values but in their whole shape, where parameters lie in pieces.

    Yields the ids of the modules that such parameters belong to. Where there are none, nothing is changed; where there
    are some, all tensors of the model lose their values for that while, so that they can be computed with each other.
    """
    pieces = [*_flattened(model), *_distributed(model)]
    with ExitStack() as undo:
        for piece in pieces:
            _replace(undo, piece.store, piece.name, piece.shape)
        if pieces:
            for module in model.modules():
                for store in (module._parameters, module._buffers):
                    for name, value in store.items():
                        if value is not None and value.device.type != "meta":
                            _replace(undo, store, name, tuple(value.shape))
        yield frozenset(id(piece.module) for piece in pieces)


def _replace(undo: ExitStack, store: dict[str, Any], name: str, shape: tuple[int, ...]) -> None:
    import torch

    present = store[name]
    store[name] = torch.empty(shape, dtype=present.dtype, device="meta").requires_grad_(present.requires_grad)
    undo.callback(store.__setitem__, name, present)


def _distributed(model: nn.Module) -> Iterator[_Piece]:
    """Yield the parameters that know themselves that they are pieces: DTensors."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and hasattr(value, "to_local"):
                yield _Piece(module._parameters, name, module, tuple(value.shape))


def _flattened(model: nn.Module) -> Iterator[_Piece]:
    """Yield the parameters that FullyShardedDataParallel keeps in flat ones, of which each rank has a part.

    Between forward and backward passes they are empty, or what this rank has of them, or views of memory that was let
    go, depending on ``use_orig_params`` and the release of torch.
    """
    for flat, apart in _flat_parameters(model):
        if not apart:
            continue
        shapes: dict[tuple[int, str], tuple[int, ...]] = {}
        for (name, module, *_), shape in zip(flat._param_infos, flat._shapes, strict=True):
            shapes[id(module), name] = tuple(shape)
            yield from _piece(module, name, tuple(shape))
        for name, module, _, first_name, first_module, *_ in flat._shared_param_infos:
            yield from _piece(module, name, shapes[id(first_module), first_name])


def _flat_parameters(model: nn.Module) -> Iterator[tuple[Any, bool]]:
    """Yield the flat parameter of each unit of FullyShardedDataParallel, and whether it lies in pieces."""
    for unit in model.modules():
        handle = vars(unit).get("_handle")
        flat = getattr(handle, "flat_param", None)
        if flat is not None:
            yield flat, bool(getattr(handle, "uses_sharded_strategy", True))


def has_flat_gradients(model: nn.Module) -> bool:
    """Return whether gradients may be parts of the whole that look like plain tensors: not DTensors, flat parameters.

    Where a parameter belongs to a unit outside of the model, because the model was wrapped in it later, nothing tells
    whether it lies in pieces, and it is taken to.
    """
    whole: set[int] = set()
    for flat, apart in _flat_parameters(model):
        if apart:
            return True
        whole.update(id(parameter) for parameter in (flat, *(flat._params or ()), *(flat._shared_params or ())))
    return any(id(p) not in whole and getattr(p, "_fsdp_flattened", False) for p in model.parameters())


def has_let_go(module: nn.Module) -> bool:
    """Return whether a parameter in a module is a view of memory that its unit has let go."""
    import torch

    for part in module.modules():
        for value in (*part._parameters.values(), *vars(part).values()):
            there = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
            if there and value.numel() and value.untyped_storage().nbytes() == 0:
                return True
    return False


def _piece(module: nn.Module, name: str, shape: tuple[int, ...]) -> Iterator[_Piece]:
    for store in (module._parameters, vars(module)):
        if store.get(name) is not None:
            yield _Piece(store, name, module, shape)
