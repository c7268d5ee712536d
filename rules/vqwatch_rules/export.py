"""The rules as Prometheus alerting rules, for those who evaluate there, or as the operator's PrometheusRule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, TypeAlias

import yaml

from vqwatch_rules.load import DEFAULT_RUNBOOK_BASE, RuleSet
from vqwatch_rules.model import Grade, Rule, grades
from vqwatch_rules.promql import Timing, duration, query

Form: TypeAlias = Literal["prometheus", "prometheusrule"]

_GROUPS: Final = (("vqwatch.run", "run"), ("vqwatch.daemon", "daemon"))


def export(ruleset: RuleSet, form: Form = "prometheus", *, timing: Timing | None = None) -> str:
    """Return the rules as YAML.

    Spans in steps become seconds by ``timing.step_seconds``. Rules that PromQL cannot express are left out with a
    comment in their place; what an expression leaves out stands above it. `runs:` sections of rule files are not
    exported.

    Args:
        ruleset: what to export; its ``runbook_base`` should be an absolute URL, because Alertmanager shows it.
        form: a rule file for ``rule_files``, or a PrometheusRule object for the Prometheus operator.
        timing: how long a step and a scrape interval take; default: 1 s and 15 s.
    """
    timing = timing or Timing()
    lines = [
        f"# Alerting rules of vqwatch for training steps of {timing.step_seconds:g} s and a scrape interval of "
        f"{timing.scrape_seconds:g} s.",
        "# Prometheus sees the state at each scrape, the daemon every step: what happens between two scrapes is lost,",
        "# an alert on a reading that turns NaN ends here (the daemon holds it), and alerts of a run that ended go on",
        "# until the daemon forgets the run. That a daemon is down is told by deploy/prometheus/rules/meta-alerts.yml.",
    ]
    if ruleset.runbook_base == DEFAULT_RUNBOOK_BASE:
        lines.append("# runbook_url is a path on the daemon: give --runbook-base to make it a link.")
    indent = ""
    if form == "prometheusrule":
        lines += _dump(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PrometheusRule",
                "metadata": {"name": "vqwatch", "labels": {"app.kubernetes.io/name": "vqwatch"}},
            },
            "",
        )
        lines.append("spec:")
        indent = "  "
    lines.append(f"{indent}groups:")
    for name, scope in _GROUPS:
        rules = [rule for rule in ruleset.rules if rule.scope == scope]
        if rules:
            lines += [f"{indent}- name: {name}", f"{indent}  rules:"]
            for rule in rules:
                lines += _rule(ruleset, rule, timing, f"{indent}  ")
    return "\n".join(lines) + "\n"


def _rule(ruleset: RuleSet, rule: Rule, timing: Timing, indent: str) -> Iterator[str]:
    for grade in grades(rule):
        found = query(rule, grade, ruleset.metrics, timing)
        for remark in found.remarks:
            yield f"{indent}# {rule.alert}, {grade.severity}: {remark}."
        if found.text is not None:
            yield from _dump([_entry(ruleset, rule, grade, found.text, timing)], indent)


def _entry(ruleset: RuleSet, rule: Rule, grade: Grade, text: str, timing: Timing) -> dict[str, Any]:
    entry: dict[str, Any] = {"alert": rule.alert, "expr": text}
    if grade.hold:
        entry["for"] = duration(grade.hold.in_seconds(timing.step_seconds))
    if grade.keep:
        entry["keep_firing_for"] = duration(grade.keep.in_seconds(timing.step_seconds))
    entry["labels"] = {"severity": grade.severity, **rule.labels}
    entry["annotations"] = {
        "summary": rule.annotations.summary,
        "description": rule.annotations.description,
        "runbook_url": ruleset.runbook_url(rule),
    }
    return entry


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dump(value: Any, indent: str) -> list[str]:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return [indent + line if line else line for line in text.rstrip("\n").split("\n")]
