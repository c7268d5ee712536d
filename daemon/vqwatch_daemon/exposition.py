"""An immutable snapshot of all readings, as Prometheus reads it.

A scrape sees every value of one moment, a reading that has ended is gone from the next scrape, and updating costs
nothing between scrapes. The text is joined here: through the families of prometheus_client it takes ten times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from .catalogue import CATALOGUE, PER_CODE, Metric
from .readings import Labels, Series


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is exported at one moment: readings by run, the daemon's own, and summaries as (count, sum).

    ``codes`` has the assignments of each code ``[size]`` since the run began, by run and layer.
    """

    runs: Mapping[str, Mapping[str, Mapping[Labels, float]]] = field(default_factory=dict)
    daemon: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    summaries: Mapping[str, Mapping[Labels, tuple[int, float]]] = field(default_factory=dict)
    codes: Mapping[tuple[str, str], NDArray[Any]] = field(default_factory=dict)


def exposition(take: Callable[[], Snapshot], others: CollectorRegistry) -> Callable[[str], tuple[str, bytes]]:
    """Return a function from an ``Accept`` header to the content type and the body of ``/metrics``.

    The body has what ``take`` returns at that time, and what is registered in ``others``.
    """

    def render(accept: str) -> tuple[str, bytes]:
        encode_others, content_type = choose_encoder(accept)
        text = "".join(lines(take(), openmetrics=content_type.startswith("application/openmetrics-text")))
        return content_type, text.encode() + encode_others(others)

    return render


def lines(snapshot: Snapshot, *, openmetrics: bool) -> Iterator[str]:
    """Yield the lines of a snapshot: for each metric that has a value now what it is, then its samples.

    In OpenMetrics a counter is named without ``_total``, and what has no type is "unknown". Its ``# EOF`` is not here.
    """
    for metric in CATALOGUE.values():
        samples = _summaries(metric, snapshot) if metric.kind == "summary" else _samples(metric, snapshot)
        first = next(samples, None)
        if first is None:
            continue
        name, kind = metric.exposed_name, metric.kind
        if openmetrics:
            name, kind = name.removesuffix("_total"), "unknown" if kind == "untyped" else kind
        yield f"# HELP {name} {_help(metric.help)}\n# TYPE {name} {kind}\n"
        order = sorted(range(len(metric.all_labels)), key=metric.all_labels.__getitem__)
        names = metric.all_labels
        for suffix, labels, value in (first, *samples):
            inside = ",".join([_label(names[place], labels[place]) for place in order])
            yield (
                f"{metric.exposed_name}{suffix}{{{inside}}} {number(value)}\n"
                if inside
                else (f"{metric.exposed_name}{suffix} {number(value)}\n")
            )


_Sample = tuple[str, Labels, float]
_NONE: Final[Series] = {}


def _samples(metric: Metric, snapshot: Snapshot) -> Iterator[_Sample]:
    if metric.name == PER_CODE:
        for (run, layer), counts in snapshot.codes.items():
            for code, count in enumerate(counts.tolist()):
                yield "", (run, layer, str(code)), count
        return
    if not metric.per_run:
        for labels, value in snapshot.daemon.get(metric.name, _NONE).items():
            yield "", labels, value
        return
    for run, readings in snapshot.runs.items():
        for labels, value in readings.get(metric.name, _NONE).items():
            yield "", (run, *labels), value


def _summaries(metric: Metric, snapshot: Snapshot) -> Iterator[_Sample]:
    for labels, (count, total) in snapshot.summaries.get(metric.name, {}).items():
        yield "_count", labels, count
        yield "_sum", labels, total


@lru_cache(maxsize=65_536)
def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def number(value: float) -> str:
    """Return a number as Prometheus reads it.

    >>> number(3), number(0.25), number(float("nan")), number(float("-inf"))
    ('3.0', '0.25', 'NaN', '-Inf')
    """
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
