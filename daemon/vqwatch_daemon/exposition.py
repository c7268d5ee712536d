"""An immutable snapshot of all readings, as Prometheus reads it.

One custom collector over one snapshot: a scrape sees every value of one moment, a reading that has ended is gone from
the next scrape, and updating costs nothing between scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family

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


class SnapshotCollector:
    """Gives Prometheus' client the snapshot that ``take`` returns at the time of the scrape."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take

    def describe(self) -> list[Family]:
        """Return nothing: names are known from the catalogue, and nobody else registers here."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield one family for each metric that has a value now."""
        snapshot = self._take()
        for metric in CATALOGUE.values():
            if metric.kind == "summary":
                continue
            family = _family(metric)
            for labels, value in _samples(metric, snapshot):
                family.add_metric(labels, value)
            if family.samples:
                yield family
        for name, series in snapshot.summaries.items():
            metric = CATALOGUE[name]
            summary = SummaryMetricFamily(metric.exposed_name, metric.help, labels=metric.all_labels)
            for labels, (count, total) in series.items():
                summary.add_metric(labels, count_value=count, sum_value=total)
            yield summary


_FAMILIES: Final = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "untyped": UnknownMetricFamily}


def _family(metric: Metric) -> Any:
    return _FAMILIES[metric.kind](metric.exposed_name, metric.help, labels=metric.all_labels)


_NONE: Series = {}


def _samples(metric: Metric, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    if metric.name == PER_CODE:
        for (run, layer), counts in snapshot.codes.items():
            for code, count in enumerate(counts.tolist()):
                yield (run, layer, str(code)), count
        return
    if not metric.per_run:
        yield from snapshot.daemon.get(metric.name, _NONE).items()
        return
    for run, readings in snapshot.runs.items():
        for labels, value in readings.get(metric.name, _NONE).items():
            yield (run, *labels), value


def exposition(registry: CollectorRegistry) -> Callable[[str], tuple[str, bytes]]:
    """Return a function from an ``Accept`` header to the content type and the body of ``/metrics``."""

    def render(accept: str) -> tuple[str, bytes]:
        encoder, content_type = choose_encoder(accept)
        return content_type, encoder(registry)

    return render
