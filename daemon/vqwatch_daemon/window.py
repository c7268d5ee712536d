"""The last N batches of code usage, as counts that add up over ranks. Pure state: no clock, no socket.

One slot for each training step, whichever ranks contributed to it; the oldest step leaves when a new one needs its
slot. Memory: N x layers x codes x 4 bytes, plus layers x codes x 8 bytes for the running total, and per step and layer
two numbers beside the counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Repeats


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
        self._repeats = np.zeros((length, 2, layers), np.int64)  # equal neighbours, neighbours
        self._sums: NDArray[np.int64] = np.zeros((2, layers), np.int64)
        self._slot_of: dict[int, int] = {}
        self._free = list(range(length - 1, -1, -1))
        self.counts: NDArray[np.int64] = np.zeros((layers, codes), np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that this window takes, whatever it holds."""
        return self._slots.nbytes + self.counts.nbytes + self._repeats.nbytes

    def steps(self) -> list[int]:
        """Return the steps in the window, oldest first."""
        return sorted(self._slot_of)

    @property
    def repeats(self) -> Repeats:
        """How sticky the streams in the window were, per layer ``[layers]``."""
        return Repeats(*self._sums)

    def add(self, step: int, rows: Any, counts: NDArray[np.int64], repeats: Repeats) -> bool:
        """Add one rank's counts ``[rows, codes]`` of one step; ``rows`` names the layers.

        Returns False, and changes nothing, for a step that has left the window already.
        """
        slot, width = self._slot_of.get(step), counts.shape[1]
        told = np.array(repeats)
        if slot is not None:
            self._slots[slot, rows, :width] += counts.astype(np.int32, copy=False)
            self._repeats[slot][:, rows] += told
        else:
            slot = self._take(step)
            if slot is None:
                return False
            if counts.shape != self.counts.shape:  # else every count is overwritten
                self._slots[slot], self._repeats[slot] = 0, 0
            self._slots[slot, rows, :width] = counts
            self._repeats[slot][:, rows] = told
        self._sums[:, rows] += told
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
        return slot

    def _clear(self, step: int) -> int:
        slot = self._slot_of.pop(step)
        self.counts -= self._slots[slot]
        self._sums -= self._repeats[slot]
        return slot

    def rewind(self, step: int) -> None:
        """Forget every step from ``step`` on: training has gone back to a checkpoint."""
        for later in [known for known in self._slot_of if known >= step]:
            self._free.append(self._clear(later))

    def of_steps(self, steps: Iterable[int]) -> NDArray[np.int32]:
        """Return the counts ``[steps, layers, codes]`` of those of these steps that are held."""
        chosen: NDArray[np.int32] = self._slots[[self._slot_of[step] for step in steps if step in self._slot_of]]
        return chosen

    def between(self, after: int, until: int) -> NDArray[np.int32] | None:
        """Return counts ``[steps, layers, codes]`` of every step in (after, until]; None if one is missing."""
        counts = self.of_steps(range(after + 1, until + 1))
        return counts if 0 < len(counts) == until - after else None

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the steps held and their counts as arrays, oldest first."""
        steps = self.steps()
        slots = [self._slot_of[step] for step in steps]
        return {"steps": np.array(steps, np.int64), "counts": self._slots[slots], "repeats": self._repeats[slots]}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned, as far as it fits."""
        rows = np.arange(self.counts.shape[0])
        for step, counts, repeats in zip(state["steps"], state["counts"], state["repeats"], strict=True):
            self.add(int(step), rows, counts, Repeats(repeats[0], repeats[1]))
