"""The engine against a plain model of one alert, over any order of readings, time, restarts and rewinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vqwatch_rules import Engine, RuleSet, Transition, load
from vqwatch_rules.engine import LATE_STEPS

THRESHOLD, CLEAR = 3.0, 2.0
VALUES = st.sampled_from([0.0, 2.0, 2.5, 3.0, 3.5, 9.0, math.nan, math.inf, -math.inf])
NEXT = {"inactive": {"pending", "firing"}, "pending": {"inactive", "firing"}, "firing": {"resolved"}}


def ruleset(hold: str, keep: str) -> RuleSet:
    spec: dict[str, Any] = {
        "alert": "VqTest",
        "severity": "warning",
        "when": {"metric": "x", "is": "above", "threshold": THRESHOLD, "clear": CLEAR},
        "for": hold,
        "keep_firing_for": keep,
        "annotations": {"summary": "S.", "description": "{{ $value }}"},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(yaml.safe_dump({"extends": "nothing", "rules": [spec]}), "utf-8")
        return load([path], {"x": ()})


class Model:
    """One alert, told as plainly as possible: all readings since its wait or its healthy stretch began."""

    def __init__(self, hold: tuple[int, float], keep: tuple[int, float]) -> None:
        self.hold, self.keep = hold, keep
        self.state = "inactive"
        self.since: tuple[int, float] | None = None
        self.healthy: tuple[int, float] | None = None
        self.certain = True

    def lasted(self, span: tuple[int, float], since: tuple[int, float], step: int, now: float) -> bool:
        return step - since[0] >= span[0] if span[0] else now - since[1] >= span[1]

    def read(self, value: float, step: int, now: float) -> None:
        bad = value > THRESHOLD
        unknown = not bad and not math.isfinite(value)
        self.certain = not unknown
        if unknown:
            self.healthy = None
        elif self.state == "firing":
            if value <= CLEAR:
                self.healthy = self.healthy or (step, now)
                if self.lasted(self.keep, self.healthy, step, now):
                    self.state, self.since, self.healthy = "inactive", None, None
            else:
                self.healthy = None
        elif not bad:
            self.state, self.since = "inactive", None
        elif self.state == "inactive":
            self.since = (step, now)
            self.state = "pending" if any(self.hold) else "firing"
        elif self.since and self.lasted(self.hold, self.since, step, now):
            self.state = "firing"

    def wait(self, now: float) -> None:
        if (
            self.state == "pending"
            and self.certain
            and self.hold[1]
            and self.since
            and now - self.since[1] >= self.hold[1]
        ):
            self.state = "firing"
        elif self.state == "firing" and self.healthy and self.keep[1] and now - self.healthy[1] >= self.keep[1]:
            self.state, self.since, self.healthy = "inactive", None, None

    def back(self, step: int, now: float) -> None:
        self.healthy = None
        if self.state == "pending":
            self.since = (step, now)


class OneAlert(RuleBasedStateMachine):
    """Whatever happens, the engine says what the model says, and every change follows from the last."""

    @initialize(
        hold=st.sampled_from([(0, 0.0), (5, 0.0), (0, 7.0)]), keep=st.sampled_from([(0, 0.0), (4, 0.0), (0, 6.0)])
    )
    def begin(self, hold: tuple[int, float], keep: tuple[int, float]) -> None:
        self.pack = ruleset(*(f"{span[0]} steps" if span[0] else f"{span[1]:g}s" for span in (hold, keep)))
        self.engine = Engine(self.pack)
        self.model = Model(hold, keep)
        self.step, self.now, self.seen = 1000, 50_000.0, "inactive"

    def took(self, found: list[Transition]) -> None:
        for one in found:
            assert one.from_ == self.seen
            assert one.to in NEXT[one.from_]
            assert one.alert.labels == {"alertname": "VqTest", "severity": "warning", "run": "run"}
            self.seen = "inactive" if one.to == "resolved" else one.to

    @rule(value=VALUES, steps=st.integers(1, 6), seconds=st.floats(0.1, 4.0))
    def read(self, value: float, steps: int, seconds: float) -> None:
        self.step += steps
        self.now += seconds
        self.model.read(value, self.step, self.now)
        self.took(self.engine.observe("run", self.step, self.now, {"x": {(): value}}))

    @rule(seconds=st.floats(0.1, 9.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.model.wait(self.now)
        self.took(self.engine.tick(self.now))

    @rule(value=VALUES, back=st.integers(LATE_STEPS + 1, 900))
    def go_back(self, value: float, back: int) -> None:
        if self.step <= back:
            return
        self.step -= back
        self.now += 1.0
        self.model.back(self.step, self.now)
        self.model.read(value, self.step, self.now)
        self.took(self.engine.observe("run", self.step, self.now, {"x": {(): value}}))

    @rule()
    def nothing_new(self) -> None:
        self.took(self.engine.observe("run", self.step, self.now, {"x": {}, "unheard_of": {("a",): 1.0}}))

    @rule()
    def restart_the_daemon(self) -> None:
        kept = json.loads(json.dumps(self.engine.state(), allow_nan=False))
        self.engine = Engine(self.pack)
        self.engine.restore(kept)
        # A healthy stretch and a doubt that had begun are forgotten.
        self.model.healthy, self.model.certain = None, True

    @invariant()
    def both_say_the_same(self) -> None:
        states = [alert.state for alert in self.engine.alerts() if alert.state != "resolved"]
        assert states == ([] if self.model.state == "inactive" else [self.model.state])
        assert self.seen == self.model.state
        assert self.engine.rule_errors == {}


OneAlert.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOneAlert = OneAlert.TestCase
