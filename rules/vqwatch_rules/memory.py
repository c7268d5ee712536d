"""Judges that remember: a series against its own history, trend, growth and rhythm. See `judges`.

One memory per series, at most `MAX_SERIES` per judge; each memory is bounded in `history`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from vqwatch_rules.conditions import Drop, Increase, OnMetric, Slope, Spike, Stale
from vqwatch_rules.history import Baseline, Growth, Rhythm, Trend
from vqwatch_rules.judges import Finding, Labels, Readings, Series, Wanted, given
from vqwatch_rules.lifecycle import CLEARS, HOLDS, UNKNOWN

MAX_SERIES: Final = 4096
_INF: Final = math.inf


class MemoryJudge:
    """What judges with a memory share: they are fed every reading of their metric, and judge it then."""

    by_time = False

    def __init__(self, part: OnMetric, wanted: Wanted | None) -> None:
        self.metric = part.metric
        self.low, self.high = -_INF, _INF
        self._wanted = wanted
        self._found: dict[Labels, Finding] = {}

    def feed(self, series: Series, step: int, now: float, /) -> None:
        """Take the metric's new readings into the memory."""
        raise NotImplementedError

    def verdicts(self, _latest: Readings, _step: int, _now: float, /) -> Iterable[Finding]:
        """Return what was found when the latest readings came."""
        return self._found.values()

    def forget(self) -> None:
        """The run began again: what was remembered is no longer about it."""
        self._found.clear()
        self.low, self.high = -_INF, _INF

    def _calm(self, calm: bool) -> None:
        """Let the engine skip this judge, or not."""
        self.low, self.high = (-_INF, _INF) if calm else (_INF, -_INF)


class JumpJudge(MemoryJudge):
    """Compares each value with its own recent history: `Spike` and `Drop`."""

    def __init__(self, part: Spike | Drop, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._sign = 1.0 if isinstance(part, Spike) else -1.0
        self._size, self._enough = part.history, part.min_history
        self._deviations = part.deviations
        self._change, self._relative = part.min_change, part.min_relative_change
        self._memory: dict[Labels, Baseline] = {}

    def feed(self, series: Series, _step: int, _now: float, /) -> None:
        """Judge each value against its history, then take it in."""
        calm = True
        for labels, value in series.items():
            memory = self._memory.get(labels)
            if memory is None:
                if (self._wanted is not None and not self._wanted(labels)) or len(self._memory) >= MAX_SERIES:
                    continue
                memory = self._memory[labels] = Baseline(self._size, len(self._memory))
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


class SlopeJudge(MemoryJudge):
    """Compares the trend of each series' recent history."""

    def __init__(self, part: Slope, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._size, self._enough = part.history, part.min_history
        self._bound = given(part.above if part.above is not None else part.below)
        self._sign = 1.0 if part.above is not None else -1.0
        self._relative, self._fit = part.relative, part.min_fit
        self._memory: dict[Labels, Trend] = {}

    def feed(self, series: Series, step: int, _now: float, /) -> None:
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
            slope = memory.relative_change() if self._relative else memory.slope
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


class IncreaseJudge(MemoryJudge):
    """Compares how much a counter grew lately."""

    by_time = True

    def __init__(self, part: Increase, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._threshold = given(part.threshold)
        self._within = part.within
        self._memory: dict[Labels, Growth] = {}
        self._fed = False

    def feed(self, series: Series, step: int, now: float, /) -> None:
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

    def verdicts(self, _latest: Readings, step: int, now: float, /) -> Iterable[Finding]:
        """Judge the growth up to ``step`` and ``now``."""
        return [
            (labels, growth, HOLDS if growth > self._threshold else CLEARS)
            for labels, memory in self._memory.items()
            for growth in (memory.within(step, now),)
        ]

    def forget(self) -> None:
        """Keep the counters: they run on through a restart of the training."""


class StaleJudge(MemoryJudge):
    """Compares the age of each series' last reading."""

    by_time = True

    def __init__(self, part: Stale, wanted: Wanted | None) -> None:
        super().__init__(part, wanted)
        self._longer_than = part.longer_than.seconds
        self._intervals = part.intervals
        self._memory: dict[Labels, Rhythm] = {}

    def feed(self, series: Series, _step: int, now: float, /) -> None:
        """Note when each series was read."""
        for labels in series:
            memory = self._memory.get(labels)
            if memory is not None:
                memory.add(now)
            elif (self._wanted is None or self._wanted(labels)) and len(self._memory) < MAX_SERIES:
                self._memory[labels] = Rhythm(now)

    def verdicts(self, _latest: Readings, _step: int, now: float, /) -> Iterable[Finding]:
        """Judge the ages at ``now``; without an interval to go by there is no opinion."""
        out = []
        for labels, memory in self._memory.items():
            age, usual = memory.age(now), memory.interval() if self._intervals else 0.0
            limit = max(self._longer_than, self._intervals * usual)
            verdict = UNKNOWN if usual != usual else HOLDS if age > limit else CLEARS
            out.append((labels, age, verdict))
        return out
