"""Every shipped rule fires on its fault, stays silent just this side of it, and is documented."""

from __future__ import annotations

import re

import pytest
from tests.rules.gallery import CASES, FACTS, METRICS, START, Case, played, shipped, shipped_once

from vqwatch_rules import LayerFacts, RunFacts, runbooks
from vqwatch_rules.model import SEVERITIES, Rule, grades

SECTIONS = ("## Meaning", "## Impact", "## Diagnosis", "## Mitigation")


def rule_of(case: Case) -> Rule:
    return next(rule for rule in shipped_once().rules if rule.alert == case.alert)


def name_of(case: Case) -> str:
    return f"{case.alert}-{case.severity}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_fault_raises_the_alert_with_its_labels(case: Case) -> None:
    fired = [alert for alert in played(case, case.sick) if (alert.name, alert.severity) == (case.alert, case.severity)]

    run = {} if rule_of(case).scope == "daemon" else {"run": "documents"}
    expected = {"alertname": case.alert, "severity": case.severity, **run, **case.where}
    assert [dict(alert.labels) for alert in fired] == [expected]
    assert "{{" not in fired[0].annotations["description"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_just_this_side_of_the_fault_the_rule_is_silent(case: Case) -> None:
    fired = [alert for alert in played(case, case.near) if (alert.name, alert.severity) == (case.alert, case.severity)]

    assert fired == []


def test_a_healthy_run_raises_nothing_at_all() -> None:
    assert played(Case("", "", {}, {}, steps=700), {}) == []


def test_a_healthy_run_from_its_first_step_raises_nothing_at_all() -> None:
    assert played(Case("", "", {}, {}, steps=700), {}, start=0) == []


@pytest.mark.parametrize("case", [case for case in CASES if rule_of(case).evidence], ids=name_of)
def test_without_evidence_a_rule_is_silent(case: Case) -> None:
    for gate in rule_of(case).evidence:
        assert not [alert for alert in played(case, case.sick, without=gate.metric) if alert.name == case.alert]


@pytest.mark.parametrize(
    "case", [case for case in CASES if rule_of(case).after_step > case.before + case.steps], ids=name_of
)
def test_before_its_first_step_a_rule_is_silent(case: Case) -> None:
    assert not [alert for alert in played(case, case.sick, start=0) if alert.name == case.alert]


@pytest.mark.parametrize("kind", ["frozen", "implicit"])
def test_rules_about_learning_leave_other_codebooks_alone(kind: str) -> None:
    facts = RunFacts(2, {name: LayerFacts(kind, 256, 64) for name in FACTS.layers})
    for case in CASES:
        if rule_of(case).codebook_kinds:
            assert not [alert for alert in played(case, case.sick, facts=facts) if alert.name == case.alert]


def test_every_severity_of_every_rule_has_its_case() -> None:
    wanted = {(rule.alert, grade.severity) for rule in shipped().rules for grade in grades(rule)}

    assert {(case.alert, case.severity) for case in CASES} == wanted


def test_rules_are_named_and_worded_alike() -> None:
    for rule in shipped().rules:
        assert re.fullmatch(r"Vq[A-Z][A-Za-z]+", rule.alert)
        assert re.fullmatch(r"[A-Z].*\.", rule.annotations.summary)
        assert "$" not in rule.annotations.summary, "a summary is the same for all alerts of a rule"
        assert rule.annotations.description.endswith(".")
        assert {grade.severity for grade in grades(rule)} <= set(SEVERITIES)


def test_only_what_ruins_a_run_asks_for_a_stop() -> None:
    stopping = {(rule.alert, grade.severity) for rule in shipped().rules for grade in grades(rule) if grade.action}

    assert stopping == {
        (name, "critical")
        for name in ("VqLossNotFinite", "VqGradientZero", "VqCodebookCollapse", "VqCodebookNotFinite")
    }


def test_runbooks_and_rules_are_one_to_one() -> None:
    assert {path.stem for path in runbooks().glob("*.md")} == {rule.alert for rule in shipped().rules}


@pytest.mark.parametrize("rule", shipped().rules, ids=lambda rule: str(rule.alert))
def test_a_runbook_has_its_sections_and_knows_its_metrics(rule: Rule) -> None:
    text = (runbooks() / f"{rule.alert}.md").read_text("utf-8")

    assert text.startswith(f"# {rule.alert}\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    for section in text.split("## ")[1:]:
        assert len(section.split()) >= 10, "a section says something"
    for name in re.findall(r"vqwatch_([a-z0-9_]+)", text):
        assert name in METRICS, f"{name} is no metric"
    for name in re.findall(r"\b(Vq[A-Z][A-Za-z]+)\b", text):
        assert name in {other.alert for other in shipped_once().rules}, f"{name} is no rule"


def test_the_cases_start_where_every_rule_is_awake() -> None:
    assert max(grade.after_step for rule in shipped().rules for grade in grades(rule)) <= START
