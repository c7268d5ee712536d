"""How an EMA codebook moves, how its mass is spread, and whether it still fits what it quantizes.

Snapshots are codebooks [K, D] or [H, K, D] and cluster sizes [K] or [H, K]; all heads count alike. Two snapshots of
one layer are compared by number of steps between them, which the caller knows; there is no clock here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.tensors import Floats, as_books, as_sizes, row_products, squared_distances, widened

NAN: Final = float("nan")

TINY: Final = 0.01
"""A cluster size below this is tiny (the proposal, 2.2)."""


@dataclass(frozen=True, slots=True)
class Motion:
    """How far the rows of a codebook moved between two snapshots.

    ``displacement`` and ``norm`` (of the earlier snapshot) are [H, K], in embedding units, not per step.
    """

    displacement: Floats
    norm: Floats
    steps: int

    @property
    def movement(self) -> float:
        """Mean L2 change of a row per step: :func:`movement`."""
        mean = float(self.displacement.mean(dtype=np.float64))
        return mean / self.steps if np.isfinite(mean) else NAN

    @property
    def relative(self) -> float:
        """Mean change of a row per step over the mean norm, at least 0; nan for an all-zero codebook."""
        norm = float(self.norm.mean(dtype=np.float64))
        return self.movement / norm if 0 < norm < np.inf else NAN

    @property
    def reinitialised_ratio(self) -> float:
        """Share of the rows that moved by more than their own norm, 0 to 1: :func:`reinitialised_ratio`."""
        if not (np.isfinite(self.displacement).all() and np.isfinite(self.norm).all()):
            return NAN
        return float(np.count_nonzero(self.displacement > self.norm)) / self.norm.size


def motion(earlier: Floats, later: Floats, steps: int = 1) -> Motion:
    """Compare two snapshots of one codebook, ``steps`` >= 1 apart; ValueError where shapes or steps do not fit.

    >>> motion(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]), steps=2).movement
    0.5
    """
    before, after = _pair(earlier, later, steps)
    return Motion(_displacement(before, after), _norms(before), steps)


def movement(earlier: Floats, later: Floats, steps: int = 1) -> float:
    """Return the mean over codes of the L2 change of their embedding, per step. Source: the proposal, 2.2.

    Embedding units per step, at least 0; nan if anything is non-finite. Snapshots N steps apart are divided by N, as
    for a drift in one direction: for a drift the reading does not depend on N, for a random walk it falls as
    1/sqrt(N). Compare only readings of the same spacing. The proposal compares whatever two calls see, and calls a
    wider spacing a spike.

    >>> movement(np.zeros((2, 2)), np.array([[3.0, 4.0], [0.0, 0.0]]))
    2.5
    """
    before, after = _pair(earlier, later, steps)
    moved = _displacement(before, after)
    mean = float(moved.sum(dtype=np.float64)) / moved.size
    return mean / steps if math.isfinite(mean) else NAN


def reinitialised_ratio(earlier: Floats, later: Floats) -> float:
    """Return the share of codes, 0 to 1, that moved by more than their own earlier norm; nan if any is non-finite.

    Near 1 when a codebook has been drawn anew, as by a second k-means after a resumed checkpoint. A random new row of
    the same norm moves by sqrt(2) norms.

    >>> reinitialised_ratio(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [1.1, 0.0]]))
    0.5
    """
    return motion(earlier, later).reinitialised_ratio


@dataclass(frozen=True, slots=True)
class ClusterSizes:
    """The readings of one layer's EMA cluster sizes, in assignments per step; nan if any is non-finite."""

    mean: float
    smallest: float
    std: float
    tiny: float
    perplexity: float


def cluster_sizes(sizes: Floats) -> ClusterSizes:
    """Return mean, minimum, population standard deviation and number below 0.01 (the proposal, 2.2), and perplexity.

    The perplexity is exp of the entropy of the sizes as shares (moshi's rvq_entropy): from 1 to K, mean over heads,
    nan when a size is negative or all are 0. It averages about (1 + decay) / (1 - decay) batches and lags behind the
    window's.

    >>> cluster_sizes(np.array([4.0, 4.0, 0.0, 0.0])).std
    2.0
    """
    heads = as_sizes(sizes)
    totals = heads.sum(axis=1)
    mean = float(totals.sum()) / heads.size
    if not math.isfinite(mean):
        return ClusterSizes(NAN, NAN, NAN, NAN, NAN)
    spread = heads.reshape(-1) - mean
    smallest = float(heads.min())
    return ClusterSizes(
        mean=mean,
        smallest=smallest,
        std=math.sqrt(float(np.dot(spread, spread)) / spread.size),
        tiny=float(np.count_nonzero(heads < TINY)) if smallest < TINY else 0.0,
        perplexity=_perplexity(heads, totals, smallest),
    )


def expired_codes(sizes: Floats, threshold: float) -> float:
    """Return how many codes are below the family's own replacement threshold; nan if any size is non-finite.

    >>> expired_codes(np.array([0.5, 3.0]), threshold=2.0)
    1.0
    """
    heads = as_sizes(sizes)
    return float(np.count_nonzero(heads < threshold)) if math.isfinite(heads.sum()) else NAN


def rank_divergence_ratio(sketches: Mapping[int, Floats]) -> float:
    """Return how far the ranks' codebooks are apart: the largest ||s_r - s_0|| / max(||s_0||, ||s_r||) over ranks r.

    ``sketches`` maps rank to a linear sketch [S] of its codebook: each entry goes with a fixed random sign into one of
    S sums, the same for every rank (Charikar et al., count sketch, 2002). Norms and distances survive it up to a
    relative error of about sqrt(1 / (2 S)), exact zeros exactly. Rank 0 stands for the lowest rank present. From 0 (the
    same) over sqrt(2) (unrelated) to 2 (opposite); infinite when some sketches are finite and others are not; nan for
    fewer than two ranks, different lengths, or no finite sketch.

    >>> rank_divergence_ratio({0: np.array([3.0, 4.0]), 1: np.array([3.0, 4.0]), 2: np.array([3.0, 3.0])})
    0.2
    """
    ordered = [np.asarray(sketches[rank], np.float64) for rank in sorted(sketches)]
    if len(ordered) < 2 or len({sketch.shape for sketch in ordered}) > 1:
        return NAN
    finite = [bool(np.isfinite(sketch).all()) for sketch in ordered]
    if not all(finite):
        return float("inf") if any(finite) else NAN
    reference, others = ordered[0], np.stack(ordered[1:])
    distances = np.linalg.norm(others - reference, axis=1)
    scales = np.maximum(np.linalg.norm(others, axis=1), np.linalg.norm(reference))
    return float((distances / np.where(scales > 0, scales, 1)).max())


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How a layer's codebook and the vectors that enter it differ; nan where either is non-finite or without spread.

    ``norm_ratio`` median code norm over median latent norm: near 1; far below 1 after a k-means initialisation that
    forgot to scale its sums. ``mean_distance_ratio`` distance between the two means over the latents' own spread (root
    of their total variance): near 0. ``variance_ratio`` total variance of the codes over that of the latents: near 1,
    a little below.
    """

    norm_ratio: float
    mean_distance_ratio: float
    variance_ratio: float


def mismatch(codebook: Floats, latents: Floats, active: NDArray[np.bool_] | None = None) -> Mismatch:
    """Compare a codebook [K, D] or [H, K, D] with latents [n, D] that entered its layer (Huh et al. 2023, 2305.08842).

    ``active`` [K] or [H, K] chooses the codes; without it dead codes count too. Latents of H * D features are split
    between the heads; heads that all see D features share them. All nan when no latent or no active code is there, or
    the shapes do not fit.

    >>> round(mismatch(np.array([[1.0], [-1.0]]), np.array([[2.0], [-2.0]])).norm_ratio, 3)
    0.5
    """
    books, vectors = as_books(codebook), widened(latents)
    heads, _, dim = books.shape
    nothing = Mismatch(NAN, NAN, NAN)
    if vectors.ndim != 2 or len(vectors) == 0 or vectors.shape[1] not in (dim, heads * dim):
        return nothing
    used = np.ones(books.shape[:2], bool) if active is None else np.broadcast_to(np.atleast_2d(active), books.shape[:2])
    codes = books[used].astype(np.float64)
    split = vectors.reshape(-1, dim).astype(np.float64)
    if len(codes) == 0 or not (np.isfinite(codes).all() and np.isfinite(split).all()):
        return nothing
    offset = codes.mean(axis=0) - split.mean(axis=0)
    spread = float(split.var(axis=0).sum())
    length = float(np.median(np.linalg.norm(split, axis=1)))
    return Mismatch(
        norm_ratio=float(np.median(np.linalg.norm(codes, axis=1))) / length if length > 0 else NAN,
        mean_distance_ratio=float(np.linalg.norm(offset)) / spread**0.5 if spread > 0 else NAN,
        variance_ratio=float(codes.var(axis=0).sum()) / spread if spread > 0 else NAN,
    )


def _pair(earlier: Floats, later: Floats, steps: int) -> tuple[Floats, Floats]:
    before, after = as_books(earlier), as_books(later)
    if before.shape != after.shape or steps < 1:
        raise ValueError(f"snapshots of shapes {before.shape} and {after.shape}, {steps} steps apart")
    return before, after


def _displacement(before: Floats, after: Floats) -> Floats:
    heads, codes, dim = before.shape
    flat = after.reshape(-1, dim), before.reshape(-1, dim)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.sqrt(squared_distances(*flat))
        if not np.isfinite(moved.sum()):
            moved = np.sqrt(squared_distances(*(book.astype(np.float64) for book in flat)))
    return moved.reshape(heads, codes)


def _norms(rows: Floats) -> Floats:
    """Return the L2 norm of each row, in float64 where its square leaves float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(row_products(rows, rows))
        if rows.dtype == np.float32 and not np.isfinite(norms.sum()):
            norms = _norms(rows.astype(np.float64))
    return norms


def _perplexity(heads: NDArray[np.float64], totals: NDArray[np.float64], smallest: float) -> float:
    if smallest < 0 or totals.min() <= 0:
        return NAN
    logs = np.log(heads if smallest > 0 else np.where(heads > 0, heads, 1))
    spread = zip(totals.tolist(), row_products(heads, logs).tolist(), strict=True)
    values = [math.exp(math.log(total) - products / total) for total, products in spread]
    return sum(values) / len(values)
