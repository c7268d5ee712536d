"""Reads the ``codes`` that a training script or a hook gives: which axis is the layers, what travels together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .arrays import (
    Host,
    Refused,
    checked_name,
    is_integer,
    moved_last_axis_first,
    narrow,
    take,
    whole_shape,
    wire_dtype,
)
from .wire import MAX_DIMENSIONS, MAX_LAYERS

if TYPE_CHECKING:
    import torch


Attempt: TypeAlias = Callable[..., Any]
"""Calls what it is given with what follows; may return None where that raises, so that the other layers go on."""


def plainly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, and let it raise."""
    return call(*arguments)


@dataclass(frozen=True, slots=True)
class Part:
    """Codes of some layers that have one shape: ``sources`` is one array ``[layers, ...]`` or one array per layer."""

    layers: tuple[str, ...]
    sources: list[Host | torch.Tensor]
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        """Raise :class:`Refused` where no message can hold it."""
        if len(self.layers) > MAX_LAYERS or len(self.shape) > MAX_DIMENSIONS:
            raise Refused("limit", f"codes of {len(self.layers)} layers in {len(self.shape)} dimensions are too many")


def read(codes: Any, known: Sequence[str], codebook_size: int, attempt: Attempt = plainly) -> list[Part]:
    """Return codes as parts to send.

    A mapping names its layers; a list or tuple has one array per layer. Each of them is an ``attempt`` of its own: a
    layer that cannot be used is missing, and the others keep their names. In a single array the *last* axis is the
    layers (``[B, T, L]`` or ``[B, L]``), unless only the first one has as many entries as the model has layers
    (``[L, B, T]``). A model with one layer may leave the axis out. Raises :class:`Refused` for what is not codes.
    """
    if isinstance(codes, Mapping):
        return by_shape(list(codes.items()), codebook_size, attempt)
    if isinstance(codes, (list, tuple)):
        names = known if len(known) == len(codes) else [str(index) for index in range(len(codes))]
        return by_shape(list(zip(names, codes, strict=True)), codebook_size, attempt)
    value = take(codes, "codes")
    dtype = _checked(value, codebook_size)
    shape = tuple(value.shape)
    if not shape:
        raise Refused("shape", "codes is a single number, expected [B, T, L] or [B, L]")
    whole = whole_shape(codes, value)
    if len(known) == 1 and (len(whole) < 2 or (whole[-1] != 1 and whole[0] != 1)):
        return [Part((known[0],), [value], (1, *shape), dtype)]
    if len(shape) == 1:
        return [Part((known[0] if known else "0",), [value], (1, *shape), dtype)]
    layers_first = bool(known) and whole[-1] != len(known) and whole[0] == len(known)
    axis = 0 if layers_first else -1
    if shape[axis] != whole[axis]:
        raise Refused("sharded", f"of the {whole[axis]} layers of the codes this rank has {shape[axis]}")
    if layers_first:
        return [Part(tuple(known), [value], shape, dtype)]
    if known and shape[-1] > len(known):
        raise Refused("shape", f"codes is {list(shape)}, expected {len(known)} layers in the last axis")
    names = known[: shape[-1]] if known else [str(index) for index in range(shape[-1])]
    return [Part(tuple(names), [moved_last_axis_first(value)], (shape[-1], *shape[:-1]), dtype)]


def by_shape(named: Sequence[tuple[Any, Any]], codebook_size: int, attempt: Attempt = plainly) -> list[Part]:
    """Return one part for each shape (and dtype, and device) among the layers, in the order given."""
    groups: dict[Any, dict[str, Host | torch.Tensor]] = {}
    seen: set[str] = set()
    for name, value in named:
        found = attempt(_layer, name, value, codebook_size, seen)
        if found is not None:
            layer, taken, dtype = found
            groups.setdefault((tuple(taken.shape), dtype, isinstance(taken, Host)), {})[layer] = taken
            seen.add(layer)
    parts = [
        attempt(Part, tuple(group), list(group.values()), (len(group), *shape), dtype)
        for (shape, dtype, _), group in groups.items()
    ]
    return [part for part in parts if part is not None]


def _layer(name: Any, value: Any, codebook_size: int, seen: set[str]) -> tuple[str, Host | torch.Tensor, str]:
    """Return one layer's name, codes and dtype to send them in."""
    layer = checked_name(name)
    if layer in seen:
        raise Refused("name", f"two layers of the codes are called {layer!r}")
    taken = take(value, f"codes of layer {layer}")
    dtype = _checked(taken, codebook_size)
    if not taken.shape:  # a layer that was called with a single vector
        taken = Host(taken.array.reshape(1), taken.dtype) if isinstance(taken, Host) else taken.reshape(1)
    return layer, taken, dtype


def _checked(value: Host | torch.Tensor, codebook_size: int) -> str:
    dtype = wire_dtype(value)
    if not is_integer(dtype):
        raise Refused("dtype", f"codes are {dtype}, expected integers")
    return narrow(dtype, codebook_size)
