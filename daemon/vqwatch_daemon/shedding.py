"""Decides which best-effort messages are left out while more arrives than the daemon can take. No socket, no clock.

The training step decides, not the rank: every rank of a run loses the tensors of the same steps, and a step that is
taken is taken from all of them, so that its readings are whole. Must-arrive messages are never asked about.
"""

from __future__ import annotations

from typing import Final

RAISE_SECONDS: Final = 1.0
"""Messages that wait for so long without a break halve what is taken, again and again."""

LOWER_SECONDS: Final = 10.0
"""So long after a change, and with nothing waiting, twice as much is taken again."""

MOST_HALVINGS: Final = 10

_BITS: Final = 32
_GOLDEN: Final = 2_654_435_769  # 2^32 over the golden ratio: spreads any regular sequence of steps evenly (Knuth 6.4)


class Shedder:
    """Takes a share of 1/2, 1/4, ... of the steps for as long as there is a backlog.

    >>> shedder = Shedder()
    >>> for now in (0.0, 0.5, 1.0):
    ...     shedder.observe(backlog=True, now=now)
    >>> shedder.kept_ratio, sum(shedder.takes(step) for step in range(1000))
    (0.5, 500)
    """

    def __init__(self) -> None:
        self._halvings = 0
        self._busy_since: float | None = None
        self._changed_at = 0.0

    @property
    def kept_ratio(self) -> float:
        """The share of steps whose best-effort messages are taken: 1 while nothing is shed."""
        return 0.5**self._halvings

    def observe(self, backlog: bool, now: float) -> None:
        """Note whether messages still waited when the loop turned to something else; ``now`` is monotonic."""
        if not backlog:
            self._busy_since = None
            if self._halvings and now - self._changed_at >= LOWER_SECONDS:
                self._halvings, self._changed_at = self._halvings - 1, now
        elif self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= RAISE_SECONDS:
            self._halvings = min(self._halvings + 1, MOST_HALVINGS)
            self._busy_since = self._changed_at = now

    def takes(self, step: int) -> bool:
        """Return whether the best-effort messages of a step are taken; what is taken now was taken before, too."""
        return (step * _GOLDEN) % (1 << _BITS) < (1 << _BITS) >> self._halvings
