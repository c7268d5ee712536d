"""All runs together: bounds, refusals, alerts and their way out."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.messages import Trainer, layers

from vqwatch.wire import Evaluation, Stop, Welcome
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.history.entries import entry
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.readings import Readings
from vqwatch_rules import Engine, Transition, load

VOCABULARY = {name: metric.labels for name, metric in CATALOGUE.items()}
RULES = """
extends: nothing
rules:
  - alert: VqTestLoss
    when: {metric: loss, is: not_finite}
    severity: critical
    action: stop
    annotations: {summary: The loss is not finite., description: The loss is not finite.}
"""
ON_EVALUATION = """
extends: nothing
rules:
  - alert: VqTestEvaluation
    when: {metric: evaluation_step, is: above, threshold: 0}
    severity: warning
    annotations: {summary: It was evaluated., description: It was evaluated.}
"""


def hub(tmp_path: Path, rules: str = RULES, **options: Any) -> Hub:
    file = tmp_path / "rules.yaml"
    file.write_text(rules)
    return Hub(Book("d"), Engine(load([file], VOCABULARY)), **options)


def say(target: Hub, trainer: Trainer, *messages: Any, now: float = 0.0) -> list[Any]:
    return [reply for message in messages for _, reply in target.receive(trainer.origin.session.encode(), message, now)]


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.transitions: list[str] = []
        self.entries: list[dict[str, Any]] = []

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        self.seen.append((run, step))

    def usage(self, run: str, step: int, now: float, counts: Any) -> None:
        pass

    def transition(self, transition: Transition) -> None:
        self.transitions.append(f"{transition.alert.name} {transition.to}")
        self.entries.append(entry(transition))


def test_runs_do_not_touch_each_other(tmp_path: Path) -> None:
    both = hub(tmp_path)
    for name, loss in (("a", 1.0), ("b", 2.0)):
        trainer = Trainer(run=name, session=name)
        say(both, trainer, trainer.hello(layers()), trainer.step(1, losses={"total": loss}))
    assert both.runs["a"].readings["loss"] == {("total",): 1.0}
    assert both.runs["b"].readings["loss"] == {("total",): 2.0}


def test_what_cannot_be_used_is_counted_by_reason_and_the_daemon_goes_on(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path), Trainer()
    say(here, trainer, trainer.hello(layers(1)), trainer.codes(1, [[0]], names=("7",)))
    say(here, trainer, trainer.step(5), trainer.step(5))
    rejected = here.own_readings()["messages_rejected_total"]
    assert rejected == {("unknown_layer",): 1.0, ("step_repeated",): 1.0}
    say(here, trainer, trainer.step(6, losses={"total": 1.0}))
    assert here.runs["r"].readings["step"] == {(): 6.0}


def test_a_defect_in_one_message_is_counted_and_the_next_is_taken(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path), Trainer()
    say(here, trainer, trainer.hello(layers(1)))
    here.runs["r"].use.add = None  # type: ignore[method-assign,assignment]  # planted: any call raises
    say(here, trainer, trainer.codes(1, [[0]]), trainer.step(1, losses={"total": 1.0}))
    assert here.own_readings()["messages_rejected_total"] == {("internal_error",): 1.0}
    assert here.runs["r"].readings["loss"] == {("total",): 1.0}


def test_a_trainer_whose_daemon_restarted_is_asked_to_introduce_itself_and_goes_on(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path), Trainer()
    hello = trainer.hello(layers(1))
    assert say(here, trainer, trainer.step(3))[0] == Welcome("s", "d", 0)
    say(here, trainer, hello)
    say(here, trainer, trainer.step(4))
    assert here.own_readings()["messages_rejected_total"]["gap",] == 1.0


def test_more_runs_than_allowed_are_refused_until_one_has_ended(tmp_path: Path) -> None:
    here = hub(tmp_path, most_runs=1)
    first, second, third = (Trainer(run=name, session=name) for name in "abc")
    say(here, first, first.hello())
    say(here, second, second.hello())
    assert set(here.runs) == {"a"}
    assert here.own_readings()["dropped_runs_total"] == {(): 1.0}
    say(here, first, first.goodbye())
    say(here, third, third.hello())
    assert set(here.runs) == {"c"}


def test_a_run_that_ended_releases_its_series_after_the_retention(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path, retention_seconds=60.0), Trainer()
    say(here, trainer, trainer.hello(), trainer.step(1, losses={"total": math.nan}), trainer.goodbye())
    here.tick(30.0)
    assert set(here.snapshot().runs) == {"r"}
    here.tick(61.0)
    assert here.snapshot().runs == {}
    assert all(alert.state == "resolved" for alert in here.alerts())


def test_the_alerts_of_a_run_that_said_goodbye_go_on_until_they_were_told_and_end_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, trainer, watcher = hub(tmp_path), Trainer(), Watcher()
    here.observers.append(watcher)
    say(here, trainer, trainer.hello(), trainer.step(1, losses={"total": math.nan}), trainer.goodbye(), now=100.0)
    for now in (101.0, 200.0, 460.0):
        here.tick(now)
    assert [alert.state for alert in here.alerts()] == ["firing"]

    with caplog.at_level(logging.INFO):
        here.tick(461.0)
    assert [alert.state for alert in here.alerts()] == ["resolved"]
    assert watcher.entries[-1]["reason"] == "the run has ended"
    assert "reason" not in watcher.entries[0]
    assert "VqTestLoss resolved at step 1 (the run has ended)" in caplog.text


def test_a_run_that_is_resumed_in_time_keeps_its_alerts(tmp_path: Path) -> None:
    here, first, again, watcher = hub(tmp_path), Trainer(), Trainer(session="again"), Watcher()
    here.observers.append(watcher)
    say(here, first, first.hello(), first.step(1, losses={"total": math.nan}), first.goodbye(), now=0.0)
    here.tick(300.0)
    say(here, again, again.hello(), again.step(2, losses={"total": math.nan}), now=301.0)
    here.tick(1000.0)
    assert watcher.transitions == ["VqTestLoss firing"]


def test_only_when_every_rank_said_goodbye_a_run_has_ended(tmp_path: Path) -> None:
    here = hub(tmp_path)
    ranks = [Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2)]
    for trainer in ranks:
        say(here, trainer, trainer.hello())
    for trainer in ranks:
        say(here, trainer, trainer.step(1, losses={"total": math.nan}))
    say(here, ranks[0], ranks[0].goodbye())
    here.tick(1000.0)
    assert [alert.state for alert in here.alerts()] == ["firing"]


def test_a_bad_evaluation_of_a_run_that_ended_long_ago_is_told(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path, rules=ON_EVALUATION), Trainer()
    say(here, trainer, trainer.hello(layers(1)), trainer.step(1), trainer.goodbye(), now=0.0)
    here.tick(1000.0)
    visitor = Trainer(session="evaluator", rank=7)
    hello = replace(visitor.hello(), info={"role": "evaluator"})
    parts = [
        Evaluation(visitor.origin, seq, 1, time_ns=0, step=1, phase=phase)
        for seq, phase in enumerate(("begin", "end"), start=2)
    ]
    say(here, visitor, hello, *parts, now=1001.0)
    for now in (1002.0, 2000.0):
        here.tick(now)
    assert [(alert.name, alert.state) for alert in here.alerts()] == [("VqTestEvaluation", "firing")]


def test_a_run_that_is_gone_without_a_goodbye_keeps_its_alerts_and_that_it_is_gone(tmp_path: Path) -> None:
    here, trainer = Hub(Book("d"), Engine(load([], VOCABULARY))), Trainer()
    say(here, trainer, trainer.hello(), trainer.step(1, losses={"total": math.nan}), now=0.0)
    for now in range(1801):
        here.tick(float(now))
    assert {alert.name for alert in here.alerts() if alert.state == "firing"} == {"VqLossNotFinite", "VqTrainerGone"}


def test_an_alert_reaches_observers_and_the_exposition(tmp_path: Path) -> None:
    here, trainer, watcher = hub(tmp_path), Trainer(), Watcher()
    here.observers.append(watcher)
    say(here, trainer, trainer.hello(), trainer.step(1, losses={"total": math.nan, "vq": math.nan}))
    assert watcher.transitions == ["VqTestLoss firing", "VqTestLoss firing"]
    assert here.snapshot().runs["r"]["alerts_firing"] == {("VqTestLoss", "critical"): 2.0}
    say(here, trainer, trainer.step(2, losses={"total": 1.0, "vq": 1.0}))
    assert watcher.transitions[2:] == ["VqTestLoss resolved", "VqTestLoss resolved"]
    assert "alerts_firing" not in here.snapshot().runs["r"]


def test_a_stop_is_sent_to_every_rank_only_where_it_is_allowed(tmp_path: Path) -> None:
    for allowed in (False, True):
        here = hub(tmp_path, allow_stop=allowed)
        ranks = [Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2)]
        for trainer in ranks:
            say(here, trainer, trainer.hello())
        say(here, ranks[0], ranks[0].step(1, losses={"total": math.nan}))
        replies = say(here, ranks[1], ranks[1].step(1, losses={"total": math.nan}))
        stopped = {reply.session for reply in replies if isinstance(reply, Stop)}
        assert stopped == ({"s0", "s1"} if allowed else set())


def test_a_snapshot_does_not_change_when_the_hub_goes_on(tmp_path: Path) -> None:
    here, trainer = hub(tmp_path), Trainer()
    say(here, trainer, trainer.hello(layers(1)), trainer.codes(1, np.zeros((1, 100), np.int64)))
    before = here.snapshot()
    samples = dict(before.runs["r"]["codebook_window_samples"])
    say(here, trainer, trainer.codes(2, np.zeros((1, 100), np.int64)))
    assert before.runs["r"]["codebook_window_samples"] == samples
    assert here.snapshot().runs["r"]["codebook_window_samples"] != samples
