"""Waits for the ranks of a step, but never for long."""

from __future__ import annotations

from typing import Final

PATIENCE_STEPS: Final = 16
"""A step that some rank has not reported is closed when another is this many steps ahead."""


class Gather:
    """Tells when a step is complete: every live rank has spoken, or waiting longer would help nobody.

    Steps complete in order, each once. What comes for a step after its completion is late.

    >>> gather = Gather()
    >>> gather.add(step=7, rank=0, live=2), gather.add(step=7, rank=1, live=2), gather.is_late(7)
    ([], [7], True)
    """

    def __init__(self) -> None:
        self._spoken: dict[int, set[int]] = {}
        self._since: dict[int, float] = {}
        self._done = -1

    def is_late(self, step: int) -> bool:
        """Return whether the step has been completed already."""
        return step <= self._done

    def add(self, step: int, rank: int, live: int, now: float = 0.0) -> list[int]:
        """Note that ``rank`` has said all it has to say of ``step``; return the steps that are complete now."""
        if self.is_late(step):
            return []
        if live <= 1 and not self._spoken:
            self._done = step
            return [step]
        spoken = self._spoken.setdefault(step, set())
        self._since.setdefault(step, now)
        spoken.add(rank)
        if len(spoken) >= live:
            return self._complete(step)
        return self._complete(step - PATIENCE_STEPS)

    def overdue(self, now: float, patience_seconds: float) -> list[int]:
        """Return the steps that have waited too long; they count as complete now."""
        waiting = [step for step, since in self._since.items() if now - since > patience_seconds]
        return self._complete(max(waiting)) if waiting else []

    def _complete(self, until: int) -> list[int]:
        ready = sorted(step for step in self._spoken if step <= until)
        for step in ready:
            del self._spoken[step], self._since[step]
        if ready:
            self._done = max(self._done, ready[-1])
        return ready

    def rewind(self, step: int) -> None:
        """Training has gone back: steps from ``step`` on will come again."""
        for later in [known for known in self._spoken if known >= step]:
            del self._spoken[later], self._since[later]
        self._done = min(self._done, step - 1)
