"""All readings of codebook use at once, by the catalogue's names, each only where its evidence supports it."""

import numpy as np

from vqwatch_daemon.metrics import codebook, entropy
from vqwatch_daemon.metrics.counting import Counts, Floats, Repeats
from vqwatch_daemon.metrics.entropy import Sizes
from vqwatch_daemon.metrics.evidence import Verdict, effective_samples, supports


def per_layer(counts: Counts, sizes: Sizes, repeats: Repeats) -> dict[str, Floats]:
    """Return metric name -> [L] for the window's counts [L, K] and repeats; nan where the evidence is too thin.

    What each reading needs is in :class:`Verdict`. The against-uniform ratio needs none, it is about 1 for a uniform
    codebook at any number of samples; and the numbers of samples are the evidence itself.
    """
    effective = effective_samples(counts, repeats)
    return {**judged(counts, sizes, effective), **described(counts, sizes, effective)}


def judged(counts: Counts, sizes: Sizes, effective: Floats) -> dict[str, Floats]:
    """Return the readings of :func:`per_layer` that alerts rest on, cheap enough for every training step."""
    nats = entropy.entropy_nats(counts)
    dead = codebook.dead_codes(counts, sizes)
    seen = supports(Verdict.UTILIZATION, effective, sizes)
    met = supports(Verdict.DEAD_CODES, effective, sizes)
    return {
        "codebook_size": np.broadcast_to(np.asarray(sizes, np.float64), len(counts)),
        "codebook_utilization_ratio": np.where(seen, codebook.utilization(counts, sizes), np.nan),
        "codebook_perplexity": np.where(seen, np.exp(nats), np.nan),
        "codebook_entropy_nats": np.where(seen, nats, np.nan),
        "codebook_entropy_ratio": np.where(seen, entropy.divide(nats, np.log(sizes)), np.nan),
        "codebook_dead_codes": np.where(met, dead, np.nan),
        "codebook_dead_ratio": np.where(met, dead / np.asarray(sizes), np.nan),
        "codebook_window_samples": counts.sum(axis=-1).astype(np.float64),
        "codebook_effective_samples": effective,
    }


def described(counts: Counts, sizes: Sizes, effective: Floats) -> dict[str, Floats]:
    """Return the readings of :func:`per_layer` that describe and correct; a window changes little in a few steps."""
    unbiased = supports(Verdict.PERPLEXITY, effective, sizes)
    even = supports(Verdict.EVENNESS, effective, sizes)
    return {
        "codebook_utilization_vs_uniform_ratio": codebook.utilization_vs_uniform(counts, sizes, effective),
        "codebook_perplexity_unbiased": np.where(unbiased, entropy.perplexity_unbiased(counts), np.nan),
        "codebook_gini_ratio": np.where(even, codebook.gini(counts, sizes), np.nan),
    }


def across_layers(readings: dict[str, Floats]) -> dict[str, float]:
    """Return the readings of the whole stack from :func:`per_layer`'s; layers without evidence are left out."""
    utilization = readings["codebook_utilization_ratio"]
    nats = readings["codebook_entropy_nats"]
    capacity = np.log(readings["codebook_size"])
    return {
        "codebook_utilization_mean_ratio": codebook.mean_over_layers(utilization),
        "codebook_utilization_worst_ratio": codebook.worst_over_layers(utilization),
        "codebook_perplexity_mean": codebook.mean_over_layers(readings["codebook_perplexity"]),
        "codebook_bitrate_efficiency_ratio": entropy.bitrate_efficiency(nats, capacity),
    }
