"""What /metrics says is read back by prometheus_client as it was, in both formats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.exposition import Snapshot, exposition

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
TEXT = "text/plain;version=0.0.4"
Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(snapshot: Snapshot, accept: str) -> tuple[Found, dict[str, tuple[str, str]]]:
    """Return the samples, and kind and help of each family, as prometheus_client reads them."""
    registry = CollectorRegistry()
    Gauge("other", "Somebody else's.", registry=registry).set(7)
    content_type, body = exposition(lambda: snapshot, registry)(accept)
    assert content_type.startswith(accept.partition(";")[0])
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    families = list(parse(body.decode()))
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples.pop(("other", ())) == 7.0
    return samples, {family.name: (family.type, family.documentation) for family in families}


both = pytest.mark.parametrize("accept", [OPENMETRICS, TEXT])


@both
def test_every_metric_of_the_catalogue_is_read_back(accept: str) -> None:
    values = {metric.name: {tuple(f"{label}-x" for label in metric.labels): 1.5} for metric in CATALOGUE.values()}
    summaries = {name: {("x",) * len(metric.labels): (3, 0.5)} for name, metric in CATALOGUE.items()
                 if metric.kind == "summary"}  # fmt: skip
    samples, families = read(Snapshot({"r": values}, values, summaries), accept)
    for metric in CATALOGUE.values():
        if metric.kind == "summary" or "code" in metric.labels:
            continue
        labels = {"run": "r"} if metric.per_run else {}
        labels |= {label: f"{label}-x" for label in metric.labels}
        assert samples[metric.exposed_name, tuple(sorted(labels.items()))] == 1.5
        kind, text = families[metric.exposed_name.removesuffix("_total")]
        assert text == metric.help
        assert kind == ("unknown" if metric.kind == "untyped" else metric.kind)
    assert samples["vqwatch_message_processing_seconds_count", (("kind", "x"),)] == 3.0
    assert samples["vqwatch_message_processing_seconds_sum", (("kind", "x"),)] == 0.5


@both
@given(run=st.text(st.characters(blacklist_categories=["Cs"]), max_size=20))
def test_any_name_comes_back_as_it_was(accept: str, run: str) -> None:
    samples, _ = read(Snapshot({run: {"step": {(): 3.0}}}), accept)
    assert samples == {("vqwatch_step", (("run", run),)): 3.0}


@both
@given(value=st.floats())
def test_any_number_comes_back_as_it_was(accept: str, value: float) -> None:
    samples, _ = read(Snapshot({"r": {"gradient_norm": {(): value}}}), accept)
    [found] = samples.values()
    assert found == value or (math.isnan(found) and math.isnan(value))


@both
def test_a_metric_without_a_value_is_not_mentioned(accept: str) -> None:
    samples, families = read(Snapshot({"r": {"gradient_norm": {}}}), accept)
    assert samples == {}
    assert set(families) == {"other"}
