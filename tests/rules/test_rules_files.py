"""Rule files: what they can say, how they build on the shipped pack, and what a mistake is answered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.rules.gallery import METRICS

from vqwatch_rules import RuleError, RuleSet, default_pack, load
from vqwatch_rules.durations import Span, parse_span
from vqwatch_rules.model import Rule, grades
from vqwatch_rules.template import Template

HEAD = "extends: nothing\nrules:\n"
GOOD = """\
  - alert: VqMine
    when: {metric: gradient_norm, is: above, threshold: 3}
    severity: warning
    annotations: {summary: S., description: D.}
"""
File = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


def complaint(*paths: Path) -> str:
    with pytest.raises(RuleError) as caught:
        load(paths, METRICS)
    return str(caught.value).replace(str(paths[0].parent) + "/", "")


def named(ruleset: RuleSet, name: str) -> Rule:
    return next(rule for rule in ruleset.rules if rule.alert == name)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return HEAD + GOOD.replace(old, new)


MISTAKES = {
    "an unknown metric": (
        changed("gradient_norm", "gradient_nrm"),
        "mine.yaml:4: VqMine.when.metric: unknown metric 'gradient_nrm'; did you mean 'gradient_norm'",
    ),
    "a metric with the prefix of Prometheus": (
        changed("gradient_norm", "vqwatch_gradient_norm"),
        "mine.yaml:4: VqMine.when.metric: metrics are named without 'vqwatch_': 'gradient_norm'",
    ),
    "an unknown key": (
        changed("threshold: 3", "treshold: 3"),
        "mine.yaml:4: VqMine.when.treshold: unknown key 'treshold'; did you mean 'threshold'?",
    ),
    "an unknown key of a rule": (
        changed("severity: warning", "severity: warning\n    fro: 3 steps"),
        "mine.yaml:6: VqMine.fro: unknown key 'fro'; did you mean 'for'",
    ),
    "an unknown key of the file": (
        HEAD + GOOD + "rulez: []\n",
        "mine.yaml:7: rulez: unknown key 'rulez'; did you mean 'rules'?",
    ),
    "an unknown condition": (
        changed("is: above", "is: abov"),
        "mine.yaml:4: VqMine.when: unknown condition 'abov'; did you mean 'above'?",
    ),
    "no condition": (
        changed("is: above, ", ""),
        "mine.yaml:4: VqMine.when: a condition says what it compares with 'is'",
    ),
    "an unknown label": (
        changed("threshold: 3", "threshold: 3, where: {layr: '1'}"),
        "mine.yaml:4: VqMine.when.where.layr: unknown label of gradient_norm 'layr'; none is allowed here",
    ),
    "an unknown severity": (changed("severity: warning", "severity: urgent"), "mine.yaml:5: VqMine.severity: "),
    "a severity that nobody knows among several": (
        changed("severity: warning", "severities: {urgent: {threshold: 3}}"),
        "mine.yaml:5: VqMine.severities.urgent: unknown severity 'urgent'; allowed: critical, info, warning",
    ),
    "nan as a threshold": (changed("threshold: 3", "threshold: .nan"), "VqMine.when.threshold: nan is no threshold"),
    "an infinite threshold": (changed("threshold: 3", "threshold: .inf"), "use 'is: not_finite'"),
    "text as a threshold": (changed("threshold: 3", "threshold: high"), "VqMine.when.threshold: 'high' is no number"),
    "yes as a threshold": (changed("threshold: 3", "threshold: yes"), "True is no number"),
    "no threshold": (changed(", threshold: 3", ""), "VqMine.when.threshold: 'is: above' needs 'threshold'"),
    "a ratio above 1": (
        changed("gradient_norm, is: above, threshold: 3", "codebook_dead_ratio, is: above, threshold: 30"),
        "mine.yaml:4: VqMine.when.threshold: 30 is impossible: codebook_dead_ratio is between 0 and 1",
    ),
    "what can never be": (
        changed("gradient_norm, is: above, threshold: 3", "codebook_dead_ratio, is: above, threshold: 1"),
        "can never be above 1: codebook_dead_ratio is between 0 and 1",
    ),
    "a count below nothing": (
        changed("gradient_norm, is: above", "messages_lost_total, is: below").replace("threshold: 3", "threshold: 0"),
        "can never be below 0",
    ),
    "a clear threshold on the wrong side": (
        changed("threshold: 3", "threshold: 3, clear: 4"),
        "clear (4) has to be at or below the threshold (3)",
    ),
    "severities the wrong way round": (
        changed("severity: warning", "severities: {warning: {threshold: 5}, critical: {threshold: 4}}"),
        "mine.yaml:5: VqMine.severities.critical.threshold: critical at 4 would be reached before warning at 5",
    ),
    "a key that the condition does not have": (
        changed("severity: warning", "severities: {warning: {deviations: 5}}"),
        "severity warning sets 'deviations', which 'is: above' does not have (it has: threshold, clear)",
    ),
    "two kinds of severity": (
        changed("severity: warning", "severity: warning\n    severities: {info: {}}"),
        "either 'severity: warning' or 'severities:",
    ),
    "a span without a unit": (
        changed("severity: warning", "severity: warning\n    for: 30"),
        "mine.yaml:6: VqMine.for: 30 is no span; write steps ('50 steps') or time ('30s', '1m30s', '2h')",
    ),
    "a template that Prometheus would run": (
        changed("description: D.", "description: '{{ query \"up\" }}'"),
        'mine.yaml:6: VqMine.annotations.description: {{ query "up" }} is not understood; there are $value',
    ),
    "a label that the alert does not have": (
        changed("description: D.", "description: '{{ $labels.layer }}'"),
        "VqMine.annotations.description: unknown label 'layer'; allowed: alertname, run, severity",
    ),
    "a label that the engine sets": (
        changed("severity: warning", "severity: warning\n    labels: {run: mine}"),
        "label 'run' is set by the engine",
    ),
    "no summary": (changed("summary: S., ", ""), "mine.yaml:6: VqMine.annotations.summary: 'summary' is missing"),
    "a name twice": (HEAD + GOOD + GOOD, "mine.yaml:7: alert: 'VqMine' is already defined at mine.yaml:3"),
    "a shipped name": (
        "rules:\n" + GOOD.replace("VqMine", "VqSnrLow"),
        "alert: 'VqSnrLow' is already defined at",
    ),
    "no name": (HEAD + GOOD.replace("alert: VqMine", "labels: {}"), "mine.yaml:3: alert: a rule needs a name"),
    "a key twice": (changed("threshold: 3}", "threshold: 3, threshold: 4}"), "mine.yaml:4: threshold: written twice"),
    "a change of what is not there": (
        "override: {VqSnrLo: off}\n",
        "mine.yaml:1: override.VqSnrLo: unknown rule 'VqSnrLo'; did you mean 'VqSnrLow'",
    ),
    "a change that makes no sense": (
        "override:\n  VqDeadCodes:\n    severities:\n      warning: {threshold: 0.9}\n",
        "critical at 0.4 would be reached before warning at 0.9",
    ),
    "a change for one run that makes no sense": (
        "runs:\n  - match: x-*\n    override:\n      VqSnrLow: {after_step: -3}\n",
        "mine.yaml:4: VqSnrLow.after_step: ",
    ),
    "a list": ("- 1\n", "mine.yaml:1: a rule file is a mapping"),
    "no YAML": ("rules: [\n", "mine.yaml:2: not YAML: "),
    "a tag": (
        "rules: !!python/object/apply:os.system [ls]\n",
        "mine.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system is not",
    ),
    "all of one": (
        changed(
            "{metric: gradient_norm, is: above, threshold: 3}",
            "{is: all, of: [{metric: step, is: above, threshold: 3}]}",
        ),
        "VqMine.when.of: ",
    ),
    "a mistake within all": (
        changed(
            "{metric: gradient_norm, is: above, threshold: 3}",
            "\n      is: all\n      of:\n        - {metric: step, is: above, threshold: 3}\n"
            "        - {metric: stp, is: above, threshold: 3}",
        ),
        "mine.yaml:8: VqMine.when.of.1.metric: unknown metric 'stp'; did you mean 'step'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_place_key_and_what_is_right(file: File, mistake: str) -> None:
    text, expected = MISTAKES[mistake]

    assert expected in complaint(file(text))


def test_all_mistakes_are_told_at_once(file: File) -> None:
    first = file(
        HEAD + GOOD.replace("gradient_norm", "gradient_nrm") + GOOD.replace("VqMine", "VqTwo").replace("above", "abov")
    )

    assert len(complaint(first).splitlines()) == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "gone.yaml: cannot be read: No such file" in complaint(tmp_path / "gone.yaml")


def test_without_files_there_is_the_shipped_pack() -> None:
    assert len(load([], METRICS).rules) > 40


def test_a_file_adds_to_the_shipped_pack_unless_it_says_otherwise(file: File) -> None:
    shipped = len(load([], METRICS).rules)

    assert len(load([file("rules:\n" + GOOD)], METRICS).rules) == shipped + 1
    assert len(load([file(HEAD + GOOD)], METRICS).rules) == 1


def test_a_directory_is_read_in_order_of_names(file: File, tmp_path: Path) -> None:
    file("override: {VqMine: {when: {threshold: 7}}}\n", "20-change.yaml")
    file("rules:\n" + GOOD, "10-rules.yml")
    file("not a rule file", "notes.txt")

    assert named(load([tmp_path], METRICS), "VqMine").when.threshold == 7  # type: ignore[union-attr]


def test_an_override_changes_what_it_names_and_nothing_else(file: File) -> None:
    before = named(load([], METRICS), "VqDeadCodes")
    after = named(
        load([file("override: {VqDeadCodes: {severities: {warning: {threshold: 0.35}}}}\n")], METRICS), "VqDeadCodes"
    )

    assert [grade.when.threshold for grade in grades(after)] == [0.4, 0.35]  # type: ignore[union-attr]
    assert after.model_dump(exclude={"severities"}) == before.model_dump(exclude={"severities"})


def test_rules_and_single_severities_can_be_switched_off(file: File) -> None:
    ruleset = load([file("override: {VqSnrLow: off, VqDeadCodes: {severities: {critical: off}}}\n")], METRICS)

    assert "VqSnrLow" not in {rule.alert for rule in ruleset.rules}
    assert [grade.severity for grade in grades(named(ruleset, "VqDeadCodes"))] == ["warning"]


def test_runs_that_match_a_pattern_have_rules_of_their_own(file: File) -> None:
    path = file(
        "runs:\n"
        "  - {match: 'a-*', override: {VqSnrLow: off}}\n"
        "  - {match: '*-2', override: {VqDeadCodes: {after_step: 7}}}\n"
    )
    ruleset = load([path], METRICS)

    assert ruleset.for_run("b-1") == ruleset.rules
    assert "VqSnrLow" not in {rule.alert for rule in ruleset.for_run("a-2")}
    assert {rule.after_step for rule in ruleset.for_run("a-2") if rule.alert == "VqDeadCodes"} == {7}


def test_the_base_of_runbook_links_is_the_callers_then_the_files_then_the_daemon(file: File) -> None:
    path = file("runbook_base: https://wiki/vq/\n")
    rulesets = (load([path], METRICS, runbook_base="https://docs/"), load([path], METRICS), load([], METRICS))

    assert [ruleset.runbook_url(named(ruleset, "VqSnrLow")) for ruleset in rulesets] == [
        "https://docs/VqSnrLow",
        "https://wiki/vq/VqSnrLow",
        "/runbooks/VqSnrLow",
    ]


def test_the_shipped_pack_is_a_file_among_others() -> None:
    assert default_pack().is_file()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("50 steps", Span(steps=50)),
        ("1 step", Span(steps=1)),
        ("30s", Span(seconds=30)),
        ("1.5s", Span(seconds=1.5)),
        ("250ms", Span(seconds=0.25)),
        ("1d2h3m4s", Span(seconds=93784)),
        (0, Span()),
    ],
)
def test_a_span_is_read(text: object, span: Span) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "steps", "-3 steps", "3", 3, True, "5 m", "1s1m", None, "1.5 steps"])
def test_what_is_no_span_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no span"):
        parse_span(text)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{{ $value }}", 1.0, "1"),
        ("{{$value}}", 0.1, "0.1"),
        ("{{ $value | humanize }}", 1536.0, "1.536k"),
        ("{{ $value | humanize }}", -0.00042, "-420u"),
        ("{{ $value | humanizePercentage }}", 1.0, "100%"),
        ("{{ $value | humanizeDuration }}", 86461.0, "1d 0h 1m 1s"),
        ('{{ printf "%.2f dB" $value }}', 1.239, "1.24 dB"),
        ("{{ $value | humanize }}", float("inf"), "+Inf"),
        ("{{ $labels.layer }}/{{ $labels.none }}", 0.0, "3/"),
    ],
)
def test_a_template_is_filled_in_as_prometheus_does(text: str, value: float, expected: str) -> None:
    assert Template(text).render(value, {"layer": "3"}) == expected


@pytest.mark.parametrize(
    "text", ["{{ $value", "{{ $value | nothing }}", "{{ $externalURL }}", "{{ $labels.a | humanize }}", "}}"]
)
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Template(text)
