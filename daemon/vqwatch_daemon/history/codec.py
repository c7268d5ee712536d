"""What travels from the daemon to the store, and its form as bytes in the tables ``tail`` and ``usage``. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.readings import Labels, Series


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
    """Return samples of one run as one row."""
    rows = [
        (item.step, item.now, {metric: _entries(series) for metric, series in item.readings.items()}) for item in items
    ]
    return zlib.compress(msgpack.packb(rows), 1)


def _entries(series: Mapping[Labels, float]) -> list[tuple[Any, ...]]:
    return [(*labels, float(value)) for labels, value in series.items()]


def unpacked_tail(data: bytes) -> dict[str, list[tuple[int, float, Series]]]:
    """Return a tail row's samples by metric; empty when the row cannot be read."""
    try:
        rows = msgpack.unpackb(zlib.decompress(data))
    except (ValueError, zlib.error):
        return {}
    columns: dict[str, list[tuple[int, float, Series]]] = {}
    for step, now, readings in rows:
        for metric, entries in readings.items():
            series = {tuple(entry[:-1]): entry[-1] for entry in entries}
            columns.setdefault(metric, []).append((step, now, series))
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
