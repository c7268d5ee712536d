"""The engine: waits, hysteresis, time, runs that go back and end, and what it does when something goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from tests.rules.building import Build, above, changes, norm, only, rule, states

from vqwatch_rules import Engine, LayerFacts, RuleSet, RunFacts


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


def test_before_after_step_a_rule_may_end_but_not_begin(engine: Build) -> None:
    subject = engine(rule(when=above(3), after_step=100))
    assert norm(subject, 99, 9.0) == []
    norm(subject, 200, 9.0)
    assert states(subject) == ["firing"]

    assert changes(norm(subject, 5, 1.0)) == [("firing", "resolved")]


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
