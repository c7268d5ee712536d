"""Identifiers: the tuple of all layers' codes of one vector, and how many different ones there are.

Generative retrieval lives on them: two items with the same tuple cannot be told apart. There are up to K^L, so they are
not counted but sampled: :class:`IdentifierSample` keeps a recency-weighted random sample in bounded memory however long
the run. The same sample of joint codes serves the mutual information of layers (``between.py``).
"""

from collections.abc import Mapping
from functools import lru_cache
from math import exp, expm1, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Counts, Indices, Mask

CAPACITY = 16_384
HALF_LIFE = 262_144
FEWEST_PAIRS = 10

Codes = NDArray[np.int32]

_FEW = 0.2
"""Where at most this share of the vectors enters, drawing gaps is cheaper than a draw for each vector."""

_KEY_BYTES = 8

_SMALLEST_DRAW = 2.0**-54
"""Stands for a draw of exactly 0, whose priority would never age."""


class Identifiers(NamedTuple):
    """What a sample of identifiers says."""

    unique_ratio: float
    """Distinct identifiers per vector, from 1/n to 1. Falls with n by its nature: compare equal n. nan when n = 0."""
    collision_ratio: float
    """1 - unique_ratio, LC-Rec's collision rate: the share of vectors that add no identifier of their own."""
    effective_count: float
    """How many equally frequent identifiers would collide as often: see :func:`effective_count`."""
    samples: int
    """n, the vectors in the sample: the evidence."""


def identifier_counts(codes: Indices) -> Counts:
    """Return how often each distinct identifier occurs among ``codes`` [n, L], in no meaningful order.

    Rows of at most eight codes below 256 are compared as they are, others by a 64-bit hash, their product with random
    odd numbers modulo 2^64, as sorting rows themselves is far slower. Two different rows whose codes are below K are
    then taken for equal with probability at most K / 2^63: one wrong pair among 16,384 rows of codes below 65,536 in a
    million such samples.

    >>> sorted(identifier_counts(np.array([[1, 2], [1, 2], [2, 1]])).tolist())
    [1, 2]
    """
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    keys = _keys(codes)
    keys.sort()
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    counts: Counts = last.copy()
    counts[1:] -= last[:-1]
    counts[0] += 1
    return counts


def unique_ratio(counts: Counts) -> float:
    """Return distinct identifiers per vector from the identifiers' counts, from 1/n to 1; nan when there are none.

    A vector seen twice (an epoch later, a repeated frame) collides with itself: over a corpus, count each item once.

    >>> unique_ratio(np.array([2, 1, 1]))
    0.75
    """
    n = int(counts.sum())
    return int((counts > 0).sum()) / n if n else float("nan")


def effective_count(counts: Counts, fewest_pairs: int = FEWEST_PAIRS) -> float:
    """Return 1 / sum p², the number of equally frequent identifiers that would collide as often, from their counts.

    By the unbiased estimate of sum p², sum n_i (n_i - 1) / n (n - 1), at any n (Simpson, Nature 163, 1949); among N
    vectors N·(N - 1) / 2 divided by it pairs are to be expected equal. From 1. nan while fewer than ``fewest_pairs``
    pairs are equal, where the relative error, 1 / sqrt(equal pairs), is above a third: the number is beyond what these
    samples can tell.

    >>> effective_count(np.array([3, 3, 3, 3]))
    5.5
    """
    n = int(counts.sum())
    equal = int((counts * (counts - 1)).sum()) // 2
    return n * (n - 1) / 2 / equal if equal >= max(fewest_pairs, 1) else float("nan")


class IdentifierSample:
    """A random sample of the stream's identifiers that prefers recent ones, in bounded memory; adds up over ranks.

    A vector that came ``half_life`` vectors ago is half as likely to be held as one that comes now, so a collapse shows
    after a few steps of a long run and is forgotten later. Codes are held, with a priority each, in two times
    ``capacity``·(4·L + 8) bytes: 1.3 MB at the defaults and 8 layers.

    Method: weighted sampling without replacement by exponential priorities (Efraimidis and Spirakis, Information
    Processing Letters 97, 2006): vector i of the stream gets ln(E_i) - i·ln 2 / half_life with E_i ~ Exp(1), and the
    ``capacity`` smallest are held. Priorities depend on nothing but the position, so the sample is unbiased towards
    identifiers, and the smallest of two samples' priorities are a sample of both streams.

    Relative error of the effective count N, with m = capacity vectors held: sqrt(2 N) / m from the number of equal
    pairs (9 % for N = 10^6, 1 % for 10^4 at m = 16,384), and for uneven usage 2·sqrt((sum p³ / (sum p²)² - 1) / m)
    besides. Distinct identifiers are those of m vectors, not of the run.

    >>> sample = IdentifierSample(layers=2)
    >>> sample.add(np.array([[0, 0, 1, -1], [5, 5, 5, 5]]), np.random.default_rng(0))
    >>> sample.compute()
    Identifiers(unique_ratio=0.6666666666666666, collision_ratio=0.33333333333333337, effective_count=nan, samples=3)
    """

    __slots__ = ("_bound", "_capacity", "_codes", "_decay", "_held", "_position", "_priorities")

    def __init__(self, layers: int, capacity: int = CAPACITY, half_life: float = HALF_LIFE) -> None:
        self._capacity = capacity
        self._decay = log(2) / half_life
        self._position = 0
        self._bound = float("inf")  # nothing above it can still enter
        self._held = 0
        self._codes: Codes = np.empty((2 * capacity, layers), np.int32)
        self._priorities = np.empty(2 * capacity)

    @property
    def codes(self) -> Codes:
        """The sample, [n, L], n up to the capacity: codes of all layers of randomly chosen vectors, none negative."""
        self._trim()
        return self._codes[: self._held]

    @property
    def nbytes(self) -> int:
        """The memory held, in bytes; constant."""
        return self._codes.nbytes + self._priorities.nbytes

    def add(self, indices: Indices, rng: np.random.Generator, mask: Mask | None = None) -> None:
        """Offer the vectors of ``indices`` [L, ...]; vectors masked or without a code in some layer are no identifiers.

        ``mask`` has the shape of ``indices`` without its first axis. Costs little once the sample is full: only the few
        vectors that enter are looked at.
        """
        flat = indices.reshape(len(indices), -1)
        offered = flat.shape[1]
        scale = self._bound + self._decay * self._position  # an Exp(1) draw below exp(scale) enters
        entering = -expm1(-exp(scale)) if scale < 3.0 else 1.0
        chosen = _chosen(offered, entering, rng)
        codes = flat.take(chosen, axis=1)
        valid = codes.min(axis=0, initial=0) >= 0
        if mask is not None:
            valid &= np.asarray(mask, bool).reshape(-1).take(chosen)
        draws = rng.random(np.count_nonzero(valid)) * entering  # uniform where it leads to entering
        exponential = -np.log1p(-np.maximum(draws, _SMALLEST_DRAW))
        priorities = np.log(exponential) - self._decay * self._position
        self._insert(codes[:, valid].T, priorities)
        self._position += offered

    def state(self) -> dict[str, Any]:
        """Return a copy of what is held, for :meth:`restore`."""
        return {
            "position": self._position,
            "bound": self._bound,
            "codes": self._codes[: self._held].copy(),
            "priorities": self._priorities[: self._held].copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of a sample of as many layers and the same capacity returned."""
        held = len(state["priorities"])
        self._codes[:held], self._priorities[:held] = state["codes"], state["priorities"]
        self._held, self._position, self._bound = held, int(state["position"]), float(state["bound"])

    def compute(self) -> Identifiers:
        """Return what the sample says now."""
        counts = identifier_counts(self.codes)
        unique = unique_ratio(counts)
        return Identifiers(unique, 1 - unique, effective_count(counts), self._held)

    def _insert(self, codes: Indices, priorities: NDArray[np.float64]) -> None:
        """Append, sorting out the worst whenever the buffer is full."""
        taken = 0
        while taken < len(priorities):
            if self._held == len(self._priorities):
                self._trim()
            room = min(len(priorities) - taken, len(self._priorities) - self._held)
            here, there = slice(self._held, self._held + room), slice(taken, taken + room)
            self._codes[here] = codes[there]
            self._priorities[here] = priorities[there]
            self._held += room
            taken += room

    def _trim(self) -> None:
        """Keep the ``capacity`` smallest priorities."""
        if self._held <= self._capacity:
            return
        priorities = self._priorities[: self._held]
        self._bound = float(np.partition(priorities, self._capacity - 1)[self._capacity - 1])
        leaving = np.flatnonzero(priorities > self._bound)
        # Of several at the bound itself some have to leave too.
        ties = np.flatnonzero(priorities == self._bound)[: self._held - self._capacity - len(leaving)]
        gone = np.zeros(self._held, bool)
        gone[leaving] = gone[ties] = True
        places = np.flatnonzero(gone[: self._capacity])
        movers = self._capacity + np.flatnonzero(~gone[self._capacity :])
        self._codes[places] = self._codes[movers]
        self._priorities[places] = self._priorities[movers]
        self._held = self._capacity


def _chosen(offered: int, probability: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return which of ``offered`` enter, each with this probability, ascending; draws once for each that does.

    The gaps between those that enter are geometric, so the others need no draw of their own.
    """
    if not 0.0 < probability <= _FEW:
        return np.flatnonzero(rng.random(offered) < probability)
    found, last = [np.empty(0, np.intp)], -1
    while last < offered - 1:
        expected = (offered - 1 - last) * probability
        gaps = rng.geometric(probability, int(expected + 4 * expected**0.5) + 8)
        np.minimum(gaps, offered + 1, out=gaps)  # a tiny probability makes gaps whose sum overflows
        found.append(last + np.cumsum(gaps))
        last = int(found[-1][-1])
    together = np.concatenate(found)
    return together[: np.searchsorted(together, offered)]


def _keys(codes: Indices) -> NDArray[np.uint64]:
    """Return a number for each row of ``codes`` [n, L]: its bytes, where eight hold it, and else a hash."""
    count, layers = codes.shape
    if layers <= _KEY_BYTES and codes.min(initial=0) >= 0 and codes.max(initial=0) < 256:
        rows = np.zeros((count, _KEY_BYTES), np.uint8)
        rows[:, :layers] = codes
        return rows.view(np.uint64).reshape(count)
    with np.errstate(over="ignore"):
        keys: NDArray[np.uint64] = codes.astype(np.uint64) @ _multipliers(layers)
    return keys


@lru_cache(maxsize=16)
def _multipliers(layers: int) -> NDArray[np.uint64]:
    """Return one odd 64-bit multiplier per layer: fixed, so that samples of different processes compare."""
    return np.random.default_rng(0x76717761).integers(0, 2**63, layers, np.uint64) * np.uint64(2) + np.uint64(1)
