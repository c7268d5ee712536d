"""How much a stream of codes can prove: effective samples, and what each verdict needs.

A batch of 32 codes shows at most 32 of 256, however healthy the codebook. So every reading of usage comes with its
number of effective samples, and a verdict is given only where that number supports it.
"""

from enum import Enum
from math import log

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Counts, Floats, Repeats
from vqwatch_daemon.metrics.entropy import Sizes, divide

DEAD_SHARE = 0.1
"""A code used less than this share of its uniform share 1/K counts as practically dead (moshi's threshold ratio)."""

DEAD_ERROR = 0.01
"""The probability, over all K codes together, of not having met a code that is used more than that."""


class Verdict(Enum):
    """What one may want to conclude from usage counts."""

    UTILIZATION = "utilization"
    """The share of codes seen: 3K samples show 95 % of a uniform codebook, and its plug-in perplexity reads 0.85 K."""
    PERPLEXITY = "perplexity"
    """Grassberger's perplexity: K samples bring it within a few percent."""
    EVENNESS = "evenness"
    """The Gini coefficient: sampling noise alone makes a uniform codebook read sqrt(K / (pi n)), 0.1 at 32K."""
    DEAD_CODES = "dead codes"
    """Single codes: K/t · ln(K/a) samples miss none that has t = 0.1 of its uniform share, with error a = 0.01."""


def samples_needed(verdict: Verdict, sizes: Sizes) -> Floats:
    """Return how many effective samples a verdict about codebooks of these sizes needs.

    >>> [round(float(samples_needed(verdict, 256))) for verdict in Verdict]
    [768, 256, 8192, 25985]
    """
    size = np.asarray(sizes, np.float64)
    match verdict:
        case Verdict.UTILIZATION:
            return 3 * size
        case Verdict.PERPLEXITY:
            return size
        case Verdict.EVENNESS:
            return 32 * size
        case Verdict.DEAD_CODES:
            return size / DEAD_SHARE * (np.log(size) - log(DEAD_ERROR))


def supports(verdict: Verdict, effective: Floats, sizes: Sizes) -> NDArray[np.bool_]:
    """Return whether this many effective samples support the verdict; an unknown number (nan) supports none.

    >>> supports(Verdict.UTILIZATION, np.array([500.0, 1000.0, np.nan]), 256)
    array([False,  True, False])
    """
    return np.asarray(effective >= samples_needed(verdict, sizes))


def effective_samples(counts: Counts, repeats: Repeats) -> Floats:
    """Return how many independent assignments the counts [L, K] are worth, from 1 to n, per layer; nan when n = 0.

    Neighbouring frames of one sequence often get the same code, and a code that repeats says nothing new. The model: a
    code repeats its predecessor with probability r, else it is drawn afresh from the usage p. Then neighbours are equal
    with probability r + (1 - r)·s, where s = sum p² is what independent draws give anyway, so

        1 - r = (share of neighbours that differ) / (1 - s)        and        n_eff = n - r · pairs:

    every first code of a sequence is fresh, every later one with probability 1 - r. Equivalently n_eff ~ n / (mean run
    length / mean run length of independent draws, 1 / (1 - s)). s is estimated without bias by
    sum n_i (n_i - 1) / n (n - 1) (Simpson 1949). One pseudo-count on both sides makes a codebook collapsed to one code,
    where runs carry no information, keep n_eff = n: else no verdict on a collapse could ever be given.

    ``repeats`` must stem from the same assignments as the counts, and both add up over steps and ranks. Repetition that
    is not between neighbours of the last axis (image rows, the same document again next epoch) is not seen here. For
    long runs in few samples s itself reads high, and n_eff with it, by a factor of about 1 + 2 / (number of runs).

    Ten codes in turn, four times each, make 1000 runs; fresh draws would repeat by chance too, so more than 1000:

    >>> effective_samples(np.full((1, 10), 400), Repeats(np.array([3000]), np.array([3999]))).round()
    array([1112.])
    """
    n = counts.sum(axis=-1)
    same_by_chance = divide((counts * (counts - 1.0)).sum(axis=-1), n * (n - 1.0))
    differing = repeats.pairs - repeats.same
    expected = repeats.pairs * (1.0 - np.where(n > 1, same_by_chance, 0.0))
    fresh = np.minimum((differing + 1.0) / (expected + 1.0), 1.0)
    return np.where(n > 0, n - (1.0 - fresh) * repeats.pairs, np.nan)


def effective_of_sums(n: float, squares: float, same: int, pairs: int) -> float:
    """Return :func:`effective_samples` of one layer from n, the sum of squared counts, and its repeats.

    >>> round(effective_of_sums(4000.0, 10 * 400.0**2, 3000, 3999))
    1112
    """
    if not n > 0:
        return float("nan")
    same_by_chance = (squares - n) / (n * (n - 1.0)) if n > 1 else 0.0
    fresh = min((pairs - same + 1.0) / (pairs * (1.0 - same_by_chance) + 1.0), 1.0)
    return n - (1.0 - fresh) * pairs
