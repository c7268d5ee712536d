"""What a series remembers of itself, bounded: its usual level and scatter, its trend, its growth, its rhythm."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from operator import mul
from typing import Final

from vqwatch_rules.durations import Span

_GAUSSIAN: Final = 1.4826
"""MAD of a normal distribution, times this, is its standard deviation."""

_POINTS: Final = 64
_INTERVALS: Final = 33


def median(values: list[float]) -> float:
    """Return the middle of a sorted, non-empty list.

    >>> median([1.0, 2.0, 4.0]), median([1.0, 3.0])
    (2.0, 2.0)
    """
    middle, odd = divmod(len(values), 2)
    return values[middle] if odd else 0.5 * (values[middle - 1] + values[middle])


def level_and_scatter(values: list[float]) -> tuple[float, float]:
    """Return the median and the robust standard deviation (1.4826 MAD) of some numbers.

    >>> level_and_scatter([1.0, 2.0, 3.0, 4.0, 100.0])
    (3.0, 1.4826)
    """
    ordered = sorted(values)
    middle = median(ordered)
    # In this order distances first fall and then rise, which sorting makes use of.
    return middle, _GAUSSIAN * median(sorted([abs(value - middle) for value in ordered]))


class Baseline:
    """Median and scatter of a series' last ``size`` ordinary readings.

    Recomputed once per eighth of the history: a baseline moves slowly, and sorting at every reading would cost more
    than everything else. Readings judged extraordinary are kept aside; once ``size`` of them came in a row they are
    the new normal.
    """

    __slots__ = ("_aside", "_due", "_phase", "_stride", "level", "scatter", "size", "values")

    def __init__(self, size: int, phase: int = 0) -> None:
        self.size = size
        self.values: deque[float] = deque(maxlen=size)
        self.level = 0.0
        self.scatter = 0.0
        self._aside: list[float] = []
        self._stride = max(1, size // 8)
        # Series of one metric are read together; different phases keep them from being worked out together.
        self._phase = phase % self._stride
        self._due = 1

    def add(self, value: float) -> None:
        """Take an ordinary reading."""
        self.values.append(value)
        if self._aside:
            self._aside.clear()
        self._due -= 1
        if self._due <= 0:
            self.refresh()

    def set_aside(self, value: float) -> None:
        """Take an extraordinary reading."""
        self._aside.append(value)
        if len(self._aside) >= self.size:
            self.values = deque(self._aside, maxlen=self.size)
            self._aside.clear()
            self.refresh()

    def refresh(self) -> None:
        """Work out level and scatter from the history as it is."""
        if self.values:
            self.level, self.scatter = level_and_scatter(list(self.values))
        # A short history changes fast: there every reading counts.
        if len(self.values) < self.size:
            self._due = max(1, len(self.values) // 8)
        else:
            self._due = self._stride + self._phase
            self._phase = 0


class Trend:
    """Least-squares line through the last ``size`` readings, worked out anew once per sixteenth of the history."""

    __slots__ = ("_due", "_stride", "change", "fit", "mean", "slope", "steps", "values")

    def __init__(self, size: int) -> None:
        self.steps: deque[int] = deque(maxlen=size)
        self.values: deque[float] = deque(maxlen=size)
        self.slope = self.change = self.mean = math.nan
        self.fit = 0.0
        self._stride = max(1, size // 16)
        self._due = 1

    def add(self, step: int, value: float) -> None:
        """Take a finite reading."""
        self.steps.append(step)
        self.values.append(value)
        self._due -= 1
        if self._due <= 0:
            self._due = self._stride
            self._fit()

    def relative_change(self) -> float:
        """Return the change over the history as a share of its mean size; nan as long as there is no line."""
        return self.change / self.mean if self.mean else 0.0

    def _fit(self) -> None:
        """Work out slope (per step), change over the history, mean size of the values and r squared."""
        count = len(self.values)
        mean_x, mean_y = sum(self.steps) / count, sum(self.values) / count
        xs = [step - mean_x for step in self.steps]
        ys = [value - mean_y for value in self.values]
        sxx = sum(map(mul, xs, xs))
        syy = sum(map(mul, ys, ys))
        if sxx == 0.0:
            self.slope = self.change = math.nan
            return
        sxy = sum(map(mul, xs, ys))
        self.slope = sxy / sxx
        self.change = self.slope * (self.steps[-1] - self.steps[0])
        self.mean = sum(map(abs, self.values)) / count
        self.fit = sxy * sxy / (sxx * syy) if syy > 0.0 else 1.0


class Growth:
    """How much a counter grew within a span that ends now; a reset counts from 0.

    At most about 64 points are kept, so the span's beginning is known to a 64th.
    """

    __slots__ = ("_last", "_offset", "_points", "_span", "_steps", "_total")

    def __init__(self, within: Span, start: float, step: int, now: float) -> None:
        self._steps = within.steps > 0
        self._span = float(within.steps or within.seconds)
        self._points: deque[tuple[float, float]] = deque([(float(step) if self._steps else now, start)])
        self._offset = 0.0
        self._last = self._total = start

    def add(self, value: float, step: int, now: float) -> None:
        """Take a reading."""
        if value < self._last:
            self._offset += self._last
        self._last = value
        self._total = self._offset + value
        at = float(step) if self._steps else now
        if at < self._points[-1][0]:
            self._points = deque([(at, self._total)])
        elif at - self._points[-1][0] >= self._span / _POINTS:
            self._points.append((at, self._total))

    def within(self, step: int, now: float) -> float:
        """Return the growth within the span that ends at ``step`` or ``now``."""
        start = (float(step) if self._steps else now) - self._span
        points = self._points
        while len(points) > 1 and points[1][0] <= start:
            points.popleft()
        return self._total - points[0][1]


class Rhythm:
    """When a series was last read, and how far apart its readings usually are (seconds)."""

    __slots__ = ("_times",)

    def __init__(self, now: float) -> None:
        self._times: deque[float] = deque([now], maxlen=_INTERVALS)

    def add(self, now: float) -> None:
        """Take the time of a reading."""
        self._times.append(now)

    def age(self, now: float) -> float:
        """Return the seconds since the last reading."""
        return now - self._times[-1]

    def interval(self) -> float:
        """Return the median interval; nan before the second reading."""
        if len(self._times) < 2:
            return math.nan
        return median(sorted(b - a for a, b in zip(self._times, islice(self._times, 1, None), strict=False)))
