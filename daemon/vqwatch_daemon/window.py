"""The last N batches of code usage, as counts that add up over ranks. Pure state: no clock, no socket.

One slot for each training step, whichever ranks contributed to it; the oldest step leaves when a new one needs its
slot. Memory: N x layers x codes x 4 bytes, plus layers x codes x 8 bytes for the running total, and per step and layer
three numbers beside the counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Repeats

_EMPTY = -1


class UsageWindow:
    """Counts of assignments ``[layers, codes]`` over the last ``length`` steps that had any.

    >>> window = UsageWindow(length=2, layers=1, codes=3)
    >>> for step in (1, 2, 3):
    ...     _ = window.add(step, [0], np.array([[1, 0, step]]), Repeats(np.array([0]), np.array([step])))
    >>> window.counts.tolist(), window.steps()
    ([[2, 0, 5]], [2, 3])
    """

    def __init__(self, length: int, layers: int, codes: int) -> None:
        self._slots = np.zeros((length, layers, codes), np.int32)
        self._facts = np.zeros((length, 3, layers), np.int64)  # equal neighbours, neighbours, assignments
        self._sums: NDArray[np.int64] = np.zeros((3, layers), np.int64)
        self._at = np.full(length, _EMPTY, np.int64)
        self._slot_of: dict[int, int] = {}
        self._free = list(range(length - 1, -1, -1))
        self.counts: NDArray[np.int64] = np.zeros((layers, codes), np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that this window takes, whatever it holds."""
        return self._slots.nbytes + self.counts.nbytes + self._facts.nbytes + self._at.nbytes

    def steps(self) -> list[int]:
        """Return the steps in the window, oldest first."""
        return sorted(self._slot_of)

    @property
    def repeats(self) -> Repeats:
        """How sticky the streams in the window were, per layer ``[layers]``."""
        return Repeats(self._sums[0], self._sums[1])

    def add(self, step: int, rows: Any, counts: NDArray[np.int64], repeats: Repeats) -> bool:
        """Add one rank's counts ``[rows, codes]`` of one step; ``rows`` names the layers.

        Returns False, and changes nothing, for a step that has left the window already.
        """
        slot, width = self._slot_of.get(step), counts.shape[1]
        facts = np.array((*repeats, counts.sum(axis=1)))
        if slot is not None:
            self._slots[slot, rows, :width] += counts.astype(np.int32, copy=False)
            self._facts[slot][:, rows] += facts
        else:
            slot = self._take(step)
            if slot is None:
                return False
            if counts.shape != self.counts.shape:  # else every count is overwritten
                self._slots[slot], self._facts[slot] = 0, 0
            self._slots[slot, rows, :width] = counts
            self._facts[slot][:, rows] = facts
        self._sums[:, rows] += facts
        self.counts[rows, :width] += counts
        return True

    def _take(self, step: int) -> int | None:
        if self._free:
            slot = self._free.pop()
        else:
            oldest = min(self._slot_of)
            if step < oldest:
                return None
            slot = self._clear(oldest)
        self._slot_of[step] = slot
        self._at[slot] = step
        return slot

    def _clear(self, step: int) -> int:
        slot = self._slot_of.pop(step)
        self.counts -= self._slots[slot]
        self._sums -= self._facts[slot]
        self._at[slot] = _EMPTY
        return slot

    def rewind(self, step: int) -> None:
        """Forget every step from ``step`` on: training has gone back to a checkpoint."""
        for later in [known for known in self._slot_of if known >= step]:
            self._free.append(self._clear(later))

    def of_step(self, step: int) -> NDArray[np.int32] | None:
        """Return the counts ``[layers, codes]`` of one step over all ranks, None if it is not in the window."""
        slot = self._slot_of.get(step)
        return None if slot is None else self._slots[slot]

    def samples_of_step(self, step: int) -> NDArray[np.int64] | None:
        """Return the assignments ``[layers]`` of one step over all ranks, None if it is not in the window."""
        slot = self._slot_of.get(step)
        return None if slot is None else self._facts[slot, 2]

    def between(self, after: int, until: int) -> NDArray[np.int32] | None:
        """Return counts ``[steps, layers, codes]`` of every step in (after, until]; None if one is missing."""
        slots = [self._slot_of.get(step, _EMPTY) for step in range(after + 1, until + 1)]
        if not slots or _EMPTY in slots:
            return None
        chosen: NDArray[np.int32] = self._slots[slots]
        return chosen

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the steps held and their counts as arrays, oldest first."""
        order = [self._slot_of[step] for step in self.steps()]
        return {"steps": self._at[order], "counts": self._slots[order], "repeats": self._facts[order, :2]}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned, as far as it fits."""
        rows = np.arange(self.counts.shape[0])
        for step, counts, repeats in zip(state["steps"], state["counts"], state["repeats"], strict=True):
            self.add(int(step), rows, counts, Repeats(repeats[0], repeats[1]))
