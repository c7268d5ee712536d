"""Effective samples and what they support."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import poisson

from vqwatch_daemon.metrics import codebook, entropy, usage
from vqwatch_daemon.metrics.counting import Repeats, count_assignments, count_repeats
from vqwatch_daemon.metrics.evidence import DEAD_ERROR, DEAD_SHARE, Verdict, effective_samples, samples_needed, supports


def effective(indices: NDArray[Any], size: int, mask: NDArray[np.bool_] | None = None) -> float:
    counts = count_assignments(indices[np.newaxis], size, mask).counts
    return float(effective_samples(counts, count_repeats(indices[np.newaxis], mask))[0])


def zipf(size: int, power: float) -> NDArray[np.float64]:
    weights = np.arange(1.0, size + 1) ** -power
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@pytest.mark.parametrize("probabilities", [zipf(256, 0), zipf(256, 1), zipf(4, 0), zipf(16, 3), np.array([0.98, 0.02])])
def test_independent_draws_are_all_effective_however_few_codes_there_are(probabilities: NDArray[np.float64]) -> None:
    draws = np.random.default_rng(1).choice(len(probabilities), size=(40, 500), p=probabilities)
    assert effective(draws, len(probabilities)) == pytest.approx(draws.size, rel=0.1)
    assert effective(draws, len(probabilities)) <= draws.size


@pytest.mark.parametrize("run", [2, 5, 16])
@pytest.mark.parametrize("size", [4, 256])
def test_runs_of_equal_codes_count_once(run: int, size: int) -> None:
    draws = np.random.default_rng(2).integers(0, size, (40, 640 // run))
    assert effective(np.repeat(draws, run, axis=1), size) == pytest.approx(draws.size, rel=0.05)


@pytest.mark.parametrize("stickiness", [0.3, 0.9])
def test_runs_of_random_length_are_worth_their_fresh_draws(stickiness: float) -> None:
    rng = np.random.default_rng(3)
    fresh = rng.random((40, 500)) >= stickiness
    fresh[:, 0] = True
    latest = np.maximum.accumulate(np.where(fresh, np.arange(500), 0), axis=1)
    stream = np.take_along_axis(rng.choice(64, size=(40, 500), p=zipf(64, 0.75)), latest, axis=1)
    assert effective(stream, 64) == pytest.approx(fresh.sum(), rel=0.05)


def test_effective_samples_predict_how_many_codes_show_up() -> None:
    rng = np.random.default_rng(4)
    distinct, predicted = [], []
    for _ in range(50):
        stream = np.repeat(rng.integers(0, 1024, (8, 32)), 16, axis=1)
        distinct.append(len(np.unique(stream)))
        predicted.append(1024 * -math.expm1(effective(stream, 1024) * math.log1p(-1 / 1024)))
    assert np.mean(distinct) == pytest.approx(np.mean(predicted), rel=0.03)


def test_the_chance_of_equal_neighbours_is_estimated_without_bias_from_few_samples() -> None:
    """Four runs of two: s = 8/56, so 6 of 7 neighbours should differ and 3 do, each with its pseudo-count."""
    assert effective(np.repeat(np.arange(4), 2)[np.newaxis], 4) == pytest.approx(8 - 7 * (1 - 4 / 7))


def test_a_collapse_to_one_code_keeps_its_evidence() -> None:
    assert effective(np.zeros((16, 500), np.uint8), 256) == 8000


def test_sequences_of_one_code_each_are_worth_one_draw_each() -> None:
    draws = np.random.default_rng(5).integers(0, 256, (32, 1))
    assert effective(np.repeat(draws, 500, axis=1), 256) == pytest.approx(32, abs=2)


def test_masked_frames_are_no_evidence_and_end_a_run() -> None:
    rng = np.random.default_rng(6)
    stream = np.repeat(rng.integers(0, 256, (40, 50)), 10, axis=1)
    mask = np.arange(500) < rng.integers(1, 501, (40, 1))
    assert effective(stream, 256, mask) == pytest.approx(mask.sum() / 10, rel=0.1)


@given(arrays(np.int64, (2, 3, 7), elements=st.integers(-1, 4)))
def test_effective_samples_lie_between_one_and_the_samples(indices: NDArray[np.int64]) -> None:
    counts = count_assignments(indices, 5).counts
    n = counts.sum(axis=1)
    result = effective_samples(counts, count_repeats(indices))
    assert np.isnan(result).tolist() == (n == 0).tolist()
    assert (result[n > 0] >= 1 - 1e-9).all()
    assert (result[n > 0] <= n[n > 0]).all()


def test_one_sample_is_one_effective_sample() -> None:
    assert effective(np.array([[3]]), 8) == 1.0


@pytest.mark.parametrize(("size", "needed"), [(256, 26.0e3), (1024, 118e3), (4096, 529e3), (16_384, 2.34e6)])
def test_a_verdict_on_dead_codes_needs_what_was_derived_for_it(size: int, needed: float) -> None:
    assert float(samples_needed(Verdict.DEAD_CODES, size)) == pytest.approx(needed, rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 256, 16_384])
def test_the_error_of_a_dead_verdict_is_bounded_over_all_codes(size: int) -> None:
    expected = float(samples_needed(Verdict.DEAD_CODES, size)) / size
    assert size * poisson.cdf(0, DEAD_SHARE * expected) <= DEAD_ERROR * 1.001
    if size >= 256:
        assert size * poisson.cdf(4, 2 * DEAD_SHARE * expected) <= DEAD_ERROR


def test_unknown_evidence_supports_nothing() -> None:
    for verdict in Verdict:
        assert supports(verdict, np.array([np.nan, 0.0, 1e9]), 256).tolist() == [False, False, True]


def test_layers_of_different_size_have_thresholds_of_their_own() -> None:
    assert supports(Verdict.UTILIZATION, np.array([400.0, 400.0]), [128, 256]).tolist() == [True, False]


def layers_used(samples: int, size: int = 256) -> tuple[NDArray[np.int64], Repeats]:
    indices = np.random.default_rng(7).integers(0, size, (2, samples, 1))
    return count_assignments(indices, size).counts, count_repeats(indices)


def test_a_healthy_codebook_seen_through_32_codes_is_no_reading_but_its_evidence_is() -> None:
    counts, repeats = layers_used(32)
    readings = usage.per_layer(counts, 256, repeats)
    known = {name for name, values in readings.items() if not np.isnan(values).any()}
    assert known == {
        "codebook_size",
        "codebook_utilization_vs_uniform_ratio",
        "codebook_window_samples",
        "codebook_effective_samples",
    }
    assert readings["codebook_utilization_vs_uniform_ratio"] == pytest.approx([1.0, 1.0], abs=0.15)


def test_readings_appear_one_by_one_as_evidence_grows() -> None:
    appeared: dict[str, int] = {}
    for samples in (255, 256, 768, 8192, 26_000):
        counts, repeats = layers_used(samples)
        for name, values in usage.per_layer(counts, 256, repeats).items():
            if not np.isnan(values).any():
                appeared.setdefault(name, samples)
    assert {name: samples for name, samples in appeared.items() if samples > 255} == {
        "codebook_perplexity_unbiased": 256,
        "codebook_utilization_ratio": 768,
        "codebook_perplexity": 768,
        "codebook_entropy_nats": 768,
        "codebook_entropy_ratio": 768,
        "codebook_gini_ratio": 8192,
        "codebook_dead_codes": 26_000,
        "codebook_dead_ratio": 26_000,
    }


@given(
    arrays(np.int64, (3, 6), elements=st.integers(0, 60)),
    arrays(np.int64, (2, 3), elements=st.integers(0, 400)),
    st.lists(st.integers(1, 6), min_size=3, max_size=3),
)
def test_the_readings_of_a_step_are_those_of_their_own_functions(
    drawn: NDArray[np.int64], neighbours: NDArray[np.int64], sizes: list[int]
) -> None:
    counts = np.where(np.arange(6) < np.array(sizes)[:, np.newaxis], drawn, 0)
    n = counts.sum(axis=1)
    pairs = np.minimum(neighbours.max(axis=0), np.maximum(n - 1, 0))
    repeats = Repeats(np.minimum(neighbours[0], pairs), pairs)
    enough = effective_samples(counts, repeats)
    seen, met = (supports(verdict, enough, sizes) for verdict in (Verdict.UTILIZATION, Verdict.DEAD_CODES))
    dead = codebook.dead_codes(counts, sizes)
    expected = {
        "codebook_size": np.array(sizes, float),
        "codebook_utilization_ratio": np.where(seen, codebook.utilization(counts, sizes), np.nan),
        "codebook_perplexity": np.where(seen, entropy.perplexity(counts), np.nan),
        "codebook_entropy_nats": np.where(seen, entropy.entropy_nats(counts), np.nan),
        "codebook_entropy_ratio": np.where(seen, entropy.entropy_ratio(counts, sizes), np.nan),
        "codebook_dead_codes": np.where(met, dead, np.nan),
        "codebook_dead_ratio": np.where(met, dead / np.array(sizes), np.nan),
        "codebook_window_samples": n,
        "codebook_effective_samples": enough,
    }
    readings = usage.judged(counts, sizes, repeats)
    assert readings.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(readings[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_stack_is_judged_by_the_layers_that_can_be() -> None:
    counts = np.array([[900, 900, 0, 0], [900, 900, 900, 900], [1, 0, 0, 0]])
    alone = Repeats(np.zeros(3, np.int64), np.zeros(3, np.int64))
    assert usage.across_layers(usage.per_layer(counts, 4, alone)) == pytest.approx(
        {
            "codebook_utilization_mean_ratio": 0.75,
            "codebook_utilization_worst_ratio": 0.5,
            "codebook_perplexity_mean": 3.0,
            "codebook_bitrate_efficiency_ratio": 0.75,
        }
    )


def test_nothing_assigned_gives_no_reading_but_the_samples() -> None:
    nothing = Repeats(np.zeros(1, np.int64), np.zeros(1, np.int64))
    readings = usage.per_layer(np.zeros((1, 8), np.int64), 8, nothing)
    assert {name for name, values in readings.items() if not np.isnan(values).any()} == {
        "codebook_size",
        "codebook_window_samples",
    }
    assert all(math.isnan(value) for value in usage.across_layers(readings).values())
