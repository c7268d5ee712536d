"""What the engine knows survives a restart, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from tests.rules.building import Build, above, changes, norm, only, rule

from vqwatch_rules import Engine, RuleSet


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
