"""What a condition compares: evidence, layers, histories, rhythms, kinds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.rules.building import Build, above, changes, norm, only, rule, states

from vqwatch_rules import LayerFacts, RunFacts, Transition


def test_labels_stay_the_same_while_the_value_changes(engine: Build) -> None:
    texts = {"summary": "S.", "description": "{{ $value | humanize }} in {{ $labels.layer }}"}
    when = {"metric": "codebook_perplexity", "is": "below", "threshold": 10}
    subject = engine(rule(when=when, labels={"team": "audio"}, annotations=texts))
    seen = []
    for step in range(3):
        subject.observe("run", step, float(step), {"codebook_perplexity": {("3",): 5.0 + step}})
        seen.append(only(subject))

    expected = {"alertname": "VqTest", "severity": "warning", "run": "run", "layer": "3", "team": "audio"}
    assert [dict(alert.labels) for alert in seen] == [expected] * 3
    assert [alert.annotations["description"] for alert in seen] == ["5 in 3", "6 in 3", "7 in 3"]
    assert {alert.active_at for alert in seen} == {0.0}


def test_evidence_is_matched_by_layer(engine: Build) -> None:
    gate = {"metric": "codebook_samples", "at_least": 10, "times": "codebook_size"}
    subject = engine(rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}, evidence=[gate]))
    fired = subject.observe(
        "run",
        1,
        1.0,
        {
            "codebook_perplexity": {("0",): 5.0, ("1",): 5.0, ("2",): 5.0},
            "codebook_samples": {("0",): 100.0, ("1",): 99.0},
            "codebook_size": {("0",): 10.0, ("1",): 10.0, ("2",): 10.0},
        },
    )

    assert [one.alert.labels["layer"] for one in fired] == ["0"]


def test_lost_evidence_ends_a_wait_and_holds_an_alert(engine: Build) -> None:
    gate = {"metric": "codebook_samples", "at_least": 10}
    spec = rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}, evidence=[gate])
    subject = engine(spec | {"for": "5 steps"})

    def observe(step: int, perplexity: float, samples: float) -> list[Transition]:
        readings = {"codebook_perplexity": {("0",): perplexity}, "codebook_samples": {("0",): samples}}
        return subject.observe("run", step, float(step), readings)

    observe(1, 5.0, 100.0)
    assert changes(observe(2, 5.0, 1.0)) == [("pending", "inactive")]
    observe(3, 5.0, 100.0)
    observe(8, 5.0, 100.0)
    assert states(subject) == ["firing"]
    assert observe(9, 50.0, 1.0) == []
    assert changes(observe(10, 50.0, 100.0)) == [("firing", "resolved")]


@pytest.mark.parametrize(
    ("over", "fires"),
    [
        ({"over": "mean"}, False),
        ({"over": "min"}, True),
        ({"over": "max"}, False),
        ({"over": "fraction", "fraction": 0.5}, False),
        ({"over": "fraction", "fraction": 0.25}, True),
    ],
)
def test_a_condition_over_layers_is_one_alert_without_a_layer(engine: Build, over: dict[str, Any], fires: bool) -> None:
    subject = engine(rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10, **over}))
    found = subject.observe(
        "run", 1, 1.0, {"codebook_perplexity": {(str(i),): 5.0 if i == 0 else 50.0 for i in range(4)}}
    )

    assert bool(found) == fires
    assert all("layer" not in one.alert.labels for one in found)


def test_where_selects_series_by_pattern(engine: Build) -> None:
    subject = engine(rule(when={"metric": "loss", "where": {"component": ["vq*"]}, "is": "above", "threshold": 1}))
    found = subject.observe("run", 1, 1.0, {"loss": {("total",): 9.0, ("vq_loss",): 9.0}})

    assert [one.alert.labels["component"] for one in found] == ["vq_loss"]


def test_all_joins_conditions_of_different_metrics_by_their_common_labels(engine: Build) -> None:
    few = {"metric": "codebook_perplexity", "is": "below", "threshold": 10}
    subject = engine(
        rule(when={"is": "all", "of": [few, {"metric": "codebook_samples", "is": "above", "threshold": 1}, above(3)]})
    )
    norm(subject, 1, 4.0)
    subject.observe("run", 2, 2.0, {"codebook_perplexity": {("0",): 5.0, ("1",): 5.0, ("2",): 50.0}})
    found = subject.observe("run", 3, 3.0, {"codebook_samples": {("0",): 2.0, ("1",): 0.0, ("2",): 2.0}})

    assert [dict(one.alert.labels) for one in found] == [
        {"alertname": "VqTest", "severity": "warning", "run": "run", "layer": "0"}
    ]
    assert changes(norm(subject, 4, 1.0)) == [("firing", "resolved")]


def test_a_spike_is_judged_by_the_series_own_history(engine: Build) -> None:
    spike = {"metric": "gradient_norm", "is": "spike", "deviations": 8, "history": 40, "min_history": 20}
    subject = engine(rule(when=spike))
    assert norm(subject, 0, 1000.0) == [], "there is no history yet"
    for step in range(1, 60):
        assert norm(subject, step, 1.0 + 0.01 * (step % 7)) == []

    assert changes(norm(subject, 60, 2.0)) == [("inactive", "firing")]
    assert changes(norm(subject, 61, 1.03)) == [("firing", "resolved")]


def test_a_jump_that_lasts_for_a_whole_history_is_the_new_normal(engine: Build) -> None:
    drop = {"metric": "gradient_norm", "is": "drop", "history": 40, "min_history": 20, "min_change": 1}
    subject = engine(rule(when=drop))
    for step in range(50):
        norm(subject, step, 10.0)
    found = [norm(subject, step, 5.0) for step in range(50, 100)]

    assert [(step, changes(one)) for step, one in enumerate(found) if one] == [
        (0, [("inactive", "firing")]),
        (40, [("firing", "resolved")]),
    ]


def test_a_slope_needs_a_line_and_not_only_noise(engine: Build) -> None:
    slope = {"metric": "gradient_norm", "is": "slope", "above": 0.05, "history": 40, "min_history": 20, "min_fit": 0.8}
    noisy, steady = engine(rule(when=slope)), engine(rule(when=slope))
    for step in range(40):
        assert norm(noisy, step, 0.06 * step + 5.0 * (step % 2)) == []
    found = [one for step in range(40) for one in norm(steady, step, 0.06 * step)]

    assert changes(found) == [("inactive", "firing")]


def test_an_increase_ends_when_its_span_has_passed(engine: Build) -> None:
    subject = engine(rule(when={"metric": "drops_total", "is": "increase", "threshold": 5, "within": "60s"}))
    subject.observe("run", 1, 0.0, {"drops_total": {("0",): 1000.0}})
    assert states(subject) == [], "what was before is no increase"
    assert changes(subject.observe("run", 2, 10.0, {"drops_total": {("0",): 1006.0}})) == [("inactive", "firing")]

    assert subject.tick(65.0) == []
    assert changes(subject.tick(71.0)) == [("firing", "resolved")]


def test_a_counter_that_starts_again_counts_from_zero(engine: Build) -> None:
    subject = engine(rule(when={"metric": "drops_total", "is": "increase", "threshold": 5, "within": "60s"}))
    subject.observe("run", 1, 0.0, {"drops_total": {("0",): 1000.0}})
    assert subject.observe("run", 2, 1.0, {"drops_total": {("0",): 4.0}}) == []

    assert changes(subject.observe("run", 3, 2.0, {"drops_total": {("0",): 6.0}})) == [("inactive", "firing")]


def test_a_counter_that_appears_later_began_at_zero(engine: Build) -> None:
    subject = engine(rule(when={"metric": "drops_total", "is": "increase", "threshold": 0, "within": "60s"}))
    subject.observe("run", 1, 0.0, {"drops_total": {}})

    assert changes(subject.observe("run", 2, 1.0, {"drops_total": {("0",): 1.0}})) == [("inactive", "firing")]


def test_stale_goes_by_the_series_own_rhythm(engine: Build) -> None:
    subject = engine(rule(when={"metric": "step", "is": "stale", "longer_than": "5s", "intervals": 10}))
    for step in range(10):
        subject.observe("run", step, step * 2.0, {"step": {(): float(step)}})
    assert subject.tick(18.0 + 20.0) == []

    assert changes(subject.tick(18.0 + 20.1)) == [("inactive", "firing")]
    assert changes(subject.observe("run", 10, 60.0, {"step": {(): 10.0}})) == [("firing", "resolved")]


def test_missing_is_told_of_each_layer_that_was_announced(engine: Build) -> None:
    subject = engine(
        rule(when={"metric": "codebook_samples", "is": "missing"}, codebook_kinds=["ema"], **{"for": "10 steps"})
    )
    layers = {"0": LayerFacts("ema"), "1": LayerFacts("ema"), "2": LayerFacts("frozen")}
    subject.describe("run", RunFacts(1, layers))
    subject.observe("run", 0, 0.0, {"codebook_samples": {("0",): 1.0}, "step": {(): 0.0}})
    subject.tick(0.0)
    subject.observe("run", 10, 10.0, {"step": {(): 10.0}})

    assert [(one.alert.labels["layer"], one.to) for one in subject.tick(10.0)] == [("1", "firing")]
    assert changes(subject.observe("run", 11, 11.0, {"codebook_samples": {("0",): 1.0, ("1",): 1.0}})) == [
        ("firing", "resolved")
    ]


def test_kinds_of_codebooks_are_told_apart(engine: Build) -> None:
    subject = engine(
        rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}, codebook_kinds=["ema"])
    )
    readings = {"codebook_perplexity": {("0",): 5.0, ("1",): 5.0}}
    assert subject.observe("run", 1, 1.0, readings) == [], "the run has not said what it has"
    subject.describe("run", RunFacts(1, {"0": LayerFacts("frozen"), "1": LayerFacts("ema")}))

    assert [one.alert.labels["layer"] for one in subject.observe("run", 2, 2.0, readings)] == ["1"]
