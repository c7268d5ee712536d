"""What the tensor metrics share: one shape for codebooks, cheap row products, counting of non-finite values.

No formula of its own that anybody would read as a metric, except :func:`nonfinite_values`.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_]


def as_books(codebook: Floats) -> Floats:
    """Return a codebook [K, D] or [H, K, D] as [H, K, D] in float32 or float64; ValueError for any other shape.

    >>> as_books(np.zeros((4, 2), np.float16)).shape
    (1, 4, 2)
    """
    books = codebook[None] if codebook.ndim == 2 else codebook
    if books.ndim != 3 or books.size == 0:
        raise ValueError(f"a codebook is [K, D] or [H, K, D] and not empty, not {codebook.shape}")
    return widened(books)


def as_sizes(cluster_size: Floats) -> NDArray[np.float64]:
    """Return cluster sizes [K] or [H, K] as [H, K] in float64; ValueError for any other shape.

    >>> as_sizes(np.ones(3, np.float32)).shape
    (1, 3)
    """
    sizes = cluster_size[None] if cluster_size.ndim == 1 else cluster_size
    if sizes.ndim != 2 or sizes.size == 0:
        raise ValueError(f"cluster sizes are [K] or [H, K] and not empty, not {cluster_size.shape}")
    return sizes.astype(np.float64)


def widened(values: NDArray[Any]) -> Floats:
    """Return float32 and float64 arrays as they are and anything else in float32."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def row_products(a: Floats, b: Floats, out: Floats | None = None) -> Floats:
    """Return the inner product of each row of ``a`` with the same row of ``b``, [..., D] -> [...].

    Both ways reach BLAS' dot, which is faster and more precise than einsum; ``vecdot`` with fewer calls around it.

    >>> row_products(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([11.])
    """
    if _vecdot is not None:
        product: Floats = _vecdot(a, b, out=out)
        return product
    product = np.matmul(a[..., None, :], b[..., :, None])[..., 0, 0]
    if out is not None:
        out[...] = product
    return product


_vecdot: Final = getattr(np, "vecdot", None)
"""Absent from numpy before 2.0."""


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Return the squared distance of each row of ``a`` to the same row of ``b``, [n, D] -> [n].

    The difference of some rows at a time is taken into one buffer that stays in a cache, so that both arrays are read
    once and nothing of their size is written. Half a block: larger buffers come from the system, page by page.

    >>> squared_distances(np.array([[1.0, 2.0]]), np.array([[4.0, 6.0]]))
    array([25.])
    """
    found = np.empty(len(a), a.dtype)
    rows = max(1, block_rows(a) // 2)
    buffer = np.empty((min(rows, len(a)), a.shape[1]), a.dtype)
    for start in range(0, len(a), rows):
        end = min(start + rows, len(a))
        difference = np.subtract(a[start:end], b[start:end], out=buffer[: end - start])
        row_products(difference, difference, out=found[start:end])
    return found


def block_rows(rows: Floats) -> int:
    """Return how many rows of an array [..., D] make a block that a second-level cache can hold beside others."""
    return max(1, _BLOCK_BYTES // max(1, int(rows.shape[-1]) * rows.itemsize))


_BLOCK_BYTES: Final = 256 * 1024


def nonfinite_values(*arrays: NDArray[Any] | float) -> int:
    """Return how many NaN and infinite values the arrays hold together; integers and booleans hold none.

    A sum of squares that is finite has only finite terms, so a healthy array is read once, by BLAS.

    >>> nonfinite_values(np.array([1.0, np.nan]), np.inf, np.arange(3))
    2
    """
    count = 0
    for array in map(np.asarray, arrays):
        if array.dtype.kind != "f" or array.size == 0:
            continue
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if array.dtype in (np.float32, np.float64) and np.isfinite(np.dot(flat, flat)):
                continue
        count += flat.size - int(np.count_nonzero(np.isfinite(flat)))
    return count
