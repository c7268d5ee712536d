"""All readings of codebook use at once, by the catalogue's names, each only where its evidence supports it.

The readings of :func:`judged` are needed every few training steps. They share five sums over the codes of each layer
(:func:`sums`); what follows from those is arithmetic on a handful of numbers, in plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import exp, log
from typing import Final, NamedTuple

import numpy as np

from vqwatch_daemon.metrics import codebook, entropy
from vqwatch_daemon.metrics.counting import Counts, Floats, Repeats
from vqwatch_daemon.metrics.entropy import Sizes
from vqwatch_daemon.metrics.evidence import Verdict, effective_of_sums, samples_needed, supports
from vqwatch_daemon.metrics.tensors import row_products

NAN: Final = float("nan")


class Sums(NamedTuple):
    """Sums over the codes of each layer, [L] each: assignments, their squares, n ln n, and how many codes.

    ``used`` codes were assigned at all, ``rare`` ones so seldom that they may be dead, padding included.
    """

    total: list[int]
    squares: list[float]
    logs: list[float]
    used: list[int]
    rare: list[int]


def sums(counts: Counts) -> Sums:
    """Return the sums of counts [L, K] that every reading of a step shares.

    >>> sums(np.array([[6, 2, 0]])).used
    [2]
    """
    layers, width = counts.shape
    if layers == 0:
        return Sums([], [], [], [], [])
    wide = counts.astype(np.float64)
    used, rare = [width] * layers, [0] * layers
    if counts.min() < codebook.DEAD_BELOW:
        used = [int(np.count_nonzero(layer)) for layer in counts]
        rare = [int(np.count_nonzero(layer)) for layer in counts < codebook.DEAD_BELOW]
    return Sums(
        counts.sum(axis=1).tolist(),
        row_products(wide, wide).tolist(),
        entropy.n_log_n(counts).sum(axis=1).tolist(),
        used,
        rare,
    )


def per_layer(counts: Counts, sizes: Sizes, repeats: Repeats) -> dict[str, Floats]:
    """Return metric name -> [L] for the window's counts [L, K] and repeats; nan where the evidence is too thin.

    What each reading needs is in :class:`Verdict`. The against-uniform ratio needs none, it is about 1 for a uniform
    codebook at any number of samples; and the numbers of samples are the evidence itself.
    """
    of_size = np.broadcast_to(np.asarray(sizes, np.int64), len(counts)).tolist()
    found = {name: np.array(values) for name, values in judged(counts, of_size, repeats).items()}
    return {**found, **described(counts, sizes, found["codebook_effective_samples"])}


def judged(counts: Counts, sizes: Sequence[int], repeats: Repeats) -> dict[str, list[float]]:
    """Return the readings of :func:`per_layer` that alerts rest on, cheap enough for every few steps.

    They are those of the functions in ``codebook.py``, ``entropy.py`` and ``evidence.py``, value by value.
    """
    width = counts.shape[1]
    rows = [
        _judged(width, *row)
        for row in zip(sizes, *sums(counts), repeats.same.tolist(), repeats.pairs.tolist(), strict=True)
    ]
    return dict(zip(_JUDGED, map(list, zip(*rows, strict=True)), strict=True)) if rows else {n: [] for n in _JUDGED}


_JUDGED: Final = (
    "codebook_size",
    "codebook_utilization_ratio",
    "codebook_perplexity",
    "codebook_entropy_nats",
    "codebook_entropy_ratio",
    "codebook_dead_codes",
    "codebook_dead_ratio",
    "codebook_window_samples",
    "codebook_effective_samples",
)


def _judged(
    width: int, size: int, n: int, squares: float, logs: float, used: int, rare: int, same: int, pairs: int
) -> tuple[float, ...]:
    """Return one layer's readings, in the order of :data:`_JUDGED`."""
    effective = effective_of_sums(n, squares, same, pairs)
    for_use, for_dead, capacity = _needed(size)
    seen = share = nats = perplexity = dead = NAN
    if effective >= for_use:
        seen, nats = used / size, max(log(n) - logs / n, 0.0)
        perplexity, share = exp(nats), nats / capacity if capacity else NAN
    if effective >= for_dead:
        dead = float(rare - (width - size))
    return float(size), seen, perplexity, nats, share, dead, dead / size, float(n), effective


@lru_cache(maxsize=1024)
def _needed(size: int) -> tuple[float, float, float]:
    """Return the effective samples that use and dead codes of this many codes need, and ln K."""
    use, dead = (float(samples_needed(verdict, size)) for verdict in (Verdict.UTILIZATION, Verdict.DEAD_CODES))
    return use, dead, log(size)


def described(counts: Counts, sizes: Sizes, effective: Floats) -> dict[str, Floats]:
    """Return the readings of :func:`per_layer` that describe and correct; a window changes little in a few steps."""
    unbiased = supports(Verdict.PERPLEXITY, effective, sizes)
    even = supports(Verdict.EVENNESS, effective, sizes)
    return {
        "codebook_utilization_vs_uniform_ratio": codebook.utilization_vs_uniform(counts, sizes, effective),
        "codebook_perplexity_unbiased": np.where(unbiased, entropy.perplexity_unbiased(counts), np.nan),
        "codebook_gini_ratio": np.where(even, codebook.gini(counts, sizes), np.nan),
    }


def across_layers(readings: Mapping[str, Sequence[float] | Floats]) -> dict[str, float]:
    """Return the readings of the whole stack from :func:`per_layer`'s; layers without evidence are left out."""
    utilization, nats = readings["codebook_utilization_ratio"], readings["codebook_entropy_nats"]
    return {
        "codebook_utilization_mean_ratio": codebook.mean_over_layers(utilization),
        "codebook_utilization_worst_ratio": codebook.worst_over_layers(utilization),
        "codebook_perplexity_mean": codebook.mean_over_layers(readings["codebook_perplexity"]),
        "codebook_bitrate_efficiency_ratio": entropy.bitrate_efficiency(nats, map(log, readings["codebook_size"])),
    }
