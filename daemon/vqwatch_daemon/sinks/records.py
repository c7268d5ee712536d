"""What goes to a sink: records, and how they cross to the sink's process. No clock, no thread, no library of a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.readings import Readings
from vqwatch_rules import Transition

LARGEST_FRAME_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Values:
    """Readings of one step that changed together."""

    run: str
    step: int
    now: float
    readings: Readings


@dataclass(frozen=True, slots=True)
class Usage:
    """How often each code was used over the window: layer -> counts [K]."""

    run: str
    step: int
    now: float
    counts: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Change:
    """An alert became ``state``: "firing" or "resolved"."""

    run: str
    step: int
    now: float
    name: str
    severity: str
    state: str
    labels: Mapping[str, str]
    summary: str
    value: float


@dataclass(frozen=True, slots=True)
class End:
    """A run has ended: every rank said goodbye a while ago."""

    run: str
    step: int
    now: float


Record: TypeAlias = Values | Usage | Change | End


def change(transition: Transition) -> Change | None:
    """Return what a sink is told of a transition; None for what is only pending."""
    alert = transition.alert
    if transition.to not in ("firing", "resolved"):
        return None
    summary = alert.annotations.get("summary", "")
    return Change(alert.run, transition.step, transition.now, alert.name, alert.severity, transition.to,
                  dict(alert.labels), summary, alert.value)  # fmt: skip


def size(record: Record) -> int:
    """Return how many values a record holds, at least 1: what it weighs in a queue."""
    if isinstance(record, Values):
        return 1 + sum(map(len, record.readings.values()))
    if isinstance(record, Usage):
        return 1 + sum(values.size for values in record.counts.values()) // 8
    return 8


def pack(record: Record) -> bytes:
    """Return a record as bytes."""
    head = [record.run, record.step, record.now]
    if isinstance(record, Values):
        series = [[name, [[*labels, value] for labels, value in found.items()]]
                  for name, found in record.readings.items()]  # fmt: skip
        return _packed(["values", *head, series])
    if isinstance(record, Usage):
        counts = [[layer, np.ascontiguousarray(values, "<i8").tobytes()] for layer, values in record.counts.items()]
        return _packed(["usage", *head, counts])
    if isinstance(record, End):
        return _packed(["end", *head])
    return _packed(["change", *head, record.name, record.severity, record.state, dict(record.labels), record.summary,
                    record.value])  # fmt: skip


def _packed(parts: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(parts)
    return packed


def unpack(data: bytes) -> Record:
    """Return the record that :func:`pack` made these bytes of.

    >>> unpack(pack(Values("demo", 3, 0.5, {"loss": {("total",): 1.25}})))
    Values(run='demo', step=3, now=0.5, readings={'loss': {('total',): 1.25}})
    """
    kind, run, step, now, *rest = msgpack.unpackb(data)
    if kind == "values":
        readings = {name: {tuple(labels): value for *labels, value in found} for name, found in rest[0]}
        return Values(run, step, now, readings)
    if kind == "usage":
        return Usage(run, step, now, {layer: np.frombuffer(values, "<i8") for layer, values in rest[0]})
    if kind == "end":
        return End(run, step, now)
    name, severity, state, labels, summary, value = rest
    return Change(run, step, now, name, severity, state, labels, summary, value)
