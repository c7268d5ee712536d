"""Conditions as PromQL. Pure text; what cannot be said exactly comes with a remark, or not at all.

Steps become seconds by a stated step time. Prometheus sees one sample per scrape where the engine sees every step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vqwatch_rules.checks import label_names
from vqwatch_rules.conditions import (
    Above,
    All,
    Below,
    Between,
    Equals,
    Increase,
    Missing,
    NotFinite,
    OnMetric,
    OnValue,
    Outside,
    Slope,
    Spike,
    Stale,
)
from vqwatch_rules.durations import Span
from vqwatch_rules.model import Evidence, Grade, Rule
from vqwatch_rules.patterns import literal, split

PREFIX: Final = "vqwatch_"
_QUARTILES_PER_SIGMA: Final = 1.349
"""Distance between the quartiles of a normal distribution, in standard deviations; for symmetric scatter twice the
MAD."""
_FUNCTIONS: Final = {"mean": "avg", "min": "min", "max": "max"}


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a training step and a scrape interval are, in seconds."""

    step_seconds: float = 1.0
    scrape_seconds: float = 15.0

    def window(self, readings: int) -> float:
        """Return how many seconds hold that many readings, and at least 20 scrapes."""
        return max(readings * self.step_seconds, 20 * self.scrape_seconds)

    def samples(self, readings: int) -> int:
        """Return how many scrapes fall into that many readings; at least 3."""
        return max(3, int(readings * self.step_seconds / max(self.scrape_seconds, self.step_seconds)))


@dataclass(slots=True)
class Query:
    """PromQL for one severity of a rule; None when there is none. ``remarks`` say what it leaves out."""

    text: str | None
    remarks: list[str] = field(default_factory=list)


class _Unsayable(Exception):
    """PromQL has no words for this condition."""


def query(rule: Rule, grade: Grade, metrics: Mapping[str, Sequence[str]], timing: Timing) -> Query:
    """Return the alert expression of one severity."""
    remarks: list[str] = []
    writer = _Writer(rule, metrics, timing, remarks)
    try:
        return Query(writer.whole(grade), remarks)
    except _Unsayable as error:
        return Query(None, [str(error)])


def duration(seconds: float) -> str:
    """Write a duration as Prometheus reads it.

    >>> duration(90), duration(0.5), duration(3600)
    ('90s', '500ms', '1h')
    """
    milliseconds = max(1, round(seconds * 1000))
    for size, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
        if milliseconds % size == 0 and (unit == "s" or milliseconds == size or milliseconds >= 10 * size):
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


class _Writer:
    def __init__(self, rule: Rule, metrics: Mapping[str, Sequence[str]], timing: Timing, remarks: list[str]) -> None:
        self._rule = rule
        self._metrics = metrics
        self._timing = timing
        self._remarks = remarks
        self._of_run = ("run",) if rule.scope == "run" else ()
        self._labels = label_names(rule, metrics)

    def whole(self, grade: Grade) -> str:
        rule = self._rule
        when = grade.when
        text = self._all(when) if isinstance(when, All) else self._held(when, grade)
        for gate in rule.evidence:
            text += f"\nand {self._gate(gate)}"
        if rule.codebook_kinds and not isinstance(when, Missing):
            on = self._on("layer") if "layer" in self._labels else self._on()
            text += f'\nand {on} {PREFIX}codebook_info{{kind=~"{"|".join(rule.codebook_kinds)}"}}'
        if grade.after_step and self._of_run:
            text += f"\nand {self._on()} {PREFIX}step >= {grade.after_step}"
        return text

    def _on(self, *labels: str) -> str:
        return f"on ({', '.join((*self._of_run, *labels))})"

    def _by(self, *labels: str) -> str:
        names = (*self._of_run, *labels)
        return f" by ({', '.join(names)}) " if names else ""

    def _held(self, part: OnMetric, grade: Grade) -> str:
        """Return the condition; with a clear threshold of its own, an alert goes on until that is passed."""
        text = self._condition(part)
        if not isinstance(part, Above | Below) or part.clear is None or part.clear == part.threshold:
            return text
        if part.over == "fraction":
            self._remarks.append("the separate clear threshold is left out")
            return text
        value, healthy = self._value(part), "<=" if isinstance(part, Above) else ">="
        firing = f'ALERTS{{alertname="{self._rule.alert}", severity="{grade.severity}", alertstate="firing"}}'
        return (
            f"(\n  {text}\n  or\n  ({value} unless {value} {healthy} {_number(part.clear)})"
            f"\n  and {self._on(*self._labels)} {firing}\n)"
        )

    def _all(self, when: All) -> str:
        texts = []
        for number, part in enumerate(when.of):
            text = self._condition(part)
            kept = [name for name in self._own_labels(part) if name not in part.where]
            if part.where and not self._is_aggregate(part):
                text = f"max{self._by(*kept)}({text})"
            shared = [name for name in kept if name in self._labels]
            texts.append(f"({text})" if number == 0 else f"and {self._on(*shared)} ({text})")
        return "\n".join(texts)

    def _own_labels(self, part: OnMetric) -> Sequence[str]:
        return () if self._is_aggregate(part) else self._metrics[part.metric]

    @staticmethod
    def _is_aggregate(part: OnMetric) -> bool:
        return isinstance(part, OnValue) and part.over != "each"

    def _gate(self, gate: Evidence) -> str:
        own = self._metrics[gate.metric]
        shared = [name for name in own if name in self._labels]
        text = self._series(gate.metric, gate.where)
        if gate.times is not None:
            where = {label: own for label, own in gate.where.items() if label in self._metrics[gate.times]}
            text += f" / {self._series(gate.times, where)}"
        if len(shared) < len(own):
            text = f"min{self._by(*shared)}({text})"
        return f"{self._on(*shared)} {text} >= {_number(gate.at_least)}"

    def _series(self, metric: str, where: Mapping[str, Sequence[str]]) -> str:
        matchers = ", ".join(_matcher(label, patterns) for label, patterns in where.items())
        return f"{PREFIX}{metric}{{{matchers}}}" if matchers else f"{PREFIX}{metric}"

    def _single(self, part: OnValue) -> str:
        text = self._series(part.metric, part.where)
        if part.relative_to is None:
            return text
        own, other = self._metrics[part.metric], self._metrics[part.relative_to]
        base = self._series(part.relative_to, {})
        if tuple(own) == tuple(other):
            return f"{text} / {base}"
        return f"{text} / {self._on(*(name for name in other if name in own))} group_left () {base}"

    def _value(self, part: OnValue) -> str:
        text = self._single(part)
        if part.over == "each":
            return text if part.relative_to is None else f"({text})"
        return f"{_FUNCTIONS[part.over]}{self._by()}({text})"

    def _condition(self, part: OnMetric) -> str:
        if isinstance(part, OnValue):
            return self._fraction(part) if part.over == "fraction" else _compared(self._value(part), part, "")
        series = self._series(part.metric, part.where)
        if isinstance(part, NotFinite):
            return f"{series} unless abs({series}) < Inf"
        if isinstance(part, Increase):
            return f"increase({series}[{self._span(part.within)}]) > {_number(part.threshold)}"
        if isinstance(part, Slope):
            return self._slope(part, series)
        if isinstance(part, Missing):
            return self._missing(part, series)
        if isinstance(part, Stale):
            raise _Unsayable(
                f"'is: stale' of {part.metric} is left out: a scrape repeats the last value, so Prometheus cannot see "
                "when it was read"
            )
        return self._jump(part, series)

    def _span(self, span: Span) -> str:
        return duration(span.in_seconds(self._timing.step_seconds))

    def _fraction(self, part: OnValue) -> str:
        compared = _compared(
            self._single(part) if part.relative_to is None else f"({self._single(part)})", part, " bool"
        )
        return f"avg{self._by()}({compared}) >= {_number(part.fraction)}"

    def _jump(self, part: OnMetric, series: str) -> str:
        assert not isinstance(part, OnValue | All)
        up = isinstance(part, Spike)
        sign, side = ("+", ">") if up else ("-", "<")
        seconds = self._timing.window(getattr(part, "history", 0))
        window = f"{series}[{duration(seconds)}]"
        level = f"quantile_over_time(0.5, {window})"
        scatter = f"(quantile_over_time(0.75, {window}) - quantile_over_time(0.25, {window}))"
        deviations = getattr(part, "deviations", 0.0) / _QUARTILES_PER_SIGMA
        self._remarks.append("scatter is taken from the quartiles, which equal the MAD where it is symmetric")
        lines = [f"{series} {side} {level} {sign} {deviations:.4g} * {scatter}"]
        if change := getattr(part, "min_change", 0.0):
            lines.append(f"{series} {side} {level} {sign} {_number(change)}")
        if relative := getattr(part, "min_relative_change", 0.0):
            lines.append(f"{series} {side} {level} {sign} {_number(relative)} * abs({level})")
        lines.append(f"count_over_time({window}) >= {self._timing.samples(getattr(part, 'min_history', 0))}")
        return "\nand ".join(lines)

    def _slope(self, part: Slope, series: str) -> str:
        seconds = self._timing.window(part.history)
        window = f"{series}[{duration(seconds)}]"
        if part.relative:
            value = f"deriv({window}) * {_number(seconds)} / abs(avg_over_time({window}))"
        else:
            value = f"deriv({window}) * {_number(self._timing.step_seconds)}"
        if part.min_fit:
            self._remarks.append("how well the trend fits (min_fit) is left out")
        side, bound = (">", part.above) if part.above is not None else ("<", part.below)
        count = self._timing.samples(part.min_history)
        return f"{value} {side} {_number(bound)}\nand count_over_time({window}) >= {count}"

    def _missing(self, part: Missing, series: str) -> str:
        if not self._of_run:
            return f"absent({series})"
        if not self._labels:
            return f"count by (run) ({PREFIX}run_info) unless on (run) {series}"
        matchers = []
        if self._rule.codebook_kinds:
            matchers.append(f'kind=~"{"|".join(self._rule.codebook_kinds)}"')
        if "layer" in part.where:
            matchers.append(_matcher("layer", part.where["layer"]))
        announced = f"{PREFIX}codebook_info{{{', '.join(matchers)}}}" if matchers else f"{PREFIX}codebook_info"
        return f"count by (run, layer) ({announced}) unless on (run, layer) {series}"


def _compared(value: str, part: OnValue, mode: str) -> str:
    if isinstance(part, Above):
        return f"{value} >{mode} {_number(part.threshold)}"
    if isinstance(part, Below):
        return f"{value} <{mode} {_number(part.threshold)}"
    if isinstance(part, Equals):
        return f"{value} =={mode} {_number(part.value)}"
    if isinstance(part, Outside):
        low, high = f"{value} <{mode} {_number(part.low)}", f"{value} >{mode} {_number(part.high)}"
        return f"({low}) + ({high})" if mode else f"({low} or {high})"
    if isinstance(part, Between):
        low, high = f"{value} >={mode} {_number(part.low)}", f"{value} <={mode} {_number(part.high)}"
        return f"({low}) * ({high})" if mode else f"{low} <= {_number(part.high)}"
    raise TypeError(f"{type(part).__name__} compares no values")


def _number(value: float | None) -> str:
    if value is None:
        raise ValueError("a threshold is missing")
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{int(value)}" if value == int(value) and abs(value) < 1e15 else repr(value)


def _matcher(label: str, patterns: Sequence[str]) -> str:
    if len(patterns) == 1 and literal(patterns[0]):
        return f'{label}="{_quoted(patterns[0])}"'
    inside, outside = split(patterns)
    return ", ".join(
        f'{label}{sign}"{_quoted("|".join(_regex(pattern) for pattern in some))}"'
        for sign, some in (("=~", inside), ("!~", outside))
        if some
    )


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*|\?|\[[^\]]*\])", pattern)
    shell = {"*": ".*", "?": "."}
    return "".join(
        shell.get(part, part.replace("[!", "[^") if part.startswith("[") else re.escape(part)) for part in parts
    )


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
