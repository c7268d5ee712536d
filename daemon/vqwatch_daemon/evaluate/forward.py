"""One batch through a model, and what of its output is what.

A batch is given to the model as it is: a tuple or list as arguments, a mapping by name, a tensor alone. In it the first
entry (or ``features``, ``original``, ``inputs``, ``x``) is what is to be reconstructed, the second (or ``mask``) the
mask, if it has that shape. What comes back is a tuple (reconstruction, codes, losses …), or a mapping, named tuple or
dataclass with ``reconstruction`` (``reconstructed``, ``recon``), ``codes`` (``indices``) and, if it likes, ``losses``.
Anything else is for ``--forward module:function``: ``function(model, batch)`` returns such a mapping, in which
``original`` and ``mask`` take the place of the batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

ORIGINAL: Final = ("original", "features", "inputs", "input", "x")
RECONSTRUCTED: Final = ("reconstruction", "reconstructed", "recon")
CODES: Final = ("codes", "indices")


class ForwardError(ValueError):
    """What went in or came out cannot be read; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One batch on the host: ``original`` and ``reconstructed`` [B, T, D] or [B, D], ``codes`` [L, ...]."""

    original: NDArray[Any]
    reconstructed: NDArray[Any]
    mask: NDArray[np.bool_] | None = None
    codes: NDArray[np.int64] | None = None
    losses: Mapping[str, float] = field(default_factory=dict)


Forward = Callable[[Any, Any], Any]


def run(model: nn.Module, batch: Any, device: str, adapter: Forward | None = None, layers: int | None = None) -> Sample:
    """Return what a model makes of a batch. ``layers`` is how many it has, where known. Raises ForwardError."""
    import torch

    batch = _moved(batch, device)
    with torch.inference_mode():
        output = _call(model, batch) if adapter is None else adapter(model, batch)
    found = _named(output)
    original = _first(found, ("original",))
    if original is None:
        original = _original(batch)
    mask = _first(found, ("mask",))
    if mask is None:
        mask = _mask(batch)
    reconstructed = _first(found, RECONSTRUCTED)
    if reconstructed is None:
        raise ForwardError(f"no reconstruction in the model's output, which has {sorted(found)}; use --forward")
    codes = _first(found, CODES)
    x, y = _array(original, float), _array(reconstructed, float)
    if x.shape != y.shape or x.ndim not in (2, 3):
        raise ForwardError(f"the reconstruction {y.shape} is not of the shape of the original {x.shape}, [B, T, D]")
    valid = None if mask is None else _array(mask, bool)
    if valid is not None and valid.shape != x.shape[:-1]:
        valid = None
    losses = found.get("losses")
    numbers = {str(name): float(value) for name, value in losses.items()} if isinstance(losses, Mapping) else {}
    assigned = None if codes is None else by_layer(_codes(codes), x.shape[:-1], layers)
    return Sample(x, y, valid, assigned, numbers)


def by_layer(codes: NDArray[np.int64], frames: Sequence[int], layers: int | None) -> NDArray[np.int64]:
    """Return codes with the layer in the first axis: the last axis holds it, unless only the first can.

    ``frames`` is [B, T] or [B]. Codes of that very shape are those of a single layer.

    >>> by_layer(np.zeros((2, 5, 8), np.int64), (2, 5), None).shape, by_layer(np.zeros((8, 2, 5)), (2, 5), 8).shape
    ((8, 2, 5), (8, 2, 5))
    """
    shape, wanted = codes.shape, tuple(frames)
    if shape == wanted and layers in (None, 1):
        return codes[np.newaxis]
    last = len(shape) > 1 and shape[:1] == wanted[:1] and layers in (None, shape[-1])
    if last:
        return np.moveaxis(codes, -1, 0)
    if layers in (None, shape[0]) and (shape[1:] == wanted or shape[1:2] == wanted[:1]):
        return codes
    raise ForwardError(f"codes {shape} for frames {wanted} and {layers or 'unknown'} layers: expected [B, T, L]")


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _named(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if is_dataclass(output) and not isinstance(output, type):
        return {item.name: getattr(output, item.name) for item in fields(output)}
    if isinstance(output, (tuple, list)):
        return dict(zip(("reconstruction", "codes", "losses"), output, strict=False))
    return {"reconstruction": output}


def _first(found: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _original(batch: Any) -> Any:
    original = _first(batch, ORIGINAL) if isinstance(batch, Mapping) else batch
    if isinstance(original, (tuple, list)):
        original = original[0] if original else None
    if original is None:
        raise ForwardError(f"the batch has none of {', '.join(ORIGINAL)}; use --forward")
    return original


def _mask(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return batch.get("mask")
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 and hasattr(batch[1], "shape") else None


def _moved(batch: Any, device: str) -> Any:
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_moved(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def _codes(codes: Any) -> NDArray[np.int64]:
    if isinstance(codes, (tuple, list)):
        return np.stack([_array(layer, int) for layer in codes], axis=-1)
    return _array(codes, int)


def _array(value: Any, kind: type) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if kind is float and value.dtype.itemsize < 4:
            value = value.float()  # numpy has no bfloat16
        value = value.numpy()
    array = np.asarray(value)
    return array if kind is float else array.astype(np.int64) if kind is int else array != 0
