"""Reads the ``codes`` that a training script or a hook gives: which axis is the layers, what travels together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arrays import Host, Refused, checked_name, is_integer, moved_last_axis_first, narrow, take, wire_dtype
from .wire import MAX_DIMENSIONS, MAX_LAYERS

if TYPE_CHECKING:
    import torch


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


def read(codes: Any, known: Sequence[str], codebook_size: int) -> list[Part]:
    """Return codes as parts to send.

    A mapping names its layers; a list or tuple has one array per layer. In a single array the *last* axis is the
    layers (``[B, T, L]`` or ``[B, L]``), unless only the first one has as many entries as the model has layers
    (``[L, B, T]``). A model with one layer may leave the axis out. Raises :class:`Refused` for what is not codes.
    """
    if isinstance(codes, Mapping):
        return by_shape(
            [(checked_name(layer), take(value, f"codes of layer {layer}")) for layer, value in codes.items()],
            codebook_size,
        )
    if isinstance(codes, (list, tuple)):
        names = known if len(known) == len(codes) else [str(index) for index in range(len(codes))]
        return by_shape([(name, take(value, "codes")) for name, value in zip(names, codes, strict=True)], codebook_size)
    value = take(codes, "codes")
    dtype = _checked(value, codebook_size)
    shape = tuple(value.shape)
    if not shape:
        raise Refused("shape", "codes is a single number, expected [B, T, L] or [B, L]")
    if len(known) == 1 and (len(shape) < 2 or (shape[-1] != 1 and shape[0] != 1)):
        return [Part((known[0],), [value], (1, *shape), dtype)]
    if len(shape) == 1:
        return [Part((known[0] if known else "0",), [value], (1, *shape), dtype)]
    if known and shape[-1] != len(known) and shape[0] == len(known):
        return [Part(tuple(known), [value], shape, dtype)]
    if known and shape[-1] > len(known):
        raise Refused("shape", f"codes is {list(shape)}, expected {len(known)} layers in the last axis")
    names = known[: shape[-1]] if known else [str(index) for index in range(shape[-1])]
    return [Part(tuple(names), [moved_last_axis_first(value)], (shape[-1], *shape[:-1]), dtype)]


def by_shape(named: Sequence[tuple[str, Host | torch.Tensor]], codebook_size: int) -> list[Part]:
    """Return one part for each shape (and dtype, and device) among the layers, in the order given."""
    groups: dict[Any, tuple[list[str], list[Host | torch.Tensor]]] = {}
    dtypes: dict[Any, str] = {}
    for layer, value in named:
        dtype = _checked(value, codebook_size)
        if not value.shape:  # a layer that was called with a single vector
            value = Host(value.array.reshape(1), value.dtype) if isinstance(value, Host) else value.reshape(1)
        key = (tuple(value.shape), dtype, isinstance(value, Host))
        names, sources = groups.setdefault(key, ([], []))
        names.append(layer)
        sources.append(value)
        dtypes[key] = dtype
    return [Part(tuple(names), sources, (len(names), *key[0]), dtypes[key]) for key, (names, sources) in groups.items()]


def _checked(value: Host | torch.Tensor, codebook_size: int) -> str:
    dtype = wire_dtype(value)
    if not is_integer(dtype):
        raise Refused("dtype", f"codes are {dtype}, expected integers")
    return narrow(dtype, codebook_size)
