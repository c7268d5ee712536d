"""Waits for the ranks of a step, but never for long."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

PATIENCE_STEPS: Final = 16
"""A step that some rank has not reported is closed when another is this many steps ahead."""


class Gather:
    """Tells when a step is complete: every rank that is awaited has spoken, or waiting longer would help nobody.

    It matters who spoke, not how many: of ranks that end one after another, those that have ended spoke of a step long
    before the others do. Steps complete in order, each once. What comes for a step after its completion is late.

    >>> gather = Gather()
    >>> gather.add(step=7, rank=0, awaited={0, 1}), gather.add(step=7, rank=1, awaited={0, 1}), gather.is_late(7)
    ([], [7], True)
    """

    def __init__(self, patience_steps: int = PATIENCE_STEPS) -> None:
        self._patience_steps = patience_steps
        self._spoken: dict[int, set[int]] = {}
        self._since: dict[int, float] = {}
        self._done = -1

    def is_late(self, step: int) -> bool:
        """Return whether the step has been completed already."""
        return step <= self._done

    def add(self, step: int, rank: int, awaited: AbstractSet[int], now: float = 0.0) -> list[int]:
        """Note that ``rank`` has said all it has to say of ``step``; return the steps that are complete now."""
        if self.is_late(step):
            return []
        if not self._spoken and awaited == {rank}:
            self._done = step
            return [step]
        spoken = self._spoken.setdefault(step, set())
        self._since.setdefault(step, now)
        spoken.add(rank)
        if len(spoken) >= len(awaited) and awaited <= spoken:
            return self._complete(step)
        return self._complete(step - self._patience_steps)

    def settle(self, awaited: AbstractSet[int]) -> list[int]:
        """Return the steps that are complete now that only these ranks are awaited."""
        whole = [step for step, spoken in self._spoken.items() if awaited <= spoken]
        return self._complete(max(whole)) if whole else []

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

    def state(self) -> dict[str, Any]:
        """Return what waits, fit for JSON."""
        waiting = [[step, self._since[step], sorted(ranks)] for step, ranks in self._spoken.items()]
        return {"done": self._done, "waiting": waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._done = int(state["done"])
        self._spoken = {step: set(ranks) for step, _, ranks in state["waiting"]}
        self._since = {step: since for step, since, _ in state["waiting"]}

    def rewind(self, step: int) -> None:
        """Training has gone back: steps from ``step`` on will come again."""
        for later in [known for known in self._spoken if known >= step]:
            del self._spoken[later], self._since[later]
        self._done = min(self._done, step - 1)
