"""The exported rules under the real promtool: they load, they fire on the gallery's faults and on nothing else."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.rules.gallery import CASES, METRICS, RUN, START, Case, Key, Value, played, shipped_once, timeline
from tests.servers import require_server

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_rules import load
from vqwatch_rules.export import export
from vqwatch_rules.model import grades
from vqwatch_rules.promql import Timing

EVERY_SECOND = Timing(step_seconds=1.0, scrape_seconds=1.0)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = require_server("promtool")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)


def written(tmp_path: Path, text: str, name: str = "rules.yml") -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def exprs() -> dict[str, str]:
    groups = yaml.safe_load(export(shipped_once(), timing=EVERY_SECOND))["groups"]
    out: dict[str, str] = {}
    for group in groups:
        for rule in group["rules"]:
            out[rule["alert"]] = out.get(rule["alert"], "") + rule["expr"] + "\n"
    return out


def alone(tmp_path: Path, tests: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Write each alert's rules and tests to files of their own: promtool evaluates a file's every rule at each step."""
    groups = yaml.safe_load(export(shipped_once(), timing=EVERY_SECOND))["groups"]
    rules = [rule for one in groups for rule in one["rules"]]
    paths = []
    for alert, own in tests.items():
        only = {"groups": [{"name": alert, "rules": [rule for rule in rules if rule["alert"] == alert]}]}
        written(tmp_path, yaml.safe_dump(only, width=1_000_000), f"{alert}.rules.yml")
        unit = {"rule_files": [f"{alert}.rules.yml"], "evaluation_interval": "1s", "tests": own}
        paths.append(str(written(tmp_path, yaml.safe_dump(unit, width=1_000_000), f"{alert}.unit.yml")))
    return paths


def sample(value: float | None) -> str:
    if value is None:
        return "_"
    return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf").lstrip("+")


def series(
    case: Case, changes: Mapping[str | Key, Value], used: set[str], *, kind: str = "ema", start: int = START
) -> list[dict[str, str]]:
    """Return the timeline as promtool's input series, of the metrics that the rule uses."""
    total = case.before + case.steps
    columns: dict[Key, list[float | None]] = {}
    for index, (_, readings) in enumerate(timeline(case, changes, start)):
        for name in used & readings.keys():
            for labels, value in readings[name].items():
                columns.setdefault((name, labels), [None] * total)[index] = value
    for layer in ("0", "1"):
        columns["codebook_info", (layer, kind, "proposal")] = [1.0] * total
    out = []
    for (name, labels), values in columns.items():
        named = {"run": RUN} if CATALOGUE[name].per_run else {}
        named |= dict(zip(METRICS[name], labels, strict=True))
        text = ", ".join(f'{key}="{value}"' for key, value in named.items())
        out.append({"series": f"vqwatch_{name}{{{text}}}", "values": " ".join(sample(value) for value in values)})
    return out


def group(case: Case, changes: Mapping[str | Key, Value], name: str, expr: str, expected: list[str]) -> dict[str, Any]:
    """Return a promtool test group that expects these alerts, as ALERTS series, at the end of the timeline."""
    used = set(re.findall(r"vqwatch_([a-z0-9_]+)", expr))
    return {
        "name": name,
        "interval": "1s",
        "input_series": series(case, changes, used),
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{case.alert}", severity="{case.severity}", alertstate="firing"}}',
                "eval_time": f"{case.before + case.steps - 1}s",
                "exp_samples": [{"labels": labels, "value": 1} for labels in expected],
            }
        ],
    }


def fired_labels(case: Case) -> str:
    scope = next(rule.scope for rule in shipped_once().rules if rule.alert == case.alert)
    labels = {"alertname": case.alert, "alertstate": "firing", "severity": case.severity, **case.where}
    if scope == "run":
        labels["run"] = RUN
    return "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def test_promtool_has_nothing_to_say_about_the_rules(tmp_path: Path) -> None:
    path = written(tmp_path, export(shipped_once()))

    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))

    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


def test_every_rule_fires_and_stays_silent_in_prometheus_as_it_does_in_the_engine(tmp_path: Path) -> None:
    by_alert = exprs()
    tests: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        name, expr = f"{case.alert} {case.severity}", by_alert[case.alert]
        own = tests.setdefault(case.alert, [])
        own.append(group(case, case.sick, f"{name} fires", expr, [fired_labels(case)]))
        own.append(group(case, case.near, f"{name} is silent", expr, []))

    ran = promtool("test", "rules", *alone(tmp_path, tests))

    assert ran.returncode == 0, (ran.stdout + ran.stderr)[:4000]


def test_evidence_first_steps_and_kinds_of_codebooks_hold_in_prometheus_too(tmp_path: Path) -> None:
    by_alert = exprs()
    tests: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        rule = next(rule for rule in shipped_once().rules if rule.alert == case.alert)
        silent = group(case, case.sick, f"{case.alert} {case.severity}", by_alert[case.alert], [])
        used = set(re.findall(r"vqwatch_([a-z0-9_]+)", by_alert[case.alert]))
        own = tests.setdefault(case.alert, [])
        for gate in rule.evidence:
            own.append(silent | {"input_series": series(case, case.sick, used - {gate.metric})})
        if rule.codebook_kinds:
            own.append(silent | {"input_series": series(case, case.sick, used, kind="frozen")})
        if rule.after_step > case.before + case.steps:
            own.append(silent | {"input_series": series(case, case.sick, used, start=0)})

    ran = promtool("test", "rules", *alone(tmp_path, {alert: own for alert, own in tests.items() if own}))

    assert ran.returncode == 0, (ran.stdout + ran.stderr)[:4000]


def test_labels_and_texts_are_the_same_from_prometheus_and_from_the_engine(tmp_path: Path) -> None:
    by_alert = exprs()
    plain = ("VqDeadCodes", "VqPerplexityLow", "VqTrainerGone", "VqRankSilent", "VqLossNotFinite", "VqRevivalRateHigh")
    tests: dict[str, list[dict[str, Any]]] = {}
    for case in (case for case in CASES if case.alert in plain):
        expected = [
            {
                "exp_labels": {key: value for key, value in alert.labels.items() if key != "alertname"},
                "exp_annotations": dict(alert.annotations),
            }
            for alert in played(case, case.sick)
            if alert.name == case.alert
        ]
        one = group(case, case.sick, f"{case.alert} {case.severity}", by_alert[case.alert], [fired_labels(case)])
        one["alert_rule_test"] = [
            {
                "eval_time": f"{case.before + case.steps - 1}s",
                "alertname": case.alert,
                "exp_alerts": expected,
            }
        ]
        tests.setdefault(case.alert, []).append(one)

    ran = promtool("test", "rules", *alone(tmp_path, tests))

    assert ran.returncode == 0, (ran.stdout + ran.stderr)[:4000]


def test_the_clear_threshold_holds_an_alert_in_prometheus_too(tmp_path: Path) -> None:
    gauge = f'{{run="{RUN}", layer="0"}}'
    firing = f'ALERTS{{alertname="VqDeadCodes", alertstate="firing", layer="0", run="{RUN}", severity="warning"}}'
    dead = " ".join(["0.35"] * 80 + ["0.27"] * 40 + ["0.2"] * 20)
    test = {
        "interval": "1s",
        "input_series": [
            {"series": f"vqwatch_codebook_dead_ratio{gauge}", "values": dead},
            {"series": f'vqwatch_step{{run="{RUN}"}}', "values": "6000+1x139"},
        ],
        "promql_expr_test": [
            {
                "expr": 'ALERTS{alertname="VqDeadCodes", alertstate="firing"}',
                "eval_time": f"{second}s",
                "exp_samples": [{"labels": firing, "value": 1}] if expected else [],
            }
            for second, expected in ((40, False), (79, True), (115, True), (135, False))
        ],
    }

    ran = promtool("test", "rules", *alone(tmp_path, {"VqDeadCodes": [test]}))

    assert ran.returncode == 0, (ran.stdout + ran.stderr)[:4000]


def test_every_severity_is_exported_once() -> None:
    groups = yaml.safe_load(export(shipped_once()))["groups"]
    exported = [(rule["alert"], rule["labels"]["severity"]) for one in groups for rule in one["rules"]]

    assert sorted(exported) == sorted(
        (rule.alert, grade.severity) for rule in shipped_once().rules for grade in grades(rule)
    )


def test_every_metric_in_the_export_is_one_that_the_daemon_exposes() -> None:
    names = set(re.findall(r"\bvqwatch_([a-z0-9_]+)", "".join(exprs().values())))

    assert names <= METRICS.keys()


def test_steps_become_seconds_by_the_stated_step_time() -> None:
    groups = yaml.safe_load(export(shipped_once(), timing=Timing(step_seconds=0.25)))["groups"]
    held = {rule["alert"]: rule.get("for") for one in groups for rule in one["rules"]}

    assert held["VqMeanUtilizationLow"] == "12500ms"
    assert held["VqTrainerGone"] == "10s"


def test_a_prometheusrule_holds_the_same_groups() -> None:
    plain = yaml.safe_load(export(shipped_once()))
    custom = yaml.safe_load(export(shipped_once(), "prometheusrule"))

    assert (custom["apiVersion"], custom["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert custom["spec"] == plain


def test_every_kind_of_condition_is_exported_or_named_as_left_out(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
extends: nothing
rules:
  - {alert: VqFraction, severity: warning, annotations: {summary: S., description: D.},
     when: {metric: codebook_dead_ratio, is: above, threshold: 0.3, clear: 0.2, over: fraction, fraction: 0.5}}
  - {alert: VqFar, severity: warning, annotations: {summary: S., description: D.},
     when: {metric: gradient_norm, is: outside, low: 0.1, high: 5}}
  - {alert: VqOdd, severity: warning, annotations: {summary: S., description: D.},
     when: {metric: codebook_dead_ratio, is: outside, low: 0.1, high: 0.9, over: fraction, fraction: 0.5}}
  - {alert: VqWorst, severity: warning, annotations: {summary: S., description: D.}, labels: {team: audio},
     when: {metric: codebook_utilization_ratio, where: {layer: ["[0-3]", "!2"]}, is: below, threshold: 0.2, over: min}}
  - {alert: VqQuiet, severity: warning, annotations: {summary: S., description: D.},
     when: {metric: step, is: stale, longer_than: 5m}}
  - {alert: VqNothing, severity: warning, annotations: {summary: S., description: D.}, for: 1m,
     when: {metric: loss, is: missing}}
""",
        "mine.yaml",
    )
    text = export(load([file], METRICS))
    path = written(tmp_path, text)

    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))

    assert checked.returncode == 0, checked.stderr
    assert "5 rules found" in checked.stdout
    assert "# VqQuiet, warning: 'is: stale' of step is left out" in text
    assert "the separate clear threshold is left out" in text
    assert 'layer=~"[0-3]", layer!~"2"' in text
