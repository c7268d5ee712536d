"""What a condition makes of readings: one judge per condition, rule severity and run.

A judge returns a verdict (see `lifecycle`) per label set. ``low`` and ``high`` let the engine skip it cheaply: while
every value of the metric is finite and within [low, high], the condition holds for no series. Judges that remember
are in `memory`.

Non-finite readings: an infinity is compared as a number and may make a condition true; nothing non-finite ever
clears one. Only ``not_finite`` is about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeAlias

from vqwatch_rules.conditions import (
    Above,
    Below,
    Between,
    Equals,
    Missing,
    NotFinite,
    OnValue,
    Outside,
)
from vqwatch_rules.lifecycle import CLEARS, HOLDS, UNKNOWN, WITHIN

Labels: TypeAlias = tuple[str, ...]
Series: TypeAlias = Mapping[Labels, float]
Readings: TypeAlias = Mapping[str, Series]
Finding: TypeAlias = tuple[Labels, float, int]
Wanted: TypeAlias = Callable[[Labels], bool]
Compare: TypeAlias = Callable[[float], int]

_INF: Final = math.inf
_NONE: Final[Series] = {}


class Judge(Protocol):
    """A condition at work."""

    metric: str
    low: float
    high: float
    by_time: bool
    """Whether its verdict changes when nothing arrives."""

    def verdicts(self, latest: Readings, step: int, now: float, /) -> Iterable[Finding]:
        """Return (labels, value, verdict) for each series it has an opinion about."""


def comparison(part: OnValue) -> tuple[Compare, float, float]:
    """Return how a value is judged, and between which bounds it certainly does not hold."""
    if isinstance(part, Above):
        over, calm = given(part.threshold), part.clear if part.clear is not None else given(part.threshold)

        def above(value: float) -> int:
            if value > over:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS if value <= calm else WITHIN

        return above, -_INF, over
    if isinstance(part, Below):
        under, calm = given(part.threshold), part.clear if part.clear is not None else given(part.threshold)

        def below(value: float) -> int:
            if value < under:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS if value >= calm else WITHIN

        return below, under, _INF
    if isinstance(part, Outside):
        low, high = given(part.low), given(part.high)

        def outside(value: float) -> int:
            if value < low or value > high:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS

        return outside, low, high
    if isinstance(part, Between | Equals):
        first = given(part.value if isinstance(part, Equals) else part.low)
        last = given(part.value if isinstance(part, Equals) else part.high)

        def between(value: float) -> int:
            if first <= value <= last:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS

        # It cannot hold while the smallest value is above the interval; nothing cheap tells the other side.
        return between, math.nextafter(last, _INF), _INF
    raise TypeError(f"{type(part).__name__} compares no values")


def given(value: float | None) -> float:
    """Return a threshold that validation has made sure of."""
    if value is None:
        raise ValueError("a threshold is missing")
    return value


class ValueJudge:
    """Compares the newest values: each on its own, or one figure made of all."""

    by_time = False

    def __init__(self, part: OnValue, wanted: Wanted | None) -> None:
        self.metric = part.metric
        self._wanted = wanted
        self._over = part.over
        self._fraction = part.fraction or 0.0
        self._relative_to = part.relative_to
        self._compare, self.low, self.high = comparison(part)
        if part.relative_to is not None:
            self.low, self.high = _INF, -_INF

    def verdicts(self, latest: Readings, _step: int, _now: float, /) -> Iterable[Finding]:
        """Judge the metric's latest values."""
        series = latest.get(self.metric, _NONE)
        if self._wanted is not None:
            wanted = self._wanted
            series = {labels: value for labels, value in series.items() if wanted(labels)}
        if self._relative_to is not None:
            series = _divided(series, latest.get(self._relative_to, _NONE))
        compare = self._compare
        if self._over == "each":
            return [(labels, value, compare(value)) for labels, value in series.items()]
        return self._together(list(series.values())) if series else ()

    def _together(self, values: list[float]) -> tuple[Finding, ...]:
        if self._over == "fraction":
            verdicts = [self._compare(value) for value in values]
            needed = self._fraction * len(values)
            share = verdicts.count(HOLDS) / len(values)
            for verdict in (HOLDS, UNKNOWN, WITHIN):
                if sum(one >= verdict for one in verdicts) >= needed:
                    return (((), share, verdict),)
            return (((), share, CLEARS),)
        if any(value != value for value in values):
            return (((), math.nan, UNKNOWN),)
        if self._over == "mean":
            value = sum(values) / len(values)
        else:
            value = min(values) if self._over == "min" else max(values)
        return (((), value, self._compare(value)),)


def _divided(series: Series, by: Series) -> Series:
    alone = by.get(())
    out = {}
    for labels, value in series.items():
        base = by.get(labels, alone)
        if base:
            out[labels] = value / base
    return out


class FiniteJudge:
    """Looks for NaN and infinities."""

    low = -_INF
    high = _INF
    by_time = False

    def __init__(self, part: NotFinite, wanted: Wanted | None) -> None:
        self.metric = part.metric
        self._wanted = wanted

    def verdicts(self, latest: Readings, _step: int, _now: float, /) -> Iterable[Finding]:
        """Judge the metric's latest values."""
        return [
            (labels, value, HOLDS if value - value != 0.0 else CLEARS)
            for labels, value in latest.get(self.metric, _NONE).items()
            if self._wanted is None or self._wanted(labels)
        ]


class MissingJudge:
    """Looks for series that never came. ``expected`` returns the label sets that should be there."""

    low = -_INF
    high = _INF
    by_time = True

    def __init__(self, part: Missing, layer_at: int | None, expected: Callable[[], Iterable[Labels]]) -> None:
        self.metric = part.metric
        self._layer_at = layer_at
        self._expected = expected

    def verdicts(self, latest: Readings, _step: int, _now: float, /) -> Iterable[Finding]:
        """Judge every expected label set."""
        series = latest.get(self.metric, _NONE)
        if self._layer_at is None:
            return [((), 0.0, CLEARS if series else HOLDS)]
        seen = {labels[self._layer_at] for labels in series}
        return [(labels, 0.0, CLEARS if labels[0] in seen else HOLDS) for labels in self._expected()]


class AllJudge:
    """Joins several judges: true for a label set for which each is.

    ``keeps[i]`` are the positions of condition i's labels that stay, ``joins[i]`` where those stand in the first
    condition's kept labels. Of several series that fall together, the worst counts.
    """

    def __init__(
        self, judges: tuple[Judge, ...], keeps: tuple[tuple[int, ...], ...], joins: tuple[tuple[int, ...], ...]
    ) -> None:
        self.metric = judges[0].metric
        self.judges = judges
        self.by_time = any(judge.by_time for judge in judges)
        self.low, self.high = _INF, -_INF
        self._keeps = keeps
        self._joins = joins

    def verdicts(self, latest: Readings, step: int, now: float, /) -> Iterable[Finding]:
        """Join what the parts say; a label set that one part says nothing about is unknown."""
        first = self._fold(0, latest, step, now)
        if not first:
            return ()
        rest = [self._fold(index, latest, step, now) for index in range(1, len(self.judges))]
        out = []
        for labels, (value, verdict) in first.items():
            for found, join in zip(rest, self._joins[1:], strict=True):
                other = found.get(tuple(labels[position] for position in join))
                verdict = min(verdict, UNKNOWN if other is None else other[1])
            out.append((labels, value, verdict))
        return out

    def _fold(self, index: int, latest: Readings, step: int, now: float) -> dict[Labels, tuple[float, int]]:
        out: dict[Labels, tuple[float, int]] = {}
        keep = self._keeps[index]
        for labels, value, verdict in self.judges[index].verdicts(latest, step, now):
            key = tuple(labels[position] for position in keep)
            before = out.get(key)
            if before is None or verdict > before[1]:
                out[key] = (value, verdict)
        return out
