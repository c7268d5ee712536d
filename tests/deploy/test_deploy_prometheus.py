"""Prometheus' own tools on deploy/prometheus, and our catalogue on its expressions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_rules import load

from .promql import metric_names, misnamed
from .tools import DEPLOY, passes, run

PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = sorted([*PROMETHEUS.glob("rules/*.yml"), *PROMETHEUS.glob("optional/*.yml")])
TESTS = sorted(PROMETHEUS.glob("tests/*.test.yml"))
# From the Python process and from Prometheus itself.
FOREIGN = {"up", "process_start_time_seconds"}


def rules() -> list[dict[str, Any]]:
    return [
        rule for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def test_promtool_accepts_the_configuration() -> None:
    assert "3 rule files found" in passes("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.stem)
def test_promtool_has_nothing_to_say_about_the_rules(file: Path) -> None:
    passes("promtool", "check", "rules", "--lint=all", "--lint-fatal", file)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_the_rules_fire_and_keep_silent_as_their_tests_say(file: Path) -> None:
    passes("promtool", "test", "rules", file)


def test_no_alert_has_two_owners() -> None:
    of_the_daemon = {rule.alert for rule in load([], {name: each.labels for name, each in CATALOGUE.items()}).rules}
    of_prometheus = [alert["alert"] for alert in alerts()]
    assert len(of_the_daemon) > 50
    assert not of_the_daemon & set(of_prometheus)
    assert len(of_prometheus) == len(set(of_prometheus))


def test_every_alert_has_a_test_that_sees_it_fire() -> None:
    fired = {
        case["alertname"]
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    assert {alert["alert"] for alert in alerts()} == fired


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_expression_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    recorded = {other["record"] for other in rules() if "record" in other}
    assert misnamed(rule["expr"], FOREIGN | recorded) == set()


def test_an_expression_with_a_wrong_name_would_be_found() -> None:
    assert misnamed("sum(rate(vqwatch_nonfinite[5m])) + up", FOREIGN) == {"vqwatch_nonfinite"}
    assert metric_names("vqwatch_step{run='a'} > 3 and on (run) up") == {"vqwatch_step", "up"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_is_named_explained_and_has_a_runbook(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Vq[A-Za-z]+", alert["alert"])
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert summary[0].isupper()
    assert summary.endswith(".")
    assert "{{" not in summary
    assert description.endswith(".")
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (DEPLOY.parent / file).read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == alert["alert"].lower()


def test_recording_rules_are_named_level_metric_operation() -> None:
    records = [rule["record"] for rule in rules() if "record" in rule]
    assert records
    assert all(re.fullmatch(r"[a-z_]+:vqwatch_[a-z0-9_]+:[a-z0-9]+", name) for name in records)


def test_promtool_would_find_a_broken_rule(tmp_path: Path) -> None:
    broken = tmp_path / "rules.yml"
    shutil.copy(PROMETHEUS / "rules" / "meta-alerts.yml", broken)
    broken.write_text(broken.read_text().replace('up{job="vqwatch"} == 0', 'up{job="vqwatch"} === 0'))
    assert run("promtool", "check", "rules", broken).returncode != 0
