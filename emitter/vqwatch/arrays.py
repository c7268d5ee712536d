"""Whatever a training script hands over, as numpy arrays or as tensors that stay on their device.

numpy arrays and everything with ``__dlpack__`` need no torch: it is used only where the script has loaded it already.
What cannot be used raises :class:`Refused` with a short reason, fit for a counter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .wire import MAX_CODEBOOK_SIZE, MAX_DIMENSIONS, MAX_NAME_LENGTH, Tensor

if TYPE_CHECKING:
    import torch

_WIRE_NAMES: Final = {
    "bool": "bool", "uint8": "u8", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "float16": "f16", "float32": "f32", "float64": "f64",
}  # fmt: skip
_WIRE_DTYPES: Final = {np.dtype(name): wire for name, wire in _WIRE_NAMES.items()}
_NUMPY_NAMES: Final = {wire: numpy for numpy, wire in _WIRE_NAMES.items()} | {"bf16": "uint16"}

_CPU: Final = 1
_DEVICE_TYPES: Final = ("cpu", "cuda")


class Refused(ValueError):
    """An input that cannot be used; ``reason`` is one word for the drop counter."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Host:
    """An array in host memory that somebody else may still write to; bf16 is held as its 16 bits."""

    array: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the array's shape."""
        return self.array.shape


def checked_name(name: object) -> str:
    """Return a name as the text by which a message can call something. Raises :class:`Refused` where it is none.

    The daemon refuses a message with such a name, and in time its sender.
    """
    text = str(name)
    if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable():
        raise Refused("name", f"{text[:40]!r} is no printable name of at most {MAX_NAME_LENGTH} characters")
    return text


def is_torch(value: object) -> bool:
    """Return whether this is a torch tensor, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def take(value: Any, what: str) -> Host | torch.Tensor:
    """Return a view of ``value``: a host array, or a dense tensor on a CUDA device. Nothing is copied.

    Of a DTensor it is what this rank has; :func:`whole_shape` tells whether that is all of an axis. Raises
    :class:`Refused` where it is sparse, an addend, on another kind of device, or no array at all.
    """
    if is_torch(value):
        return _take_tensor(value, what)
    if isinstance(value, np.ndarray):
        return _host(value, what)
    if value is None:
        raise Refused("absent", f"{what} is not there, or not all of it on this rank")
    dlpack_device = getattr(value, "__dlpack_device__", None)
    if dlpack_device is None:
        return _host(np.asarray(value), what)
    if dlpack_device()[0] != _CPU:
        torch = sys.modules.get("torch")
        if torch is None:
            raise Refused("device", f"{what} is on a device that only torch can read, and torch is not loaded")
        return _take_tensor(torch.from_dlpack(value), what)
    try:
        return _host(np.from_dlpack(value), what)
    except (BufferError, TypeError, RuntimeError):  # a dtype that numpy has no name for, such as JAX's bfloat16
        return _host(np.asarray(value), what)


def whole_shape(given: Any, taken: Host | torch.Tensor) -> tuple[int, ...]:
    """Return the shape that a DTensor has over all ranks, or of what was taken of anything else."""
    return tuple(given.shape if is_torch(given) and hasattr(given, "to_local") else taken.shape)


def _take_tensor(tensor: torch.Tensor, what: str) -> Host | torch.Tensor:
    import torch

    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        placements: Any = getattr(tensor, "placements", ())
        if any(placement.is_partial() for placement in placements):
            raise Refused("partial", f"{what} is a DTensor of which each rank has an addend; give its full_tensor()")
        tensor = tensor.to_local()
    if tensor.layout is not torch.strided:
        raise Refused("layout", f"{what} is {tensor.layout}, expected a dense tensor")
    if tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
        tensor = tensor.to(torch.float16)
    if tensor.is_quantized or tensor.is_complex():
        raise Refused("dtype", f"{what} is {tensor.dtype}")
    if tensor.device.type not in _DEVICE_TYPES:
        raise Refused("device", f"{what} is on {tensor.device}, expected cpu or cuda")
    if tensor.device.type == "cuda":
        return tensor
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        return Host(tensor.view(torch.uint16).numpy(), "bf16")
    return _host(tensor.numpy(), what)


def _host(array: NDArray[Any], what: str) -> Host:
    dtype = _WIRE_DTYPES.get(array.dtype)
    if dtype is None:
        name = array.dtype.name
        if name == "bfloat16":
            return Host(array.view(np.uint16), "bf16")
        if name.startswith("float8"):
            return Host(array.astype(np.float16), "f16")
        raise Refused("dtype", f"{what} is {name}, which no message can hold")
    if array.ndim > MAX_DIMENSIONS:
        raise Refused("shape", f"{what} has {array.ndim} dimensions, at most {MAX_DIMENSIONS}")
    return Host(array, dtype)


def wire_dtype(value: Host | torch.Tensor) -> str:
    """Return the wire's name for an array's dtype."""
    if isinstance(value, Host):
        return value.dtype
    name = str(value.dtype).removeprefix("torch.")
    if name == "bfloat16":
        return "bf16"
    dtype = _WIRE_NAMES.get(name)
    if dtype is None:
        raise Refused("dtype", f"{name} is a dtype that no message can hold")
    return dtype


def is_integer(dtype: str) -> bool:
    """Return whether a wire dtype holds whole numbers."""
    return dtype in ("u8", "i8", "i16", "i32", "i64")


def narrow(dtype: str, codebook_size: int) -> str:
    """Return the narrowest dtype that holds the codes of a codebook and a negative value for "no code".

    >>> narrow("i64", 256), narrow("i64", 40_000), narrow("u8", 256)
    ('i16', 'i32', 'u8')
    """
    wanted = "i16" if codebook_size <= 1 << 15 else "i32" if codebook_size <= MAX_CODEBOOK_SIZE else "i64"
    order = ("u8", "i8", "i16", "i32", "i64")
    return min(dtype, wanted, key=order.index)


def fitting(mask: Any, shape: tuple[int, ...]) -> Any:
    """Return the mask in exactly this shape if only axes of length 1 are in the way, else None."""
    if tuple(mask.shape) == shape:
        return mask
    if [size for size in mask.shape if size != 1] != [size for size in shape if size != 1]:
        return None
    return Host(mask.array.reshape(shape), mask.dtype) if isinstance(mask, Host) else mask.reshape(shape)


def moved_last_axis_first(value: Host | torch.Tensor) -> Host | torch.Tensor:
    """Return a view whose first axis is the last one of ``value``."""
    if isinstance(value, Host):
        last = value.array.ndim - 1
        return Host(value.array.transpose((last, *range(last))), value.dtype)
    return value.movedim(-1, 0)


def gather(sources: Sequence[Host], shape: tuple[int, ...], dtype: str, owned: bool) -> Tensor:
    """Return host arrays as one wire tensor: a single source of this shape, or one source per row of the first axis.

    With ``owned`` the data is a copy; without it the data may be the caller's own memory, to be sent at once.
    """
    first = sources[0]
    if len(sources) == 1 and first.shape == shape and first.dtype == dtype:
        array = np.ascontiguousarray(first.array).reshape(shape)
        if owned and np.may_share_memory(array, first.array):
            array = array.copy()
    else:
        array = np.empty(shape, _NUMPY_NAMES[dtype])
        rows = [array] if len(sources) == 1 and first.shape == shape else list(array)
        for row, source in zip(rows, sources, strict=True):
            np.copyto(row, _widened(source, dtype), casting="unsafe")
    return Tensor(dtype, shape, array.data if array.size else b"")


def _widened(source: Host, dtype: str) -> NDArray[Any]:
    if source.dtype == "bf16" and dtype != "bf16":
        return (source.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return source.array


def numpy_name(dtype: str) -> str:
    """Return numpy's name for a wire dtype; bf16 is held as its 16 bits."""
    return _NUMPY_NAMES[dtype]
