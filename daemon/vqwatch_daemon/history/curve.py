"""Samples of one metric over time, as columns: pack, join, bucket, thin. Pure; no clock, no file.

Every value is a float32 (relative error 6e-8), every time is exact to a millisecond.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.readings import Labels

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Edges: TypeAlias = NDArray[np.intp]

Sample: TypeAlias = tuple[int, float, tuple[Labels, ...], Sequence[float] | Floats]
"""Step, time in Unix seconds, label sets, and their values in the same order."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """``n`` samples of ``s`` label sets: ``steps`` i64 [n], ``times`` f64 [n] (Unix seconds), values f32 [n, s].

    Where ``present`` is false there was no evidence. ``low`` and ``high`` are ``mean`` itself while no samples have
    been merged into buckets.
    """

    labels: tuple[Labels, ...]
    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    mean: Floats
    present: Bools
    low: Floats
    high: Floats

    @property
    def bucketed(self) -> bool:
        """Whether the values stand for several samples each."""
        return self.low is not self.mean


def from_samples(samples: Sequence[Sample]) -> Curve:
    """Return the curve of (step, time, label sets, values) samples in the order given.

    >>> from_samples([(1, 10.0, (("a",),), [0.5]), (2, 11.0, (("b",),), [1.5])]).labels
    (('a',), ('b',))
    """
    places: dict[Labels, int] = {}
    for everywhere in {sample[2]: None for sample in samples}:
        for labels in everywhere:
            places.setdefault(labels, len(places))
    mean = np.zeros((len(samples), len(places)), np.float32)
    present = np.zeros(mean.shape, np.bool_)
    columns: dict[tuple[Labels, ...], list[int]] = {}
    with np.errstate(over="ignore"):
        for row, (_, _, labels_here, values) in enumerate(samples):
            column = columns.get(labels_here)
            if column is None:
                column = columns[labels_here] = [places[labels] for labels in labels_here]
            mean[row, column] = values
            present[row, column] = True
    steps = np.array([sample[0] for sample in samples], np.int64)
    times = np.array([sample[1] for sample in samples], np.float64)
    return Curve(tuple(places), steps, times, mean, present, mean, mean)


def join(curves: Iterable[Curve]) -> Curve | None:
    """Return the curves one after the other, sorted by time, over all their label sets; None when there are none."""
    parts = list(curves)
    if len(parts) < 2:
        return parts[0] if parts else None
    places: dict[Labels, int] = {}
    for part in parts:
        for labels in part.labels:
            places.setdefault(labels, len(places))
    n = sum(len(part.steps) for part in parts)
    bucketed = any(part.bucketed for part in parts)
    mean = np.zeros((n, len(places)), np.float32)
    low, high = (np.zeros_like(mean), np.zeros_like(mean)) if bucketed else (mean, mean)
    present = np.zeros(mean.shape, np.bool_)
    row = 0
    for part in parts:
        rows = slice(row, row + len(part.steps))
        columns = [places[labels] for labels in part.labels]
        mean[rows, columns], present[rows, columns] = part.mean, part.present
        if bucketed:
            low[rows, columns], high[rows, columns] = part.low, part.high
        row += len(part.steps)
    times = np.concatenate([part.times for part in parts])
    joined = Curve(tuple(places), np.concatenate([part.steps for part in parts]), times, mean, present, low, high)
    return joined if bool(np.all(times[1:] >= times[:-1])) else take(joined, np.argsort(times, kind="stable"))


def take(curve: Curve, rows: NDArray[Any]) -> Curve:
    """Return the samples at ``rows``: indices or a mask."""
    mean = curve.mean[rows]
    low, high = (curve.low[rows], curve.high[rows]) if curve.bucketed else (mean, mean)
    return Curve(curve.labels, curve.steps[rows], curve.times[rows], mean, curve.present[rows], low, high)


def bucket(curve: Curve, seconds: float) -> Curve:
    """Return one sample for each span of ``seconds`` that holds any."""
    spans = np.floor_divide(curve.times, seconds).astype(np.int64)
    return _merge(curve, np.flatnonzero(np.diff(spans, prepend=spans[0] - 1)))


def thin(curve: Curve, points: int, by: str = "step") -> Curve:
    """Return the curve with at most ``points`` samples, each standing for an equal share of the axis ``by``."""
    n = len(curve.steps)
    if n <= points:
        return curve
    axis = (curve.steps if by == "step" else curve.times).astype(np.float64)
    moves = np.diff(axis)
    if np.all(moves >= 0) and axis[-1] > axis[0]:
        spans = np.minimum((axis - axis[0]) / (axis[-1] - axis[0]) * points, points - 1).astype(np.int64)
    else:  # a run that went back to a checkpoint: share the samples, not the axis
        spans = np.arange(n, dtype=np.int64) * points // n
    return _merge(curve, np.flatnonzero(np.diff(spans, prepend=-1)))


def _merge(curve: Curve, edges: Edges) -> Curve:
    """Merge the samples from each edge up to the next; a NaN that was measured makes the mean NaN, not the extremes."""
    last = np.append(edges[1:], len(curve.steps)) - 1
    count = np.add.reduceat(curve.present, edges, axis=0, dtype=np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.add.reduceat(np.where(curve.present, curve.mean, 0).astype(np.float64), edges, axis=0)
        mean = (total / np.maximum(count, 1)).astype(np.float32)
        low = np.fmin.reduceat(np.where(curve.present, curve.low, np.nan), edges, axis=0)
        high = np.fmax.reduceat(np.where(curve.present, curve.high, np.nan), edges, axis=0)
    return Curve(curve.labels, curve.steps[last], curve.times[last], mean, count > 0, low, high)


def rounded(curve: Curve) -> Curve:
    """Return the curve with values rounded to 13 significant bits (a relative error of 1.3e-4): half as many bytes."""
    mean = _rounded(curve.mean)
    low, high = (_rounded(curve.low), _rounded(curve.high)) if curve.bucketed else (mean, mean)
    return Curve(curve.labels, curve.steps, curve.times, mean, curve.present, low, high)


def _rounded(values: Floats) -> Floats:
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = ((bits + np.uint32(0x400)) & np.uint32(0xFFFFF800)).view(np.float32)
    return np.where(np.isfinite(values) & np.isfinite(nearest), nearest, values)


# --- as bytes ---------------------------------------------------------------------------------------------------


def pack(curve: Curve) -> bytes:
    """Return the curve as bytes: columns as differences, bytes of equal weight together, deflated."""
    times = np.round(curve.times * 1000).astype(np.int64)
    parts = [_packed_integers(curve.steps), _packed_integers(times), np.packbits(curve.present).tobytes()]
    parts += [_packed_floats(values) for values in _matrices(curve)]
    header = {"labels": curve.labels, "n": len(curve.steps), "bucketed": curve.bucketed}
    packed: bytes = msgpack.packb((header, zlib.compress(b"".join(parts), 6)))
    return packed


def unpack(data: bytes) -> Curve:
    """Return the curve that :func:`pack` packed; raises ValueError on anything else."""
    try:
        header, deflated = msgpack.unpackb(data)
        raw = zlib.decompress(deflated)
        labels = tuple(tuple(item) for item in header["labels"])
        n, s, bucketed = int(header["n"]), len(labels), bool(header["bucketed"])
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise ValueError(f"not a packed curve: {error}") from error
    matrices = 3 if bucketed else 1
    bits = (n * s + 7) // 8
    if len(raw) != 16 * n + bits + matrices * 4 * n * s:
        raise ValueError("not a packed curve: wrong length")
    steps = _unpacked_integers(raw[: 8 * n])
    times = _unpacked_integers(raw[8 * n : 16 * n]) / 1000
    present = np.unpackbits(np.frombuffer(raw, np.uint8, bits, 16 * n), count=n * s).astype(np.bool_).reshape(n, s)
    start = 16 * n + bits
    values = [_unpacked_floats(raw[start + i * 4 * n * s : start + (i + 1) * 4 * n * s], n, s) for i in range(matrices)]
    low, high = (values[1], values[2]) if bucketed else (values[0], values[0])
    return Curve(labels, steps, times, values[0], present, low, high)


def _matrices(curve: Curve) -> tuple[Floats, ...]:
    return (curve.mean, curve.low, curve.high) if curve.bucketed else (curve.mean,)


def _shuffled(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _unshuffled(raw: bytes, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(size, -1).T.tobytes(), dtype)


def _packed_integers(values: NDArray[np.int64]) -> bytes:
    return _shuffled(np.diff(values, prepend=np.int64(0)).astype("<i8"))


def _unpacked_integers(raw: bytes) -> NDArray[np.int64]:
    return np.cumsum(_unshuffled(raw, "<i8"), dtype=np.int64)


def _packed_floats(values: Floats) -> bytes:
    bits = np.ascontiguousarray(values.T, "<f4").view("<u4")
    mixed = bits.copy()
    mixed[:, 1:] ^= bits[:, :-1]
    return _shuffled(mixed)


def _unpacked_floats(raw: bytes, n: int, s: int) -> Floats:
    bits = (
        np.bitwise_xor.accumulate(_unshuffled(raw, "<u4").reshape(s, n), axis=1) if n * s else np.zeros((s, n), "<u4")
    )
    return np.ascontiguousarray(bits.view("<f4").T)
