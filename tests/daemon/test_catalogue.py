"""The catalogue keeps Prometheus' conventions and its reference page is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqwatch_daemon.catalogue import CATALOGUE, GROUPS, PER_CODE, Metric
from vqwatch_daemon.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_committed_reference_is_what_the_catalogue_says() -> None:
    assert (ROOT / "METRICS.md").read_text(encoding="utf-8") == reference(), "run `make reference`"


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_a_metric_is_named_by_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.group in GROUPS
    assert metric.help.endswith(".")
    assert not re.search(r"_(ms|milliseconds|percent|count|sum|bucket)$", metric.name.removesuffix("_effective_count"))
    for label in metric.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        assert label not in ("step", "run", "le", "quantile")
        assert label != "code" or metric.name == PER_CODE
    if metric.name.endswith("_ratio"):
        assert metric.unit == "ratio"


def test_no_two_metrics_read_alike() -> None:
    assert len({metric.help for metric in CATALOGUE.values()}) == len(CATALOGUE)
