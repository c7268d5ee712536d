"""Wire tensors to numpy arrays, without a copy where the dtype allows it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Tensor

_DTYPES: Final = {
    "bool": "?", "u8": "<u1", "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8",
    "f16": "<f2", "bf16": "<u2", "f32": "<f4", "f64": "<f8",
}  # fmt: skip


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return the tensor as a read-only array of its shape; bf16 is widened to float32.

    A bfloat16 is the upper half of a float32, so a shift widens it exactly; that needs no dtype library.
    """
    values = np.frombuffer(tensor.data, dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def as_floats(tensor: Tensor) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return the tensor in float32, or in float64 where it came so."""
    values = as_array(tensor)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def as_mask(tensor: Tensor | None) -> NDArray[np.bool_] | None:
    """Return a mask of any dtype as booleans: what is not 0 is valid."""
    return None if tensor is None else as_array(tensor) != 0
