"""The daemon's time: Unix time that neither goes back nor stands still, whatever is done to the system's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

JUMP_SECONDS: Final = 2.0
"""The system's clock ahead by more than this at once was set, or the machine slept."""

SLOWEST: Final = 0.5
"""While the system's clock is behind, time passes at this pace, until the clock has caught up."""


class Clock:
    """Follows the system's clock forward at once, and backward by going slower. Not for two threads at once.

    Silence, waits and retention are differences of these times: a clock set back by an hour would otherwise make each
    of them an hour longer, and one set forward would make everybody silent for an hour. :meth:`skipped` tells the
    latter, so that it can be counted as nobody's silence.

    >>> walls, beats = iter([1000.0, 1010.0, 6.0, 6.5]), iter([0.0, 10.0, 11.0, 11.5])
    >>> clock = Clock(lambda: next(walls), lambda: next(beats))
    >>> clock(), clock(), clock()
    (1010.0, 1010.5, 1010.75)
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._now = wall()
        self._beat = monotonic()
        self._skipped = 0.0

    def __call__(self) -> float:
        """Return the time: the system's, unless that would be a step back."""
        beat, wall = self._monotonic(), self._wall()
        passed, self._beat = beat - self._beat, beat
        ahead = wall - self._now - passed
        if ahead > JUMP_SECONDS:
            self._skipped += ahead
        self._now = max(wall, self._now + SLOWEST * passed)
        return self._now

    def not_before(self, moment: float) -> None:
        """Go on from ``moment``, if the system's clock is behind it: an earlier daemon came so far."""
        self._now = max(self._now, moment)

    def skipped(self) -> float:
        """Return how many seconds the clock was set forward, or the machine slept, since this was asked last."""
        skipped, self._skipped = self._skipped, 0.0
        return skipped
