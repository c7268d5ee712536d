"""Which codes were replaced between two snapshots, and what became of them.

EMA codebooks replace codes that nobody uses: the row is overwritten with a vector of the batch and its cluster size is
set to a fresh value. No library reports it, but the buffers tell: without a replacement a cluster size follows

    cs_t = decay * cs_(t-1) + (1 - decay) * n_t

where n_t counts the assignments of step t over all ranks whose counts the family sums. A size above that was reset.
One update per step is assumed; with several (gradient accumulation) the law over-predicts and misses revivals, but
reports none that were not.

Here are the law (:func:`revivals`), what follows from it (:func:`churn_ratio`, :func:`threshold_to_uniform_ratio`) and
two states that are fed snapshot by snapshot (:class:`Survival`, :class:`Unreplaced`). No clock: steps are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.ema import motion
from vqwatch_daemon.metrics.tensors import Floats, Mask, as_sizes

NAN: Final = float("nan")

ABSOLUTE_TOLERANCE: Final = 1e-3
"""Excess over the law, in assignments, that is still rounding. Precision and recall were 1.000 with it."""

RELATIVE_TOLERANCE: Final = 1e-5
"""The same, as a share of the predicted size: float32 sizes in the thousands round by more than 1e-3."""

SHORTEST_MEMORY: Final = 0.05
"""Where decay^N is below this, a reset early in an interval of N steps has faded and the law cannot see it."""

LONGEST_JUMP: Final = 0.5
"""A row that moved by more than this share of its larger norm jumped."""

Method = Literal["exact", "iterated", "estimate"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One layer after a training step: cluster sizes [K] or [H, K], and the codebook where it was captured."""

    step: int
    cluster_size: Floats
    codebook: Floats | None = None


@dataclass(frozen=True, slots=True)
class Revivals:
    """The revived codes between two snapshots, as a mask [H, K], and how they were found.

    "exact": by the law, over one step. "iterated": by the law, over several steps whose counts are all known; a code
    revived twice counts once. "estimate": by jumps; see :func:`revivals`.
    """

    mask: Mask
    method: Method
    steps: int

    @property
    def count(self) -> int:
        """How many codes were revived."""
        return int(np.count_nonzero(self.mask))

    @property
    def per_step(self) -> float:
        """Revived codes per step (the proposal, 2.1: revival rate)."""
        return self.count / self.steps

    @property
    def churn_ratio(self) -> float:
        """Share of the codebook that was revived, per step, 0 to 1."""
        return self.per_step / self.mask.size


def revivals(
    earlier: Snapshot,
    later: Snapshot,
    *,
    decay: float | None = None,
    counts: NDArray[Any] | None = None,
    threshold: float | None = None,
) -> Revivals | None:
    """Return which codes were replaced after ``earlier`` and up to ``later``; None when there is no telling.

    ``counts`` [N, K] or [N, H, K] are the assignments of the N steps in between, the later one included; with all of
    them and ``decay`` the law decides. Over one step that is exact. Over N steps it is iterated,

        cs_(s+N) = decay^N cs_s + (1 - decay) * sum over i of decay^(N-i) n_(s+i),

    which still has no false alarm, but a reset early in the interval has shrunk by up to decay^N: below
    :data:`SHORTEST_MEMORY` it is no longer relied on alone. Then, and without all counts, the answer is an estimate: a
    row that jumped by more than half of the larger of its two norms, if ``threshold`` (the family's, as a cluster size)
    does not rule it out; a size that never fell below it, because it cannot fall faster than decay^N, was not replaced.
    Jumps alone miss a few percent and mistake fast early learning for revival: measured precision 0.95 and recall 0.95
    to 0.97. A code whose values are not finite is not counted as revived.

    >>> found = revivals(Snapshot(1, np.array([0.5, 8.0])), Snapshot(2, np.array([2.0, 8.2])), decay=0.9,
    ...                  counts=np.array([[0, 10]]))
    >>> found.mask, found.method
    (array([[ True, False]]), 'exact')
    """
    steps = later.step - earlier.step
    before, after = as_sizes(earlier.cluster_size), as_sizes(later.cluster_size)
    if steps < 1 or before.shape != after.shape:
        return None
    expected = None if decay is None or counts is None else _expected(before, decay, counts, steps)
    over = np.zeros(before.shape, bool) if expected is None else _exceeds(after, expected)
    if expected is not None and decay is not None and (steps == 1 or decay**steps >= SHORTEST_MEMORY):
        return Revivals(over, "exact" if steps == 1 else "iterated", steps)
    jumped = _jumped(earlier, later, before.shape)
    if jumped is None:
        return None
    if threshold is not None and decay is not None:
        jumped &= before * decay**steps < threshold
    return Revivals(over | jumped, "estimate", steps)


def threshold_to_uniform_ratio(threshold: float, tokens_per_step: float, size: int) -> float:
    """Return the replacement threshold over the cluster size that uniform use gives, tokens_per_step / size.

    Above 1 most codes are below the threshold whatever the training does: the codebook is replaced for ever. With a
    threshold of 2, K = 1024 and 512 tokens a step, 93 % of a codebook was replaced at every step. nan without tokens.

    >>> threshold_to_uniform_ratio(2, tokens_per_step=512, size=1024)
    4.0
    """
    return threshold * size / tokens_per_step if tokens_per_step > 0 else NAN


class Survival:
    """Share of the revived codes that are in use ``horizon`` steps later; state for one layer of ``size`` codes.

    A revived code is judged at the first update at least ``horizon`` steps after its revival: it survived if it was
    assigned anything since half of the horizon had passed, so that the moment of its rebirth does not count. One that
    is revived again before that has died, and is judged at once. Memory: 17 bytes per code.
    """

    def __init__(self, size: int, horizon: int = 100) -> None:
        self.horizon = horizon
        self.judged = 0
        self.survived = 0
        self._born = np.full(size, -1, np.int64)
        self._used = np.zeros(size, bool)

    @property
    def waiting(self) -> int:
        """Revived codes that are not judged yet."""
        return int(np.count_nonzero(self._born >= 0))

    @property
    def ratio(self) -> float:
        """Survivors over judged codes since the state was made (or :meth:`forget`), 0 to 1; nan before the first."""
        return self.survived / self.judged if self.judged else NAN

    def update(self, step: int, revived: Mask, used: Mask) -> float:
        """Take the codes revived up to ``step`` and those assigned since the last update, both [H, K] or [K].

        Returns the share of survivors among the codes judged now, nan when none was. Steps must not go backwards:
        after a rewind, make a new state.

        >>> state = Survival(2, horizon=10)
        >>> state.update(1, np.array([True, True]), np.array([False, False]))
        nan
        >>> state.update(11, np.array([False, False]), np.array([True, False]))
        0.5
        """
        reborn, seen = np.ravel(revived), np.ravel(used)
        alive = self._born >= 0
        age = step - self._born
        self._used |= alive & seen & (2 * age >= self.horizon)
        died = alive & reborn
        due = alive & ~reborn & (age >= self.horizon)
        judged = int(np.count_nonzero(died | due))
        survived = int(np.count_nonzero(due & self._used))
        done = died | due | reborn
        self._born[done] = -1
        self._used[done] = False
        self._born[reborn] = step
        self.judged += judged
        self.survived += survived
        return survived / judged if judged else NAN

    def forget(self) -> None:
        """Start counting anew without losing the codes that wait; for readings over a period."""
        self.judged = self.survived = 0

    def state(self) -> dict[str, Any]:
        """Return a copy of everything, for :meth:`restore`."""
        return {
            "judged": self.judged,
            "survived": self.survived,
            "born": self._born.copy(),
            "used": self._used.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of as many codes returned."""
        self._born[:], self._used[:] = state["born"], state["used"]
        self.judged, self.survived = int(state["judged"]), int(state["survived"])


class Unreplaced:
    """Codes that should have been replaced and were not; state for one layer of ``size`` codes.

    Some libraries overwrite the row of an expired code and, in the same forward, overwrite it again from sums that were
    not reset: the replacement never survives, and the code stays expired for ever. A code counts here once it has been
    below the threshold at every snapshot for at least ``patience`` steps without a revival. ``patience`` must cover the
    family's own interval between checks. Memory: 8 bytes per code.
    """

    def __init__(self, size: int, patience: int = 100) -> None:
        self.patience = patience
        self._since = np.full(size, -1, np.int64)

    def update(self, step: int, cluster_size: Floats, threshold: float, revived: Mask | None) -> float:
        """Take the snapshot after ``step`` and the mask that :func:`revivals` found since the last; return the share.

        0 to 1; nan where the family replaces nothing (threshold 0), a size is not finite, or ``revived`` is None
        because it is not known (as at the first snapshot): then patience starts anew.

        >>> state, sizes = Unreplaced(2, patience=10), np.array([0.1, 5.0])
        >>> state.update(0, sizes, 2.0, None), state.update(10, sizes, 2.0, np.zeros(2, bool))
        (nan, 0.5)
        """
        sizes = np.ravel(as_sizes(cluster_size))
        if not threshold > 0 or not np.isfinite(sizes).all():
            return NAN
        expired = sizes < threshold
        self._since[~expired] = -1
        fresh = (self._since < 0) | np.ravel(True if revived is None else revived)
        self._since[expired & fresh] = step
        if revived is None:
            return NAN
        overdue = expired & (step - self._since >= self.patience)
        return float(np.count_nonzero(overdue)) / sizes.size

    def state(self) -> NDArray[np.int64]:
        """Return a copy of since when each code has been expired, for :meth:`restore`."""
        return self._since.copy()

    def restore(self, state: NDArray[np.int64]) -> None:
        """Take up what :meth:`state` of as many codes returned."""
        self._since[:] = state


def _expected(
    before: NDArray[np.float64], decay: float, counts: NDArray[Any], steps: int
) -> NDArray[np.float64] | None:
    if len(counts) != steps or counts.size != steps * before.size or not 0 <= decay <= 1:
        return None
    weights = (1 - decay) * decay ** np.arange(steps - 1, -1, -1, dtype=np.float64)
    added = weights @ counts.reshape(steps, -1).astype(np.float64)
    return np.asarray(before * decay**steps + added.reshape(before.shape))


def _exceeds(after: NDArray[np.float64], expected: NDArray[np.float64]) -> Mask:
    with np.errstate(invalid="ignore"):
        return np.asarray(after - expected > ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(expected))


def _jumped(earlier: Snapshot, later: Snapshot, shape: tuple[int, ...]) -> Mask | None:
    if earlier.codebook is None or later.codebook is None or earlier.codebook.shape != later.codebook.shape:
        return None
    there, back = motion(earlier.codebook, later.codebook), motion(later.codebook, earlier.codebook)
    if there.norm.shape != shape:
        return None
    with np.errstate(invalid="ignore"):
        return np.asarray(there.displacement > LONGEST_JUMP * np.maximum(there.norm, back.norm))
