"""From a rule as it is written to what the engine evaluates for one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vqwatch_rules.alerts import RunFacts
from vqwatch_rules.checks import label_names
from vqwatch_rules.conditions import (
    All,
    Drop,
    Increase,
    Missing,
    NotFinite,
    OnMetric,
    OnValue,
    Slope,
    Spike,
    Stale,
)
from vqwatch_rules.judges import AllJudge, FiniteJudge, Judge, Labels, MissingJudge, Readings, ValueJudge, Wanted
from vqwatch_rules.lifecycle import Record
from vqwatch_rules.memory import IncreaseJudge, JumpJudge, SlopeJudge, StaleJudge
from vqwatch_rules.model import Evidence, Grade, Rule, grades
from vqwatch_rules.patterns import matches
from vqwatch_rules.template import Template

Names: TypeAlias = Mapping[str, tuple[str, ...]]
Facts: TypeAlias = Callable[[], RunFacts | None]


@dataclass(slots=True)
class Gate:
    """Evidence at work: see `model.Evidence`."""

    evidence: Evidence
    matches: tuple[tuple[int, int], ...]
    """Which position of the gate's labels has to equal which position of the alert's."""
    wanted: Wanted | None
    own_series: bool = False
    """Whether the evidence can only be the series that has the alert's own labels."""

    def passes(self, labels: Labels, latest: Readings) -> bool:
        """Tell whether there is enough evidence for the alert with these labels."""
        found = False
        scale = latest.get(self.evidence.times, {}) if self.evidence.times is not None else None
        series = latest.get(self.evidence.metric, {})
        if self.own_series:  # no need to look at the others
            if labels not in series or (self.wanted is not None and not self.wanted(labels)):
                return False
            times = 1.0 if scale is None else scale.get(labels, scale.get((), float("nan")))
            return series[labels] >= self.evidence.at_least * times
        for own, value in series.items():
            if any(own[mine] != labels[theirs] for mine, theirs in self.matches):
                continue
            if self.wanted is not None and not self.wanted(own):
                continue
            times = 1.0 if scale is None else scale.get(own, scale.get((), float("nan")))
            if not value >= self.evidence.at_least * times:
                return False
            found = True
        return found


@dataclass(slots=True)
class Watch:
    """One severity of one rule, for one run, with the alerts that it has pending or firing."""

    rule: Rule
    grade: Grade
    judge: Judge
    gates: tuple[Gate, ...]
    label_names: tuple[str, ...]
    summary: Template
    description: Template
    runbook_url: str
    records: dict[Labels, Record]
    applies: Callable[[], bool]


class Selection:
    """Which series of a metric a condition is about: those that match ``where``, of codebooks of the right kind.

    Answers are kept, because there are few label sets and they come at every step.
    """

    def __init__(self, part: OnMetric | Evidence, kinds: tuple[str, ...], names: tuple[str, ...], facts: Facts) -> None:
        self._patterns = tuple((names.index(label), patterns) for label, patterns in part.where.items())
        self._kinds = frozenset(kinds)
        self._layer_at = names.index("layer") if "layer" in names and kinds else None
        self._facts = facts
        self._known: dict[Labels, bool] = {}
        self._for: RunFacts | None = None

    def __bool__(self) -> bool:
        return bool(self._patterns) or self._layer_at is not None

    def __call__(self, labels: Labels) -> bool:
        """Tell whether the series with these labels is meant."""
        facts = self._facts()
        if facts is not self._for or len(self._known) > 8192:
            self._known.clear()
            self._for = facts
        known = self._known.get(labels)
        if known is None:
            known = self._known[labels] = self._decide(labels, facts)
        return known

    def _decide(self, labels: Labels, facts: RunFacts | None) -> bool:
        for position, patterns in self._patterns:
            if not matches(labels[position], patterns):
                return False
        if self._layer_at is None:
            return True
        layer = facts.layers.get(labels[self._layer_at]) if facts is not None else None
        return layer is not None and layer.kind in self._kinds


def compiled(rule: Rule, names: Names, runbook_url: str, facts: Facts) -> list[Watch]:
    """Return a `Watch` per severity of the rule, worst first; ``facts`` tells what the run has said of itself."""
    labels = label_names(rule, names)
    gates = tuple(_gate(gate, labels, names, facts) for gate in rule.evidence)

    def applies() -> bool:
        if not rule.codebook_kinds:
            return True
        known = facts()
        return known is not None and any(layer.kind in rule.codebook_kinds for layer in known.layers.values())

    return [
        Watch(
            rule=rule,
            grade=grade,
            judge=_judge(grade, rule.codebook_kinds, names, facts),
            gates=gates,
            label_names=labels,
            summary=Template(rule.annotations.summary),
            description=Template(rule.annotations.description),
            runbook_url=runbook_url,
            records={},
            applies=applies,
        )
        for grade in grades(rule)
    ]


def _gate(gate: Evidence, labels: tuple[str, ...], names: Names, facts: Facts) -> Gate:
    own = names[gate.metric]
    matches = tuple((mine, labels.index(name)) for mine, name in enumerate(own) if name in labels)
    selection = Selection(gate, (), own, facts)
    return Gate(gate, matches, selection or None, own == labels)


def _judge(grade: Grade, kinds: tuple[str, ...], names: Names, facts: Facts) -> Judge:
    when = grade.when
    if not isinstance(when, All):
        return _single(when, kinds, names, facts)
    judges = tuple(_single(part, kinds, names, facts) for part in when.of)
    kept = [tuple(name for name in _labels(part, names) if name not in part.where) for part in when.of]
    keeps = tuple(
        tuple(_labels(part, names).index(name) for name in own if name in kept[0])
        for part, own in zip(when.of, kept, strict=True)
    )
    joins = tuple(tuple(kept[0].index(name) for name in own if name in kept[0]) for own in kept)
    return AllJudge(judges, keeps, joins)


def _labels(part: OnMetric, names: Names) -> tuple[str, ...]:
    if isinstance(part, OnValue) and part.over != "each":
        return ()
    if isinstance(part, Missing):
        return ("layer",) if "layer" in names[part.metric] else ()
    return names[part.metric]


def _single(part: OnMetric, kinds: tuple[str, ...], names: Names, facts: Facts) -> Judge:
    own = names[part.metric]
    selection = Selection(part, kinds, own, facts)
    wanted = selection or None
    if isinstance(part, OnValue):
        return ValueJudge(part, wanted)
    if isinstance(part, NotFinite):
        return FiniteJudge(part, wanted)
    if isinstance(part, Spike | Drop):
        return JumpJudge(part, wanted)
    if isinstance(part, Slope):
        return SlopeJudge(part, wanted)
    if isinstance(part, Increase):
        return IncreaseJudge(part, wanted)
    if isinstance(part, Stale):
        return StaleJudge(part, wanted)
    if isinstance(part, Missing):
        return MissingJudge(part, own.index("layer") if "layer" in own else None, _expected(part, kinds, facts))
    raise TypeError(f"no judge for {type(part).__name__}")


def _expected(part: Missing, kinds: tuple[str, ...], facts: Facts) -> Callable[[], Iterable[Labels]]:
    patterns = part.where.get("layer", ("*",))

    def expected() -> Iterable[Labels]:
        known = facts()
        for name, layer in known.layers.items() if known is not None else ():
            if (not kinds or layer.kind in kinds) and matches(name, patterns):
                yield (name,)

    return expected
