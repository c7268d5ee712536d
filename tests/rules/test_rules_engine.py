"""The engine: waits, hysteresis, evidence, time, restarts, and what it does when something goes wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqwatch_rules import Alert, Engine, LayerFacts, RuleSet, RunFacts, Transition, load

METRICS = {
    "loss": ("component",),
    "gradient_norm": (),
    "codebook_perplexity": ("layer",),
    "codebook_size": ("layer",),
    "codebook_samples": ("layer",),
    "drops_total": ("rank",),
    "step": (),
    "build_info": (),
}
Build = Callable[..., Engine]


def rule(**keys: Any) -> dict[str, Any]:
    return {"alert": "VqTest", "severity": "warning", "annotations": {"summary": "S.", "description": "D."}} | keys


def above(threshold: float, **keys: Any) -> dict[str, Any]:
    return {"metric": "gradient_norm", "is": "above", "threshold": threshold} | keys


@pytest.fixture
def ruleset(tmp_path: Path) -> Callable[..., RuleSet]:
    def build(*rules: Mapping[str, Any], **keys: Any) -> RuleSet:
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump({"extends": "nothing", "rules": [dict(one) for one in rules], **keys}), "utf-8")
        return load([path], METRICS)

    return build


@pytest.fixture
def engine(ruleset: Callable[..., RuleSet]) -> Build:
    return lambda *rules, **keys: Engine(ruleset(*rules, **keys))


def norm(engine: Engine, step: int, value: float, now: float | None = None) -> list[Transition]:
    return engine.observe("run", step, float(step) if now is None else now, {"gradient_norm": {(): value}})


def states(engine: Engine) -> list[str]:
    return [alert.state for alert in engine.alerts()]


def changes(found: list[Transition]) -> list[tuple[str, str]]:
    return [(one.from_, one.to) for one in found]


def only(engine: Engine) -> Alert:
    (alert,) = engine.alerts()
    return alert


def test_without_a_wait_the_first_reading_fires(engine: Build) -> None:
    assert changes(norm(engine(rule(when=above(3))), 1, 4.0)) == [("inactive", "firing")]


def test_a_wait_in_steps_counts_the_steps_between_readings(engine: Build) -> None:
    subject = engine(rule(when=above(3), **{"for": "10 steps"}))
    norm(subject, 100, 4.0)
    norm(subject, 109, 4.0)
    assert states(subject) == ["pending"]

    assert changes(norm(subject, 110, 4.0)) == [("pending", "firing")]
    assert only(subject).started_step == 100


def test_one_healthy_reading_starts_the_wait_again(engine: Build) -> None:
    subject = engine(rule(when=above(3), **{"for": "10 steps"}))
    norm(subject, 100, 4.0)
    assert changes(norm(subject, 105, 1.0)) == [("pending", "inactive")]
    norm(subject, 106, 4.0)

    assert norm(subject, 115, 4.0) == []
    assert changes(norm(subject, 116, 4.0)) == [("pending", "firing")]


def test_a_wait_in_seconds_ends_by_time_alone(engine: Build) -> None:
    subject = engine(rule(when=above(3), **{"for": "30s"}))
    norm(subject, 1, 4.0, now=1000.0)
    assert subject.tick(1029.9) == []

    assert changes(subject.tick(1030.0)) == [("pending", "firing")]
    assert only(subject).fired_at == 1030.0


def test_between_threshold_and_clear_an_alert_goes_on_and_a_wait_ends(engine: Build) -> None:
    subject = engine(rule(when=above(3, clear=2), **{"for": "2 steps"}))
    norm(subject, 1, 4.0)
    assert changes(norm(subject, 2, 2.5)) == [("pending", "inactive")]
    norm(subject, 3, 4.0)
    norm(subject, 5, 4.0)

    assert norm(subject, 6, 2.5) == []
    assert changes(norm(subject, 7, 2.0)) == [("firing", "resolved")]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_not_finite_never_resolves(engine: Build, odd: float) -> None:
    subject = engine(rule(when={"metric": "gradient_norm", "is": "outside", "low": 1, "high": 3}))
    norm(subject, 1, 9.0)

    assert norm(subject, 2, odd) == []
    assert states(subject) == ["firing"]
    assert changes(norm(subject, 3, 2.0)) == [("firing", "resolved")]


def test_nan_is_not_healthy_it_interrupts_a_healthy_stretch(engine: Build) -> None:
    subject = engine(rule(when=above(3), keep_firing_for="10 steps"))
    norm(subject, 1, 9.0)
    norm(subject, 2, 1.0)
    norm(subject, 11, math.nan)
    norm(subject, 13, 1.0)
    assert states(subject) == ["firing"]

    assert changes(norm(subject, 23, 1.0)) == [("firing", "resolved")]


def test_nan_neither_ends_nor_completes_a_wait(engine: Build) -> None:
    subject = engine(rule(when=above(3), **{"for": "10s"}))
    norm(subject, 1, 9.0, now=100.0)
    norm(subject, 2, math.nan, now=109.0)
    assert subject.tick(111.0) == []

    assert changes(norm(subject, 3, 9.0, now=112.0)) == [("pending", "firing")]


def test_an_infinity_is_above_every_threshold(engine: Build) -> None:
    assert changes(norm(engine(rule(when=above(3))), 1, math.inf)) == [("inactive", "firing")]


def test_not_finite_fires_on_nan_and_resolves_on_a_number(engine: Build) -> None:
    subject = engine(rule(when={"metric": "loss", "is": "not_finite"}))
    fired = subject.observe("run", 1, 1.0, {"loss": {("total",): math.nan, ("vq",): 1.0}})

    assert [one.alert.labels["component"] for one in fired] == ["total"]
    assert changes(subject.observe("run", 2, 2.0, {"loss": {("total",): 1.0, ("vq",): 1.0}})) == [
        ("firing", "resolved")
    ]


def test_a_series_that_stays_away_keeps_its_alert(engine: Build) -> None:
    subject = engine(rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}))
    subject.observe("run", 1, 1.0, {"codebook_perplexity": {("0",): 5.0}})
    subject.observe("run", 2, 2.0, {"codebook_perplexity": {}})
    subject.tick(100_000.0)

    assert states(subject) == ["firing"]


def test_keep_firing_for_in_seconds_ends_by_time_alone(engine: Build) -> None:
    subject = engine(rule(when=above(3), keep_firing_for="1m"))
    norm(subject, 1, 9.0, now=0.0)
    norm(subject, 2, 1.0, now=10.0)

    assert subject.tick(69.0) == []
    assert changes(subject.tick(70.0)) == [("firing", "resolved")]


def test_severities_are_alerts_of_their_own(engine: Build) -> None:
    levels = {"warning": {"threshold": 3}, "critical": {"threshold": 6, "action": "stop", "for": "2 steps"}}
    spec = rule(when={"metric": "gradient_norm", "is": "above"}, severities=levels)
    del spec["severity"]
    subject = engine(spec)
    norm(subject, 1, 7.0)
    norm(subject, 3, 7.0)

    assert [(alert.severity, alert.state, alert.action) for alert in subject.alerts()] == [
        ("critical", "firing", "stop"),
        ("warning", "firing", ""),
    ]
    assert [dict(one.alert.labels) for one in norm(subject, 4, 5.0)] == [
        {"alertname": "VqTest", "severity": "critical", "run": "run"}
    ]


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


def test_before_after_step_a_rule_may_end_but_not_begin(engine: Build) -> None:
    subject = engine(rule(when=above(3), after_step=100))
    assert norm(subject, 99, 9.0) == []
    norm(subject, 200, 9.0)
    assert states(subject) == ["firing"]

    assert changes(norm(subject, 5, 1.0)) == [("firing", "resolved")]


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


def test_a_late_reading_is_judged_like_any_other(engine: Build) -> None:
    subject = engine(rule(when=above(3), **{"for": "10 steps"}))
    norm(subject, 100, 9.0)
    norm(subject, 95, 9.0)

    assert changes(norm(subject, 110, 9.0)) == [("pending", "firing")]


def test_a_run_that_goes_back_starts_its_waits_again_and_keeps_its_alerts(engine: Build) -> None:
    slow = rule(alert="VqSlow", when=above(3), **{"for": "500 steps"})
    subject = engine(rule(when=above(3)), slow)
    norm(subject, 5000, 9.0)
    norm(subject, 5400, 9.0)
    norm(subject, 0, 9.0)
    assert [(alert.name, alert.state) for alert in subject.alerts()] == [("VqTest", "firing"), ("VqSlow", "pending")]
    assert norm(subject, 499, 9.0) == []

    assert changes(norm(subject, 500, 9.0)) == [("pending", "firing")]


def test_a_run_that_goes_back_forgets_its_histories(engine: Build) -> None:
    subject = engine(rule(when={"metric": "gradient_norm", "is": "spike", "history": 20, "min_history": 10}))
    for step in range(1000, 1040):
        norm(subject, step, 1.0 + 0.01 * (step % 3))

    assert [norm(subject, step, 50.0 + step % 3) for step in range(15)] == [[]] * 15


def test_the_end_of_a_run_resolves_its_alerts_and_leaves_others_alone(engine: Build) -> None:
    subject = engine(rule(when=above(3)))
    norm(subject, 1, 9.0, now=100.0)
    subject.observe("other", 1, 101.0, {"gradient_norm": {(): 9.0}})

    assert [(one.alert.run, one.to, one.now) for one in subject.forget("run")] == [("run", "resolved", 101.0)]
    assert [(alert.run, alert.state) for alert in subject.alerts()] == [("other", "firing"), ("run", "resolved")]


def test_a_finished_run_loses_what_began_before_its_end_and_may_raise_what_comes_later(engine: Build) -> None:
    subject = engine(rule(when=above(3)), rule(alert="VqLoss", when={"metric": "loss", "is": "not_finite"}))
    norm(subject, 1, 9.0, now=100.0)
    subject.observe("run", 1, 200.0, {"loss": {("total",): math.nan}})

    ended = subject.finish("run", 150.0, "the run has ended")
    assert [(one.alert.name, one.to, one.reason) for one in ended] == [("VqTest", "resolved", "the run has ended")]
    assert subject.finish("run", 150.0, "the run has ended") == []
    assert sorted((alert.name, alert.state) for alert in subject.alerts()) == [
        ("VqLoss", "firing"),
        ("VqTest", "resolved"),
    ]


def test_time_alone_judges_nothing_about_a_finished_run(engine: Build) -> None:
    stale = rule(alert="VqStale", when={"metric": "gradient_norm", "is": "stale", "longer_than": "10s"})
    subject = engine(stale, rule(when=above(3), **{"for": "30s"}))
    norm(subject, 1, 9.0, now=0.0)
    subject.presence("run", "finished")
    assert subject.tick(1000.0) == []

    subject.presence("run", "live")
    assert {one.alert.name for one in subject.tick(1001.0)} == {"VqStale", "VqTest"}


def test_of_a_run_that_is_gone_a_wait_is_not_served_by_time_but_silence_is_told(engine: Build) -> None:
    stale = rule(alert="VqStale", when={"metric": "gradient_norm", "is": "stale", "longer_than": "10s"})
    subject = engine(stale, rule(when=above(3), **{"for": "30s"}))
    norm(subject, 1, 9.0, now=0.0)
    subject.presence("run", "gone")
    assert [one.alert.name for one in subject.tick(1000.0)] == ["VqStale"]

    assert changes(norm(subject, 2, 9.0, now=1001.0)) == [("firing", "resolved"), ("pending", "firing")]


def test_resolved_alerts_are_listed_for_fifteen_minutes(engine: Build) -> None:
    subject = engine(rule(when=above(3)))
    norm(subject, 1, 9.0, now=0.0)
    norm(subject, 2, 1.0, now=10.0)
    subject.tick(10.0 + 900.0)
    assert states(subject) == ["resolved"]

    subject.tick(10.0 + 900.1)
    assert states(subject) == []


def test_an_alert_that_fires_again_is_no_longer_listed_as_resolved(engine: Build) -> None:
    subject = engine(rule(when=above(3)))
    for step, value in enumerate((9.0, 1.0, 9.0)):
        norm(subject, step, value)

    assert states(subject) == ["firing"]


def test_kinds_of_codebooks_are_told_apart(engine: Build) -> None:
    subject = engine(
        rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}, codebook_kinds=["ema"])
    )
    readings = {"codebook_perplexity": {("0",): 5.0, ("1",): 5.0}}
    assert subject.observe("run", 1, 1.0, readings) == [], "the run has not said what it has"
    subject.describe("run", RunFacts(1, {"0": LayerFacts("frozen"), "1": LayerFacts("ema")}))

    assert [one.alert.labels["layer"] for one in subject.observe("run", 2, 2.0, readings)] == ["1"]


def test_a_layer_that_is_gone_takes_its_alert_along(engine: Build) -> None:
    subject = engine(rule(when={"metric": "codebook_perplexity", "is": "below", "threshold": 10}))
    subject.describe("run", RunFacts(1, {"0": LayerFacts(), "1": LayerFacts()}))
    subject.observe("run", 1, 1.0, {"codebook_perplexity": {("0",): 5.0, ("1",): 5.0}})
    subject.describe("run", RunFacts(1, {"0": LayerFacts()}))

    assert [(one.alert.labels["layer"], one.to) for one in subject.tick(2.0)] == [("1", "resolved")]


def test_a_layer_that_no_run_has_is_reported_with_what_there_is(engine: Build) -> None:
    when = {"metric": "codebook_perplexity", "where": {"layer": "7"}, "is": "below", "threshold": 10}
    problems = engine(rule(when=when)).describe("run", RunFacts(1, {"0": LayerFacts(), "1": LayerFacts()}))

    assert problems == ("VqTest: unknown layer '7'; allowed: 0, 1",)


def test_pending_and_firing_survive_a_restart(ruleset: Callable[..., RuleSet]) -> None:
    rules = ruleset(rule(when=above(3)), rule(alert="VqSlow", when=above(3), **{"for": "10 steps"}))
    before = Engine(rules)
    norm(before, 100, 9.0, now=5.0)
    after = Engine(rules)
    after.restore(json.loads(json.dumps(before.state())))
    assert after.alerts() == before.alerts()

    assert changes(norm(after, 110, 9.0)) == [("pending", "firing")]
    assert {alert.active_at for alert in after.alerts()} == {5.0}


def test_what_is_not_finite_survives_a_restart_as_json(ruleset: Callable[..., RuleSet]) -> None:
    rules = ruleset(rule(when={"metric": "gradient_norm", "is": "not_finite"}))
    before, after = Engine(rules), Engine(rules)
    norm(before, 1, math.inf)
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))

    assert only(after).value == math.inf


def test_a_spike_is_remembered_over_a_restart_with_its_history(ruleset: Callable[..., RuleSet]) -> None:
    rules = ruleset(rule(when={"metric": "gradient_norm", "is": "spike", "history": 20, "min_history": 10}))
    before, after = Engine(rules), Engine(rules)
    for step in range(20):
        norm(before, step, 1.0 + 0.01 * (step % 3))
    norm(before, 20, 50.0)
    after.restore(json.loads(json.dumps(before.state())))
    assert norm(after, 21, 50.0) == []

    assert changes(norm(after, 22, 1.0)) == [("firing", "resolved")]


def test_an_alert_whose_rule_is_gone_is_resolved_after_the_restart(ruleset: Callable[..., RuleSet]) -> None:
    before = Engine(ruleset(rule(when=above(3), labels={"team": "audio"})))
    norm(before, 1, 9.0, now=100.0)
    labels = dict(only(before).labels)
    after = Engine(ruleset(rule(alert="VqOther", when=above(3))))
    after.restore(before.state())

    assert [(dict(one.alert.labels), one.to) for one in after.tick(200.0)] == [(labels, "resolved")]


@pytest.mark.parametrize(
    "damaged", [{}, {"version": 9}, {"version": 1}, {"version": 1, "runs": {"a": 3}, "resolved": []}]
)
def test_a_damaged_state_is_an_error_and_not_a_crash(engine: Build, damaged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="alert state"):
        engine(rule(when=above(3))).restore(damaged)


class Broken(dict[tuple[str, ...], float]):
    """A series that cannot be walked through."""

    def items(self) -> Any:
        raise RuntimeError("no")


def test_a_rule_that_fails_spoils_only_itself_and_is_counted(engine: Build) -> None:
    layers = rule(alert="VqBroken", when={"metric": "codebook_perplexity", "is": "below", "threshold": 10})
    subject = engine(layers, rule(when=above(3)))
    found = subject.observe("run", 1, 1.0, {"codebook_perplexity": Broken({("0",): 1.0}), "gradient_norm": {(): 9.0}})

    assert [one.alert.name for one in found] == ["VqTest"]
    assert subject.rule_errors == {"VqBroken": 1}


def test_alerts_beyond_what_a_rule_may_have_are_counted(engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqwatch_rules.engine.MAX_ALERTS_PER_RULE", 2)
    low = {"metric": "codebook_perplexity", "is": "below", "threshold": 0.5}
    subject = engine(rule(when=low))
    readings = {"codebook_perplexity": {(str(layer),): 0.0 for layer in range(5)}}
    subject.observe("run", 1, 1.0, readings)
    assert states(subject) == ["firing"] * 2
    assert subject.rule_errors == {"VqTest": 3}


def test_thresholds_can_differ_for_single_runs(engine: Build) -> None:
    subject = engine(
        rule(when=above(3)),
        rule(alert="VqOther", when=above(3)),
        runs=[{"match": "big-*", "override": {"VqTest": {"when": {"threshold": 30}}, "VqOther": False}}],
    )
    for run in ("small", "big-1"):
        subject.observe(run, 1, 1.0, {"gradient_norm": {(): 9.0}})

    assert [(alert.run, alert.name) for alert in subject.alerts()] == [("small", "VqTest"), ("small", "VqOther")]


def test_rules_about_the_daemon_have_no_run(engine: Build) -> None:
    subject = engine(rule(when=above(3), scope="daemon"))
    norm(subject, 1, 9.0)
    subject.observe("", 0, 1.0, {"gradient_norm": {(): 9.0}})

    assert dict(only(subject).labels) == {"alertname": "VqTest", "severity": "warning"}


def test_more_runs_than_fit_push_the_oldest_out_and_end_its_alerts(ruleset: Callable[..., RuleSet]) -> None:
    subject = Engine(ruleset(rule(when=above(3))), max_runs=2)
    subject.observe("", 0, 0.0, {})
    norm(subject, 1, 9.0)
    subject.observe("run1", 1, 1.0, {"gradient_norm": {(): 9.0}})

    found = subject.observe("run2", 1, 2.0, {"gradient_norm": {(): 9.0}})

    assert [(one.alert.run, one.to) for one in found] == [("run", "resolved"), ("run2", "firing")]
    assert [alert.run for alert in subject.alerts() if alert.state == "firing"] == ["run1", "run2"]
