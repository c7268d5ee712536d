"""What a condition makes of readings: one judge per condition, rule severity and run.

A judge returns a verdict (see `lifecycle`) per label set. ``low`` and ``high`` let the engine skip it cheaply: while
every value of the metric is finite and within [low, high], the condition holds for no series. Judges with a memory
(spike, drop, slope, increase, stale) are fed every reading of their metric.

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
    Drop,
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
from vqwatch_rules.history import Baseline, Growth, Rhythm, Trend
from vqwatch_rules.lifecycle import CLEARS, HOLDS, UNKNOWN, WITHIN

Labels: TypeAlias = tuple[str, ...]
Series: TypeAlias = Mapping[Labels, float]
Readings: TypeAlias = Mapping[str, Series]
Finding: TypeAlias = tuple[Labels, float, int]
Wanted: TypeAlias = Callable[[Labels], bool]
Compare: TypeAlias = Callable[[float], int]

MAX_SERIES: Final = 4096
_INF: Final = math.inf
_NONE: Final[Series] = {}


class Judge(Protocol):
    """A condition at work."""

    metric: str
    low: float
    high: float
    remembers: bool
    """Whether it has to be fed."""
    by_time: bool
    """Whether its verdict changes when nothing arrives."""

    def feed(self, series: Series, step: int, now: float) -> None:
        """Take the metric's new readings into the memory."""

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
        """Return (labels, value, verdict) for each series it has an opinion about."""

    def forget(self) -> None:
        """The run began again: what was remembered is no longer about it."""


def comparison(part: OnValue) -> tuple[Compare, float, float]:
    """Return how a value is judged, and between which bounds it certainly does not hold."""
    if isinstance(part, Above):
        over, calm = _given(part.threshold), part.clear if part.clear is not None else _given(part.threshold)

        def above(value: float) -> int:
            if value > over:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS if value <= calm else WITHIN

        return above, -_INF, over
    if isinstance(part, Below):
        under, calm = _given(part.threshold), part.clear if part.clear is not None else _given(part.threshold)

        def below(value: float) -> int:
            if value < under:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS if value >= calm else WITHIN

        return below, under, _INF
    if isinstance(part, Outside):
        low, high = _given(part.low), _given(part.high)

        def outside(value: float) -> int:
            if value < low or value > high:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS

        return outside, low, high
    if isinstance(part, Between | Equals):
        low, high = (part.value, part.value) if isinstance(part, Equals) else (part.low, part.high)
        first, last = _given(low), _given(high)

        def between(value: float) -> int:
            if first <= value <= last:
                return HOLDS
            return UNKNOWN if value - value != 0.0 else CLEARS

        # It cannot hold while the smallest value is above the interval; nothing cheap tells the other side.
        return between, math.nextafter(last, _INF), _INF
    raise TypeError(f"{type(part).__name__} compares no values")


def _given(value: float | None) -> float:
    if value is None:
        raise ValueError("a threshold is missing")
    return value


class ValueJudge:
    """Compares the newest values: each on its own, or one figure made of all."""

    remembers = False
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

    def feed(self, series: Series, step: int, now: float) -> None:
        """Remember nothing."""

    def forget(self) -> None:
        """Nothing is remembered."""

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
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
    remembers = False
    by_time = False

    def __init__(self, part: NotFinite, wanted: Wanted | None) -> None:
        self.metric = part.metric
        self._wanted = wanted

    def feed(self, series: Series, step: int, now: float) -> None:
        """Remember nothing."""

    def forget(self) -> None:
        """Nothing is remembered."""

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
        """Judge the metric's latest values."""
        return [
            (labels, value, HOLDS if value - value != 0.0 else CLEARS)
            for labels, value in latest.get(self.metric, _NONE).items()
            if self._wanted is None or self._wanted(labels)
        ]


class _Remembering:
    """What judges with a memory share: verdicts are made when fed, one memory per series, at most `MAX_SERIES`."""

    remembers = True
    by_time = False

    def __init__(self, part: OnMetric, wanted: Wanted | None) -> None:
        self.metric = part.metric
        self.low, self.high = -_INF, _INF
        self._wanted = wanted
        self._found: dict[Labels, Finding] = {}

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
        """Return what was found when the latest readings came."""
        return self._found.values()

    def forget(self) -> None:
        """Start again."""
        self._found.clear()
        self.low, self.high = -_INF, _INF

    def _calm(self, calm: bool) -> None:
        """Let the engine skip this judge, or not."""
        self.low, self.high = (-_INF, _INF) if calm else (_INF, -_INF)


class JumpJudge(_Remembering):
    """Compares each value with its own recent history: `Spike` and `Drop`."""

    def __init__(self, part: Spike | Drop, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._sign = 1.0 if isinstance(part, Spike) else -1.0
        self._size, self._enough = part.history, part.min_history
        self._deviations = part.deviations
        self._change, self._relative = part.min_change, part.min_relative_change
        self._memory: dict[Labels, Baseline] = {}

    def feed(self, series: Series, step: int, now: float) -> None:
        """Judge each value against its history, then take it in."""
        calm = True
        for labels, value in series.items():
            memory = self._memory.get(labels)
            if memory is None:
                if (self._wanted is not None and not self._wanted(labels)) or len(self._memory) >= MAX_SERIES:
                    continue
                memory = self._memory[labels] = Baseline(self._size)
            if value - value != 0.0:
                verdict = UNKNOWN
            elif len(memory.values) < self._enough:
                verdict = UNKNOWN
                memory.add(value)
            else:
                jump = self._sign * (value - memory.level)
                if (
                    jump > self._deviations * memory.scatter
                    and jump > self._change
                    and jump > self._relative * abs(memory.level)
                ):
                    verdict = HOLDS
                    memory.set_aside(value)
                else:
                    verdict = CLEARS
                    memory.add(value)
            calm = calm and verdict != HOLDS
            self._found[labels] = (labels, value, verdict)
        self._calm(calm)

    def forget(self) -> None:
        """Drop every history."""
        super().forget()
        self._memory.clear()

    def remembered(self, labels: Labels) -> list[float]:
        """Return a series' history, to be kept over a restart."""
        memory = self._memory.get(labels)
        return list(memory.values) if memory is not None else []

    def remember(self, labels: Labels, values: Iterable[float]) -> None:
        """Take a history back."""
        memory = self._memory[labels] = Baseline(self._size)
        memory.values.extend(value for value in values if math.isfinite(value))
        memory.refresh()


class SlopeJudge(_Remembering):
    """Compares the trend of each series' recent history."""

    def __init__(self, part: Slope, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._size, self._enough = part.history, part.min_history
        self._bound = _given(part.above if part.above is not None else part.below)
        self._sign = 1.0 if part.above is not None else -1.0
        self._relative, self._fit = part.relative, part.min_fit
        self._memory: dict[Labels, Trend] = {}

    def feed(self, series: Series, step: int, now: float) -> None:
        """Take each value into its trend and judge that."""
        calm = True
        for labels, value in series.items():
            memory = self._memory.get(labels)
            if memory is None:
                if (self._wanted is not None and not self._wanted(labels)) or len(self._memory) >= MAX_SERIES:
                    continue
                memory = self._memory[labels] = Trend(self._size)
            if value - value != 0.0:
                self._found[labels] = (labels, value, UNKNOWN)
                continue
            memory.add(step, value)
            if self._relative:
                slope = memory.change / memory.mean if memory.mean else 0.0
            else:
                slope = memory.slope
            if len(memory.values) < self._enough or slope != slope:
                verdict = UNKNOWN
            elif self._sign * (slope - self._bound) > 0.0 and memory.fit >= self._fit:
                verdict, calm = HOLDS, False
            else:
                verdict = CLEARS
            self._found[labels] = (labels, slope, verdict)
        self._calm(calm)

    def forget(self) -> None:
        """Drop every trend."""
        super().forget()
        self._memory.clear()


class IncreaseJudge(_Remembering):
    """Compares how much a counter grew lately."""

    by_time = True

    def __init__(self, part: Increase, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._threshold = _given(part.threshold)
        self._within = part.within
        self._memory: dict[Labels, Growth] = {}
        self._fed = False

    def feed(self, series: Series, step: int, now: float) -> None:
        """Take each reading; a series that appears later than its metric began at 0."""
        for labels, value in series.items():
            memory = self._memory.get(labels)
            if value - value != 0.0:
                continue
            if memory is None:
                if (self._wanted is not None and not self._wanted(labels)) or len(self._memory) >= MAX_SERIES:
                    continue
                memory = self._memory[labels] = Growth(self._within, 0.0 if self._fed else value, step, now)
            memory.add(value, step, now)
        self._fed = True
        self._calm(not any(memory.within(step, now) > self._threshold for memory in self._memory.values()))

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
        """Judge the growth up to ``step`` and ``now``."""
        return [
            (labels, growth, HOLDS if growth > self._threshold else CLEARS)
            for labels, memory in self._memory.items()
            for growth in (memory.within(step, now),)
        ]

    def forget(self) -> None:
        """Keep the counters: they run on through a restart of the training."""


class StaleJudge(_Remembering):
    """Compares the age of each series' last reading."""

    by_time = True

    def __init__(self, part: Stale, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._longer_than = part.longer_than.seconds
        self._intervals = part.intervals
        self._memory: dict[Labels, Rhythm] = {}

    def feed(self, series: Series, step: int, now: float) -> None:
        """Note when each series was read."""
        for labels in series:
            memory = self._memory.get(labels)
            if memory is not None:
                memory.add(now)
            elif (self._wanted is None or self._wanted(labels)) and len(self._memory) < MAX_SERIES:
                self._memory[labels] = Rhythm(now)

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
        """Judge the ages at ``now``; without an interval to go by there is no opinion."""
        out = []
        for labels, memory in self._memory.items():
            age, usual = memory.age(now), memory.interval() if self._intervals else 0.0
            limit = max(self._longer_than, self._intervals * usual)
            verdict = UNKNOWN if usual != usual else HOLDS if age > limit else CLEARS
            out.append((labels, age, verdict))
        return out


class MissingJudge:
    """Looks for series that never came. ``expected`` returns the label sets that should be there."""

    low = -_INF
    high = _INF
    remembers = False
    by_time = True

    def __init__(self, part: Missing, layer_at: int | None, expected: Callable[[], Iterable[Labels]]) -> None:
        self.metric = part.metric
        self._layer_at = layer_at
        self._expected = expected

    def feed(self, series: Series, step: int, now: float) -> None:
        """Remember nothing."""

    def forget(self) -> None:
        """Nothing is remembered."""

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
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

    remembers = False

    def __init__(
        self, judges: tuple[Judge, ...], keeps: tuple[tuple[int, ...], ...], joins: tuple[tuple[int, ...], ...]
    ) -> None:
        self.metric = judges[0].metric
        self.judges = judges
        self.by_time = any(judge.by_time for judge in judges)
        self.low, self.high = _INF, -_INF
        self._keeps = keeps
        self._joins = joins

    def feed(self, series: Series, step: int, now: float) -> None:
        """The parts are fed one by one, by the engine."""

    def forget(self) -> None:
        """Let every part start again."""
        for judge in self.judges:
            judge.forget()

    def verdicts(self, latest: Readings, step: int, now: float) -> Iterable[Finding]:
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
