"""What travels from the daemon to the store, and its form as bytes in the tables ``tail`` and ``usage``. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.history.curve import Sample
from vqwatch_daemon.readings import Labels


@dataclass(frozen=True, slots=True)
class SampleItem:
    """What one run read at one moment."""

    run: str
    step: int
    now: float
    readings: Mapping[str, Mapping[Labels, float]]


@dataclass(frozen=True, slots=True)
class UsageItem:
    """How often each code was used over the window, by layer."""

    run: str
    step: int
    now: float
    counts: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class AlertItem:
    """One alert transition."""

    entry: Mapping[str, Any]


Item: TypeAlias = SampleItem | UsageItem | AlertItem


def packed_tail(items: Sequence[SampleItem]) -> bytes:
    """Return samples of one run as one row: which series there were, once; then their values, sample by sample."""
    shapes: dict[tuple[str, tuple[Labels, ...]], int] = {}
    rows = []
    for item in items:
        places: list[int] = []
        values: list[float] = []
        for metric, series in item.readings.items():
            places.append(shapes.setdefault((metric, tuple(series)), len(shapes)))
            values.extend(series.values())
        with np.errstate(over="ignore"):
            rows.append((item.step, item.now, places, np.array(values, "<f4").tobytes()))
    return zlib.compress(msgpack.packb((list(shapes), rows)), 1)


def unpacked_tail(data: bytes) -> dict[str, list[Sample]]:
    """Return a tail row's samples by metric; empty when the row cannot be read."""
    try:
        shapes, rows = msgpack.unpackb(zlib.decompress(data))
    except (ValueError, zlib.error):
        return {}
    known = [(metric, tuple(map(tuple, labels))) for metric, labels in shapes]
    columns: dict[str, list[Sample]] = {}
    for step, now, places, packed in rows:
        values = np.frombuffer(packed, "<f4")
        start = 0
        for place in places:
            metric, labels = known[place]
            columns.setdefault(metric, []).append((step, now, labels, values[start : start + len(labels)]))
            start += len(labels)
    return columns


def packed_usage(counts: Mapping[str, NDArray[np.int64]]) -> bytes:
    """Return a usage snapshot as bytes; counts beyond 32 bits are cut there."""
    rows = {layer: np.clip(values, 0, 2**32 - 1).astype("<u4").tobytes() for layer, values in counts.items()}
    return zlib.compress(msgpack.packb(rows), 6)


def unpacked_usage(data: bytes) -> dict[str, list[int]]:
    """Return a usage snapshot: counts per code, by layer; raises ValueError when it cannot be read."""
    try:
        rows = msgpack.unpackb(zlib.decompress(data))
    except zlib.error as error:
        raise ValueError(f"not a usage snapshot: {error}") from error
    return {layer: np.frombuffer(values, "<u4").tolist() for layer, values in rows.items()}
