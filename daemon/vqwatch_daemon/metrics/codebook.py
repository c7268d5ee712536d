"""How many codes are used, which are not, and how that changes.

Every function takes counts [..., K] over a window and reduces the last axis: [K] gives a number, [L, K] gives [L].
Layers smaller than K are padded with zeros and named by ``sizes``. nan: nothing was assigned. The proposal computes all
of this over one batch although its table says "past N batches"; here counts are of whatever window the caller summed.
"""

from collections.abc import Iterable

import numpy as np

from vqwatch_daemon.metrics.counting import Counts, Floats
from vqwatch_daemon.metrics.entropy import Sizes, divide

DEAD_BELOW = 5
"""The proposal's threshold: a code with fewer assignments is dead."""

SLOPE_POINTS = 11
"""A slope needs more than ten points, as the proposal has it."""


def utilization(counts: Counts, sizes: Sizes) -> Floats:
    """Return the share of codes that were assigned at least once, from 1/K to 1.

    Limited by the samples: n of them show at most n codes. See :func:`utilization_vs_uniform`.

    >>> float(utilization(np.array([4, 0, 1, 0]), 4))
    0.5
    """
    return np.where(counts.any(axis=-1), (counts > 0).sum(axis=-1) / np.asarray(sizes), np.nan)


def utilization_vs_uniform(counts: Counts, sizes: Sizes, effective: Floats) -> Floats:
    """Return distinct codes over the number a uniform codebook would show in as many effective samples.

    About 1 for uniform usage at every number of samples, from few to many; less where codes are preferred. Noise may
    lift it a little above 1. The expectation is K·(1 - (1 - 1/K)^n).

    >>> rounded = utilization_vs_uniform(np.array([2, 1, 1, 0]), 4, np.array(4.0)).round(4)
    >>> float(rounded)
    1.0971
    """
    size = np.asarray(sizes, np.float64)
    with np.errstate(divide="ignore"):  # a codebook of one is certain to show it: log1p(-1) = -inf is meant
        missed = np.log1p(-1 / size) * np.maximum(effective, 1.0)
    return divide((counts > 0).sum(axis=-1), np.where(counts.any(axis=-1), -size * np.expm1(missed), 0.0))


def gini(counts: Counts, sizes: Sizes) -> Floats:
    """Return the inequality of the usage: 0 when uniform, (K - 1)/K when one code takes all.

    2·sum(i·x_i) / (K·sum x) - (K + 1)/K over ascending counts, i from 1. Published code sorts the other way and reports
    -0.996 for a full collapse.

    >>> float(gini(np.array([0, 0, 0, 9]), 4)), float(gini(np.array([3, 3, 3, 3]), 4))
    (0.75, 0.0)
    """
    size = np.asarray(sizes, np.float64)
    width = counts.shape[-1]
    weighted = np.sort(counts, axis=-1) @ np.arange(1.0, width + 1)
    n = counts.sum(axis=-1)
    padding = width - size  # padded zeros sort first: they shift every rank and weigh nothing
    return np.maximum(2 * divide(weighted - padding * n, size * n) - (size + 1) / size, 0.0)


def dead_codes(counts: Counts, sizes: Sizes, below: int = DEAD_BELOW) -> Floats:
    """Return how many codes were assigned fewer than ``below`` times; nan when nothing was assigned.

    A verdict only where ``supports(Verdict.DEAD_CODES, ...)``: in a small window healthy codes look dead. There, every
    code with at least 0.1 of its uniform share has been seen (99 % sure over all codes together), and every code with
    0.2 of it has been seen five times. The proposal takes one batch.

    >>> float(dead_codes(np.array([40, 7, 2, 0]), 4))
    2.0
    """
    padding = counts.shape[-1] - np.asarray(sizes)
    return np.where(counts.any(axis=-1), (counts < below).sum(axis=-1) - padding, np.nan)


def alive_codes(counts: Counts, sizes: Sizes) -> Floats:
    """Return Chao's estimate of how many codes are alive, seen or not: S + f1·(f1 - 1) / (2·(f2 + 1)), at most K.

    S codes were seen, f1 of them once and f2 twice. A lower bound in expectation, good from about K samples: what
    can be said before the samples support :func:`dead_codes`. Runs hide singletons and make it read low.
    Source: A. Chao, Scandinavian Journal of Statistics 11 (1984), in the bias-corrected form.

    >>> float(alive_codes(np.array([1, 1, 1, 1, 2, 0, 0, 0, 0, 0]), 10))
    8.0
    """
    once = (counts == 1).sum(axis=-1)
    twice = (counts == 2).sum(axis=-1)
    estimate = (counts > 0).sum(axis=-1) + once * (once - 1) / (2 * (twice + 1))
    return np.where(counts.any(axis=-1), np.minimum(estimate, sizes), np.nan)


def slope(steps: Floats, values: Floats) -> Floats:
    """Return the least-squares change per step of ``values`` [..., N] at ``steps`` [N]; unknown values are left out.

    nan below 11 known points, or when all of them are of one step. The proposal fits over positions in a list; with
    lost or sampled steps that is no rate, so this fits over the steps themselves. Readings of overlapping windows
    change together: the slope describes them, its scatter is no test of significance.

    >>> round(float(slope(np.arange(0.0, 22.0, 2.0), np.linspace(0.5, 0.7, 11))), 6)
    0.01
    """
    known = ~np.isnan(values)
    if known.all() and known.shape[-1] >= SLOPE_POINTS:
        times = steps - steps[0]
        centred = times - times.sum() / len(times)
        return divide(values @ centred, np.dot(centred, centred))
    points = known.sum(axis=-1, keepdims=True)
    times = np.where(known, steps - steps[..., :1], 0.0)
    heights = np.where(known, values, 0.0)
    centred = np.where(known, times - divide(times.sum(axis=-1, keepdims=True), points), 0.0)
    rate = divide((centred * heights).sum(axis=-1), (centred * centred).sum(axis=-1))
    return np.where(points[..., 0] >= SLOPE_POINTS, rate, np.nan)


def mean_over_layers(values: Iterable[float]) -> float:
    """Return the mean of the known values of all layers; nan when none is known.

    >>> mean_over_layers([0.5, float("nan"), 1.0])
    0.75
    """
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def worst_over_layers(values: Iterable[float]) -> float:
    """Return the smallest of the known values of all layers; nan when none is known.

    >>> worst_over_layers([0.5, float("nan"), 1.0])
    0.5
    """
    return min((value for value in values if value == value), default=float("nan"))
