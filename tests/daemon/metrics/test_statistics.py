"""The statistical claims of the docstrings, simulated with fixed seeds: bias of estimates, and verdicts that never err.

Bounds leave room for the simulation's own noise: several standard errors of the mean over the draws.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vqwatch_daemon.metrics.codebook import alive_codes, dead_codes, utilization_vs_uniform
from vqwatch_daemon.metrics.counting import count_assignments, count_repeats
from vqwatch_daemon.metrics.entropy import perplexity, perplexity_unbiased
from vqwatch_daemon.metrics.evidence import Verdict, effective_samples, samples_needed, supports

SIZE = 1024

Shares = NDArray[np.float64]


def zipf(size: int) -> Shares:
    weights = np.arange(1.0, size + 1) ** -0.75
    shares: Shares = weights / weights.sum()
    return shares


def half_dead(size: int) -> Shares:
    return np.where(np.arange(size) < size // 2, 2 / size, 0.0)


def uniform(size: int) -> Shares:
    return np.full(size, 1 / size)


USAGES = {"uniform": uniform(SIZE), "zipf": zipf(SIZE), "half-dead": half_dead(SIZE)}


def draw(shares: Shares, samples: int, times: int = 200) -> NDArray[np.int64]:
    return np.random.default_rng([samples, times]).multinomial(samples, shares, size=times)


def truth(shares: Shares) -> float:
    used = shares[shares > 0]
    return math.exp(-(used * np.log(used)).sum())


@pytest.mark.parametrize(
    ("usage", "samples", "plain", "unbiased"),
    [
        ("uniform", 128, 117, 358),
        ("uniform", 1024, 577, 976),
        ("uniform", 4096, 896, 1024),
        ("uniform", 16_384, 992, 1024),
        ("zipf", 128, 88, 213),
        ("zipf", 1024, 289, 436),
        ("zipf", 4096, 417, 478),
        ("zipf", 16_384, 463, 478),
        ("half-dead", 128, 109, 294),
        ("half-dead", 1024, 386, 512),
        ("half-dead", 4096, 480, 512),
        ("half-dead", 16_384, 504, 512),
    ],
)
def test_perplexity_reads_on_average_what_was_simulated(usage: str, samples: int, plain: int, unbiased: int) -> None:
    counts = draw(USAGES[usage], samples)
    assert perplexity(counts).mean() == pytest.approx(plain, rel=0.02)
    assert perplexity_unbiased(counts).mean() == pytest.approx(unbiased, rel=0.04)


@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("per_code", [1, 2, 4, 16])
def test_the_unbiased_perplexity_is_within_a_tenth_from_one_sample_per_code(usage: str, per_code: int) -> None:
    shares = USAGES[usage]
    bias = perplexity_unbiased(draw(shares, per_code * SIZE)).mean() / truth(shares) - 1
    assert abs(bias) < (0.1 if per_code == 1 else 0.04 if per_code == 2 else 0.01)


@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("samples", [SIZE // 8, SIZE // 2, SIZE, 4 * SIZE, 16 * SIZE])
def test_the_unbiased_perplexity_is_nearer_the_truth_than_the_plain_one_at_every_size(usage: str, samples: int) -> None:
    shares, counts = USAGES[usage], draw(USAGES[usage], samples)
    plain, unbiased = perplexity(counts).mean(), perplexity_unbiased(counts).mean()
    assert plain < truth(shares)
    assert abs(unbiased - truth(shares)) < abs(plain - truth(shares))


@pytest.mark.parametrize("samples", [1, 8, 32, 128, 1024, 4096, 16_384])
def test_a_uniform_codebook_is_uniform_against_uniform_at_every_number_of_samples(samples: int) -> None:
    ratio = utilization_vs_uniform(draw(USAGES["uniform"], samples), SIZE, np.full(200, float(samples)))
    assert ratio.mean() == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize(("samples", "ratio"), [(1024, 0.68), (16_384, 0.5)])
def test_a_half_dead_codebook_falls_short_of_uniform(samples: int, ratio: float) -> None:
    counts = draw(USAGES["half-dead"], samples)
    assert utilization_vs_uniform(counts, SIZE, np.full(200, float(samples))).mean() == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(("samples", "estimate"), [(128, 505), (1024, 513), (4096, 512)])
def test_chao_finds_how_many_codes_are_alive_long_before_all_were_seen(samples: int, estimate: int) -> None:
    assert alive_codes(draw(USAGES["half-dead"], samples, 1000), SIZE).mean() == pytest.approx(estimate, rel=0.05)


@pytest.mark.parametrize("size", [16, 256, 1024])
@pytest.mark.parametrize("healthy", [uniform, zipf])
def test_healthy_usage_has_no_dead_code_in_a_thousand_windows(size: int, healthy: Callable[[int], Shares]) -> None:
    needed = math.ceil(float(samples_needed(Verdict.DEAD_CODES, size)))
    counts = draw(healthy(size), needed, 1000)
    assert supports(Verdict.DEAD_CODES, np.array(float(needed)), size)
    assert dead_codes(counts, size).sum() == 0


def test_a_tenth_of_the_uniform_share_is_met_in_all_but_a_hundredth_of_windows() -> None:
    size, times = 256, 1000
    shares = np.full(size, 0.1 / size)
    shares[0] += 1 - shares.sum()
    needed = math.ceil(float(samples_needed(Verdict.DEAD_CODES, size)))
    missed = (dead_codes(draw(shares, needed, times), size, below=1) > 0).mean()
    assert missed <= 0.02


def test_dead_codes_are_all_found_once_the_evidence_supports_it() -> None:
    needed = math.ceil(float(samples_needed(Verdict.DEAD_CODES, SIZE)))
    assert (dead_codes(draw(USAGES["half-dead"], needed), SIZE) == SIZE // 2).all()


def test_healthy_but_sticky_streams_give_no_dead_verdict_before_their_runs_allow() -> None:
    """A thousand windows just too short when runs count once, though long enough by the number of frames."""
    rng = np.random.default_rng(40)
    size, run = 16, 8
    frames = math.ceil(float(samples_needed(Verdict.DEAD_CODES, size)) * 2)
    windows = rng.integers(0, size, (1000, 4, frames // run // 4)).astype(np.uint8)
    indices = np.repeat(windows, run, axis=2)
    counts = count_assignments(indices, size).counts
    effective = effective_samples(counts, count_repeats(indices))
    verdicts = supports(Verdict.DEAD_CODES, effective, size).sum()
    assert supports(Verdict.DEAD_CODES, counts.sum(axis=1).astype(float), size).all()
    assert verdicts == 0


@pytest.mark.parametrize("usage", [uniform(256), zipf(256), half_dead(256)])
def test_effective_samples_of_independent_draws_are_the_samples_window_after_window(usage: Shares) -> None:
    rng = np.random.default_rng(41)
    indices = rng.choice(256, size=(300, 8, 250), p=usage).astype(np.uint8)
    counts = count_assignments(indices, 256).counts
    share = effective_samples(counts, count_repeats(indices)) / 2000
    assert share.mean() > 0.99
    assert share.min() > 0.95
