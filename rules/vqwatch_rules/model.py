"""A rule, as rule files write it: what it compares, how long it must hold, how bad it is, what people are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from vqwatch_rules.conditions import All, Condition, Number, OnMetric, Patterns, SpanField, Strict
from vqwatch_rules.durations import NOW, Span
from vqwatch_rules.template import Template

SEVERITIES: Final = ("critical", "warning", "info")
Severity: TypeAlias = Literal["critical", "warning", "info"]
CODEBOOK_KINDS: Final = ("ema", "learned", "frozen", "implicit")
CodebookKind: TypeAlias = Literal["ema", "learned", "frozen", "implicit"]
RESERVED_LABELS: Final = frozenset({"alertname", "severity", "run"})


def _template(text: str) -> str:
    Template(text)
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_template)]
AlertName = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=100)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class Evidence(Strict):
    """A gate: the rule has no opinion until ``metric`` is at least ``at_least`` (times the reading of ``times``).

    Readings are matched by the labels that the metric shares with the alert; there has to be one, and all have to
    pass.
    """

    metric: str
    at_least: Number
    times: str | None = None
    where: dict[str, Patterns] = Field(default_factory=dict)


class Level(Strict):
    """What one severity of a rule has of its own; whatever is left out comes from the rule."""

    threshold: Number | None = None
    clear: Number | None = None
    low: Number | None = None
    high: Number | None = None
    value: Number | None = None
    deviations: Number | None = None
    min_change: Number | None = None
    min_relative_change: Number | None = None
    above: Number | None = None
    below: Number | None = None
    min_fit: Number | None = None
    longer_than: SpanField | None = None
    intervals: Number | None = None
    for_: SpanField | None = Field(default=None, alias="for")
    keep_firing_for: SpanField | None = None
    after_step: int | None = Field(default=None, ge=0)
    action: Literal["stop", "none"] | None = None


class Annotations(Strict):
    """What people read. ``summary`` is one sentence and the same for all alerts of a rule."""

    summary: Text
    description: Text
    runbook_url: str | None = None


class Rule(Strict):
    """One alert and all its severities.

    ``scope`` says what it is about: a run, or the daemon itself.
    ``codebook_kinds`` keeps layers of other kinds out; a rule without layers then needs a run that has such a layer.
    """

    alert: AlertName
    when: Condition
    severity: Severity | None = None
    severities: dict[Severity, Level] = Field(default_factory=dict)
    for_: SpanField = Field(default=NOW, alias="for")
    keep_firing_for: SpanField = NOW
    after_step: int = Field(default=0, ge=0)
    evidence: tuple[Evidence, ...] = ()
    codebook_kinds: tuple[CodebookKind, ...] = ()
    scope: Literal["run", "daemon"] = "run"
    action: Literal["stop", "none"] = "none"
    labels: dict[LabelName, str] = Field(default_factory=dict)
    annotations: Annotations

    @model_validator(mode="after")
    def _has_a_severity(self) -> Self:
        if bool(self.severity) == bool(self.severities):
            raise ValueError("a rule has either 'severity: warning' or 'severities: {warning: ..., critical: ...}'")
        if taken := RESERVED_LABELS & self.labels.keys():
            raise ValueError(f"label {min(taken)!r} is set by the engine")
        return self


@dataclass(frozen=True, slots=True)
class Grade:
    """One severity of a rule with everything it needs, worked out."""

    severity: Severity
    when: Condition
    hold: Span
    keep: Span
    after_step: int
    action: str


_OWN_KEYS: Final = frozenset({"for_", "keep_firing_for", "after_step", "action"})


def grades(rule: Rule) -> tuple[Grade, ...]:
    """Return the rule's severities, worst first, each with its own thresholds put into the condition.

    Raises:
        ValueError: a severity sets a key that the condition does not have, or makes it impossible.
    """
    if rule.severity is not None:
        levels: Mapping[Severity, Level] = {rule.severity: Level()}
    else:
        levels = rule.severities
    out = []
    for severity in SEVERITIES:
        if severity not in levels:
            continue
        level = levels[severity]
        out.append(
            Grade(
                severity=severity,
                when=_with(rule.when, severity, level),
                hold=rule.for_ if level.for_ is None else level.for_,
                keep=rule.keep_firing_for if level.keep_firing_for is None else level.keep_firing_for,
                after_step=rule.after_step if level.after_step is None else level.after_step,
                action="stop" if (level.action or rule.action) == "stop" else "",
            )
        )
    return tuple(out)


def _with(when: Condition, severity: str, level: Level) -> Condition:
    own = {key: value for key, value in level if value is not None and key not in _OWN_KEYS}
    if strange := [key for key in own if key not in when.thresholds]:
        allowed = ", ".join(when.thresholds) or "none"
        raise ValueError(
            f"severity {severity} sets {strange[0]!r}, which 'is: {when.is_}' does not have (it has: {allowed})"
        )
    if not own:
        return when
    raw: dict[str, Any] = {
        ("is" if key == "is_" else key): value for key, value in when if key in when.model_fields_set
    }
    return type(when).model_validate({**raw, "is": when.is_, **own})


def conditions(when: Condition) -> tuple[OnMetric, ...]:
    """Return the single conditions: the parts of an ``all``, or the condition itself."""
    return when.of if isinstance(when, All) else (when,)
