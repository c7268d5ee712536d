"""How often each code was assigned, and how often a code follows itself: the additive facts behind every usage metric.

Everything here adds up: counts of two steps, of two ranks or of two parts of a message may be summed in any order, and
every metric is computed from the sum. The metrics themselves live next door.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Indices = NDArray[np.integer[Any]]
Mask = NDArray[Any]

_BYTE = 256


class Assignments(NamedTuple):
    """What one step's indices say, layer by layer."""

    counts: Counts
    """[L, K]: assignments per code; layers smaller than the largest K are padded with zeros."""
    ignored: Counts
    """[L]: entries that are no code: negative (masked, dropped out) or masked here."""
    out_of_range: Counts
    """[L]: entries at or beyond the layer's size: the sender's defect, never counted as a code."""


class Repeats(NamedTuple):
    """How sticky the stream of codes is: neighbours along the last axis, layer by layer."""

    same: Counts
    """[L]: neighbouring pairs of codes that are equal."""
    pairs: Counts
    """[L]: neighbouring pairs of which both are codes."""


def narrowed(indices: Indices) -> Indices:
    """Return indices as bytes where all are codes below 256, and else as they are: fewer bytes for all that follows.

    >>> narrowed(np.array([[3, 255]])).dtype.name, narrowed(np.array([[3, -1]])).dtype.name
    ('uint8', 'int64')
    """
    return indices.astype(np.uint8) if indices.size and _all_within(indices, _BYTE) else indices


def counted(indices: Indices, sizes: Sequence[int], mask: Mask | None = None) -> tuple[Assignments, Repeats]:
    """Return :func:`count_assignments` and :func:`count_repeats` of the same indices, looked at once for both.

    >>> counted(np.array([[0, 1, 1, 1]]), [4])[1]
    Repeats(same=array([2]), pairs=array([3]))
    """
    if mask is not None or indices.ndim < 2 or indices.size == 0 or not _all_within(indices, min(sizes)):
        few = narrowed(indices)
        return count_assignments(few, sizes, mask), count_repeats(few, mask)
    layers, width = len(indices), max(sizes)
    few = np.ascontiguousarray(indices, np.uint8 if width <= _BYTE else None)
    none = np.zeros(layers, np.int64)
    return Assignments(_bincount(few.reshape(layers, -1), width), none, none), _repeats_within(few)


def count_assignments(indices: Indices, sizes: int | Sequence[int], mask: Mask | None = None) -> Assignments:
    """Return how often each code of each layer occurs in ``indices`` [L, ...], any integer dtype.

    ``sizes`` is the number of codes, one for all layers or one per layer. ``mask`` has the shape of ``indices`` without
    its first axis; where it is false or 0 the entry is no code. The proposal counts -1 like a code (or fails on it);
    here negative and masked entries are ignored, and counted as such.

    >>> count_assignments(np.array([[0, 1, 1, -1], [3, 3, 9, 3]]), 4)
    Assignments(counts=array([[1, 2, 0, 0],
           [0, 0, 0, 3]]), ignored=array([1, 0]), out_of_range=array([0, 1]))
    """
    layers = len(indices)
    per_layer = [sizes] * layers if isinstance(sizes, int) else list(sizes)
    width = max(per_layer, default=0)
    flat = indices.reshape(layers, indices.size // layers if layers else 0)
    entries = flat.shape[1]
    if mask is not None:
        flat = flat.take(np.flatnonzero(mask), axis=1)
    masked = entries - flat.shape[1]
    none = np.zeros(layers, np.int64)
    if flat.size == 0:
        return Assignments(np.zeros((layers, width), np.int64), none + masked, none)
    if _all_within(flat, min(per_layer)):
        return Assignments(_bincount(flat, width), none + masked, none)
    if np.iinfo(flat.dtype).max < width:
        flat = flat.astype(np.intp)
    unsigned = flat.view(f"u{flat.itemsize}")  # in which negative entries are the largest: one comparison finds both
    counts = _bincount(np.minimum(unsigned, unsigned.dtype.type(width)).view(flat.dtype), width + 1)
    negative = _count_true(flat < 0)
    beyond = np.where(np.arange(width + 1) < np.array(per_layer)[:, np.newaxis], 0, counts)
    return Assignments((counts - beyond)[:, :width], masked + negative, beyond.sum(axis=1) - negative)


def count_repeats(indices: Indices, mask: Mask | None = None) -> Repeats:
    """Return how often a code follows itself along the last axis of ``indices`` [L, ..., T].

    A pair counts when both neighbours are codes: a masked or negative entry ends a run. Rows are separate streams.

    >>> count_repeats(np.array([[7, 7, 7, 2, -1, -1]]))
    Repeats(same=array([2]), pairs=array([3]))
    """
    layers = len(indices)
    if indices.ndim < 2 or indices.size == 0:
        return Repeats(np.zeros(layers, np.int64), np.zeros(layers, np.int64))
    if mask is None and _all_within(indices, None):
        return _repeats_within(np.ascontiguousarray(indices))
    same = indices[..., 1:] == indices[..., :-1]
    codes = indices >= 0
    if mask is not None:
        codes &= np.asarray(mask, bool)
    both = codes[..., 1:] & codes[..., :-1]
    return Repeats(_count_true(same & both), _count_true(both))


def _all_within(indices: Indices, size: int | None) -> bool:
    """Whether every entry is a code, told from the dtype alone where that suffices, and else in one pass.

    Without their sign, negative entries are the largest.
    """
    low, high, unsigned = _limits(indices.dtype)
    most = high if size is None else min(size - 1, high)
    return (low >= 0 and high <= most) or bool(indices.view(unsigned).max() <= most)


@lru_cache(maxsize=64)
def _limits(dtype: np.dtype[Any]) -> tuple[int, int, np.dtype[Any]]:
    """Return the smallest and the largest number of an integer type, and the unsigned type of its size."""
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max), np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")


def _repeats_within(indices: Indices) -> Repeats:
    """As :func:`count_repeats` where all entries are codes: all neighbours in memory, less those across rows."""
    same = np.empty(indices.shape, bool)
    flat, found = indices.reshape(-1), same.reshape(-1)
    np.equal(flat[1:], flat[:-1], out=found[:-1])
    same[..., -1] = False
    pairs = indices[0].size - indices[0].size // indices.shape[-1]
    return Repeats(_count_true(same), np.full(len(indices), pairs, np.int64))


def _bincount(codes: Indices, width: int) -> Counts:
    """Count [L, n] codes below ``width``: a histogram per layer, whose codes widened to bincount's type fit a cache."""
    return np.array([np.bincount(layer, minlength=width) for layer in codes])


def _count_true(flags: NDArray[np.bool_]) -> Counts:
    """Count per layer; one call per layer is three times faster than an axis argument."""
    return np.array([np.count_nonzero(layer) for layer in flags], np.int64)
