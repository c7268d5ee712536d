"""All runs together: bounds, refusals, alerts and their way out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from tests.messages import Trainer, layers

from vqwatch.wire import Stop, Welcome
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
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


def hub(tmp_path: Path, **options: Any) -> Hub:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    return Hub(Book("d"), Engine(load([rules], VOCABULARY)), **options)


def say(target: Hub, trainer: Trainer, *messages: Any, now: float = 0.0) -> list[Any]:
    return [reply for message in messages for _, reply in target.receive(trainer.origin.session.encode(), message, now)]


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.transitions: list[str] = []

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        self.seen.append((run, step))

    def usage(self, run: str, step: int, now: float, counts: Any) -> None:
        pass

    def transition(self, transition: Transition) -> None:
        self.transitions.append(f"{transition.alert.name} {transition.to}")


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
    say(here, trainer, trainer.step(5), trainer.step(4))
    rejected = here.own_readings()["messages_rejected_total"]
    assert rejected == {("unknown_layer",): 1.0, ("step_backwards",): 1.0}
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
