"""The trend of a series' last readings, kept up to date instead of fitted anew.

A least-squares line needs five sums over the points. The sums of a sliding window are usually kept by adding the new
point and subtracting the old one, which leaves the rounding of every value that ever was in it: after one loss of 1e30
nothing is right any more. Here nothing is subtracted. The window is two stacks: newer points with one running sum, and
older ones, each with the sums from it to the end of the older ones. The oldest point leaves by dropping its entry; when
the older stack is empty, the newer one is turned over into it, which costs a pass over the window once for each window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

NAN: Final = float("nan")

_Sums: TypeAlias = tuple[int, int, float, int, float]  # points, x, y, xx, xy
_NOTHING: Final[_Sums] = (0, 0, 0.0, 0, 0.0)


class Trend:
    """Least-squares change per step of the last ``length`` finite readings; constant time for each on average.

    Steps are whole numbers in any order. What an update returns equals a fit to the same points but for rounding.
    Memory: two tuples for each point.
    """

    __slots__ = ("_height", "_length", "_newer", "_older", "_start", "points")

    def __init__(self, length: int, points: Iterable[tuple[int, float]] = ()) -> None:
        self._length = length
        self._start, self._height = 0, 0.0  # where the sums' coordinates begin: near the points, to keep their digits
        self._newer: _Sums = _NOTHING
        self._older: list[_Sums] = []
        self.points: deque[tuple[int, float]] = deque()
        for step, value in points:
            self.update(step, value)

    def update(self, step: int, value: float) -> None:
        """Take one reading; one that is not finite is left out.

        >>> trend = Trend(length=3)
        >>> for step, value in ((0, 9.0), (10, 1.0), (20, 2.0), (30, 3.0)): trend.update(step, value)
        >>> round(trend.slope, 9)
        0.1
        """
        if not math.isfinite(value):
            return
        if len(self.points) == self._length:
            if not self._older:
                self._turn_over()
            self._older.pop()
            self.points.popleft()
        if not self.points:
            self._start, self._height, self._newer, self._older = step, value, _NOTHING, []
        self.points.append((step, value))
        self._newer = _with(self._newer, step - self._start, value - self._height)

    @property
    def slope(self) -> float:
        """The change per step; nan with fewer than two different steps."""
        n, x, y, xx, xy = self._newer
        if self._older:
            of_older = self._older[-1]
            n, x, y, xx, xy = n + of_older[0], x + of_older[1], y + of_older[2], xx + of_older[3], xy + of_older[4]
        spread = n * xx - x * x  # of whole numbers, exact
        return (n * xy - x * y) / spread if spread > 0 else NAN

    def state(self) -> list[Any]:
        """Return what :meth:`restore` takes up, to the bit: the points, and how the sums over them are divided."""
        return [self._start, self._height, len(self._older), list(self.points)]

    def restore(self, state: Sequence[Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._start, self._height, older, points = state
        self.points = deque((step, value) for step, value in points)
        self._older, self._newer = [], _NOTHING
        self._stack(points[:older])
        for step, value in points[older:]:
            self._newer = _with(self._newer, step - self._start, value - self._height)

    def _turn_over(self) -> None:
        self._start, self._height = self.points[-1]
        self._newer = _NOTHING
        self._stack(self.points)

    def _stack(self, points: Sequence[tuple[int, float]]) -> None:
        sums = _NOTHING
        for step, value in reversed(points):
            sums = _with(sums, step - self._start, value - self._height)
            self._older.append(sums)


def _with(sums: _Sums, x: int, y: float) -> _Sums:
    n, xs, ys, xxs, xys = sums
    return n + 1, xs + x, ys + y, xxs + x * x, xys + x * y
