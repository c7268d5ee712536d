"""How evenly codes are used: entropy and what follows from it.

Every function takes counts [..., K] (one layer's [K], or all layers' [L, K]) and reduces the last axis, so one layer
gives a number and L layers give [L]. Zero counts change nothing, so layers may be padded. nan: nothing was assigned.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Counts, Floats

Sizes = int | Sequence[int] | NDArray[np.integer]

_TABULATED = 1024
_LOGS_TABULATED = 1 << 16


def divide(numerator: NDArray[np.number], denominator: NDArray[np.number]) -> Floats:
    """Return the quotient, nan wherever the denominator is not positive; shapes broadcast.

    >>> divide(np.array([1, 0]), np.array([4, 0]))
    array([0.25,  nan])
    """
    positive = np.asarray(denominator) > 0
    empty = np.full(np.broadcast_shapes(np.shape(numerator), positive.shape), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=empty, where=positive), np.float64)


def entropy_nats(counts: Counts) -> Floats:
    """Return the plug-in entropy of the usage in nats, from 0 (one code) to ln K (uniform).

    Biased low by about (K - 1) / 2n for n samples (Miller 1955).

    >>> round(float(entropy_nats(np.array([2, 2, 0]))), 6)
    0.693147
    """
    n = counts.sum(axis=-1)
    spread = divide(n_log_n(counts).sum(axis=-1), n)
    entropy: Floats = np.maximum(np.log(np.maximum(n, 1)) - spread, 0.0)
    return entropy


def n_log_n(counts: Counts) -> Floats:
    """Return n·ln n of each count, 0 for 0: looked up where all are below 65,536, five times as fast as computed.

    >>> n_log_n(np.array([0, 1, 2])).round(4).tolist()
    [0.0, 0.0, 1.3863]
    """
    if counts.size and counts.max() < _LOGS_TABULATED:
        return _N_LOG_N.take(counts, mode="clip")  # "raise" would copy; no count is negative
    return np.asarray(counts * np.log(np.maximum(counts, 1)), np.float64)


def entropy_ratio(counts: Counts, sizes: Sizes) -> Floats:
    """Return the plug-in entropy as a share of ln K, from 0 (one code) to 1 (uniform); nan for a codebook of one.

    Source: moshi's ``rvq_entropy`` (there over EMA usage).

    >>> round(float(entropy_ratio(np.array([2, 2, 0, 0]), 4)), 6)
    0.5
    """
    return divide(entropy_nats(counts), np.log(np.asarray(sizes)))


def perplexity(counts: Counts) -> Floats:
    """Return how many codes are effectively in use: exp of the plug-in entropy.

    From 1 (collapse) to K (uniform). Reads low while samples are few: a uniform codebook reads about
    K·exp(-(K - 1) / 2n), and no more than n. The proposal takes it over one batch; give it a window.

    >>> round(float(perplexity(np.array([5, 5, 0, 0]))), 6)
    2.0
    """
    effective: Floats = np.exp(entropy_nats(counts))
    return effective


def perplexity_unbiased(counts: Counts) -> Floats:
    """Return exp of Grassberger's entropy estimate: the effective number of codes corrected for few samples.

    At least 1; may exceed K by noise. Within 5 % of the truth on average from n = K samples for uniform usage and 10 %
    for Zipf (tests/daemon/metrics/test_statistics.py); below that it reads low too, though much less than
    :func:`perplexity`. Assumes independent samples: ask with the effective number of samples whether it may be trusted.
    Source: P. Grassberger, Entropy Estimates from Insufficient Samplings, arXiv physics/0307138, eq. 27-30.

    >>> round(float(perplexity_unbiased(np.array([1, 1, 1, 1, 1, 0, 0, 3]))), 2)
    13.46
    """
    n = counts.sum(axis=-1)
    spread = divide((counts * _grassberger(counts)).sum(axis=-1), n)
    effective: Floats = np.exp(np.maximum(np.log(np.maximum(n, 1)) - spread, 0.0))
    return effective


def bitrate_efficiency(entropies: Iterable[float], capacities: Iterable[float]) -> float:
    """Return the share of the residual stack's bits that carry information: sum of entropies / sum of ln K.

    One of each per layer, in the same unit. From 0 to 1. Layers of unknown entropy are left out of both sums; nan when
    none is left, or when all have one code. Source: descript-audio-codec, scripts/compute_entropy.py.

    >>> bitrate_efficiency([8.0, 6.0, float("nan")], [8.0, 8.0, 8.0])
    0.875
    """
    used = available = 0.0
    for entropy, capacity in zip(entropies, capacities, strict=True):
        if entropy == entropy:
            used += entropy
            available += capacity
    return used / available if available > 0 else float("nan")


def _grassberger(counts: Counts) -> Floats:
    """Return G(n) = digamma(n) + (-1)^n / 2 · (digamma((n + 1) / 2) - digamma(n / 2)) without a digamma; G(0) as 0.

    G(2k) = G(2k + 1) = -gamma - ln 2 + sum over j <= k of 2 / (2j - 1): a table for small n. For large even m the
    harmonic numbers' expansion leaves ln m + 1 / 6m², and the next term is below 1e-12 where the table ends.
    """
    even = np.maximum(counts & ~1, 2).astype(np.float64)
    large = np.log(even) + 1 / (6 * even * even)
    return np.where(counts < _TABULATED, _SMALL.take(counts, mode="clip"), large)


def _tabulate() -> Floats:
    odd = np.arange(1, _TABULATED, 2)
    steps = np.concatenate([[0.0], np.cumsum(2 / odd)[: _TABULATED // 2 - 1]])
    table = np.repeat(steps - np.euler_gamma - np.log(2), 2)
    table[0] = 0.0
    return table


_SMALL = _tabulate()
LOGS: Floats = np.log(np.maximum(np.arange(_LOGS_TABULATED), 1))
"""ln n of small whole numbers, 0 for 0."""
_N_LOG_N: Floats = np.arange(float(_LOGS_TABULATED)) * LOGS
