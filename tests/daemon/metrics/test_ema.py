"""Movement, cluster sizes, rank divergence and mismatch against plain loops, scipy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import entropy

from vqwatch_daemon.metrics.ema import (
    cluster_sizes,
    expired_codes,
    mismatch,
    motion,
    movement,
    rank_divergence_ratio,
    reinitialised_ratio,
)


def drawn(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (256, 1024), (64, 8), (2, 16, 4)])
def test_movement_is_torchs_mean_row_norm(shape: tuple[int, ...]) -> None:
    earlier, later = drawn(shape, 1), drawn(shape, 2)
    expected = torch.linalg.vector_norm(torch.from_numpy(later).double() - torch.from_numpy(earlier).double(), dim=-1)
    assert movement(earlier, later) == pytest.approx(expected.mean().item(), rel=1e-6)
    assert movement(earlier, later, steps=10) == pytest.approx(expected.mean().item() / 10, rel=1e-6)


def test_a_drift_reads_the_same_at_every_spacing() -> None:
    start, drift = drawn((32, 8)), drawn((32, 8), 1) * 1e-2
    readings = [movement(start, start + n * drift, n) for n in (1, 2, 10, 50)]
    assert readings == pytest.approx([readings[0]] * 4, rel=1e-3)


def test_a_tiny_movement_of_a_large_codebook_keeps_its_precision() -> None:
    earlier = drawn((64, 512)) * 100
    change = drawn((64, 512), 1).astype(np.float64) * 1e-6
    later = earlier.astype(np.float64) + change
    expected = np.mean([math.sqrt(sum(v * v for v in row)) for row in change.tolist()])
    assert movement(earlier.astype(np.float64), later) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, (2, 6, 3), elements=st.floats(-10, 10)), st.floats(0.01, 100))
def test_relative_movement_does_not_depend_on_scale_or_order(pair: NDArray[np.float64], scale: float) -> None:
    one = motion(pair[0], pair[1])
    order = [3, 1, 5, 0, 2, 4]
    assert one.movement >= 0
    assert motion(pair[0, order], pair[1, order]).movement == pytest.approx(one.movement)
    if one.norm.mean() > 1e-6:
        assert motion(pair[0] * scale, pair[1] * scale).relative == pytest.approx(one.relative, rel=1e-6)


def test_an_empty_codebook_has_no_relative_movement() -> None:
    assert math.isnan(motion(np.zeros((3, 2)), np.ones((3, 2))).relative)


def test_a_codebook_drawn_anew_is_told_from_one_that_learns() -> None:
    book = drawn((128, 16), 1)
    assert reinitialised_ratio(book, book + 0.1 * drawn((128, 16), 2)) == 0
    assert reinitialised_ratio(book, drawn((128, 16), 3)) > 0.8
    half = book.copy()
    half[:64] = -book[:64]
    assert reinitialised_ratio(book, half) == 0.5


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_one_bad_value_leaves_no_movement(poison: float, which: int) -> None:
    pair = [drawn((4, 4)), drawn((4, 4), 1)]
    pair[which][2, 2] = poison
    seen = motion(*pair)
    assert math.isnan(seen.movement)
    assert math.isnan(seen.relative)
    assert math.isnan(seen.reinitialised_ratio)


def test_values_whose_squares_overflow_float32_still_move() -> None:
    assert movement(np.full((2, 1), 1e25, np.float32), np.full((2, 1), 3e25, np.float32)) == pytest.approx(2e25)


@pytest.mark.parametrize(("shapes", "steps"), [(((4, 2), (4, 3)), 1), (((4, 2), (5, 2)), 1), (((4, 2), (4, 2)), 0)])
def test_snapshots_that_do_not_fit_are_refused(shapes: tuple[tuple[int, int], ...], steps: int) -> None:
    with pytest.raises(ValueError, match="snapshots"):
        motion(np.zeros(shapes[0]), np.zeros(shapes[1]), steps)


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e4)))
def test_cluster_sizes_are_described_as_numpy_and_scipy_do(sizes: NDArray[np.float64]) -> None:
    seen = cluster_sizes(sizes)
    assert seen.mean == pytest.approx(sizes.mean())
    assert seen.smallest == sizes.min()
    assert seen.std == pytest.approx(sizes.std(), abs=1e-9)
    assert seen.tiny == sum(size < 0.01 for size in sizes.tolist())
    if sizes.sum() > 1e-9:
        assert seen.perplexity == pytest.approx(math.exp(entropy(sizes)))
        assert 1 - 1e-9 <= seen.perplexity <= len(sizes) + 1e-9
    elif sizes.sum() == 0:
        assert math.isnan(seen.perplexity)


def test_ema_perplexity_is_the_mean_of_the_heads() -> None:
    assert cluster_sizes(np.array([[1.0, 1.0], [3.0, 0.0]])).perplexity == pytest.approx(1.5)


def test_cluster_sizes_that_are_not_finite_or_negative_have_no_perplexity() -> None:
    broken = cluster_sizes(np.array([1.0, np.nan]))
    assert all(math.isnan(v) for v in (broken.mean, broken.smallest, broken.std, broken.tiny, broken.perplexity))
    negative = cluster_sizes(np.array([1.0, -0.5]))
    assert negative.smallest == -0.5
    assert math.isnan(negative.perplexity)


def test_expired_codes_are_those_below_the_threshold() -> None:
    assert expired_codes(np.array([0.0, 1.99, 2.0, 7.0], np.float32), 2.0) == 2
    assert math.isnan(expired_codes(np.array([np.nan, 1.0]), 2.0))


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (0,), (2, 0)])
def test_what_are_no_cluster_sizes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cluster sizes are"):
        cluster_sizes(np.zeros(shape))


def sketched(codebook: NDArray[np.float32], buckets: int = 256) -> NDArray[np.float64]:
    rng = np.random.default_rng(99)
    flat = codebook.reshape(-1).astype(np.float64)
    sketch = np.zeros(buckets)
    np.add.at(sketch, rng.integers(0, buckets, flat.size), flat * rng.choice([-1.0, 1.0], flat.size))
    return sketch


@pytest.mark.parametrize("drift", [1e-4, 0.01, 0.3])
def test_sketches_measure_how_far_ranks_are_apart(drift: float) -> None:
    book, change = drawn((256, 64)), drawn((256, 64), 1)
    ranks = {0: book, 1: book, 2: book + drift * change}
    true = np.linalg.norm(ranks[2] - book) / np.linalg.norm(ranks[2])
    seen = rank_divergence_ratio({rank: sketched(values) for rank, values in ranks.items()})
    assert seen == pytest.approx(true, rel=0.25)


def test_ranks_that_are_the_same_or_empty_do_not_diverge() -> None:
    sketch = sketched(drawn((16, 4)))
    assert rank_divergence_ratio({3: sketch, 5: sketch.copy()}) == 0
    assert rank_divergence_ratio({0: np.zeros(4), 1: np.zeros(4)}) == 0


def test_divergence_is_bounded_and_knows_the_extremes() -> None:
    sketch = sketched(drawn((16, 4)))
    assert rank_divergence_ratio({0: sketch, 1: -sketch}) == pytest.approx(2)
    assert rank_divergence_ratio({0: sketch, 1: np.zeros_like(sketch)}) == 1
    assert rank_divergence_ratio({0: np.zeros_like(sketch), 1: sketch}) == 1
    unrelated = {0: sketched(drawn((256, 64), 1)), 1: sketched(drawn((256, 64), 2))}
    assert rank_divergence_ratio(unrelated) == pytest.approx(math.sqrt(2), rel=0.2)


def test_a_rank_whose_codebook_is_poisoned_diverges_without_bound() -> None:
    good, bad = np.ones(4), np.array([1, np.nan, 1, 1])
    assert rank_divergence_ratio({0: good, 1: bad}) == math.inf
    assert rank_divergence_ratio({0: bad, 1: good}) == math.inf
    assert math.isnan(rank_divergence_ratio({0: bad, 1: bad}))


def test_one_rank_or_sketches_of_different_lengths_are_no_evidence() -> None:
    assert math.isnan(rank_divergence_ratio({}))
    assert math.isnan(rank_divergence_ratio({0: np.ones(4)}))
    assert math.isnan(rank_divergence_ratio({0: np.ones(4), 1: np.ones(5)}))


def test_mismatch_is_what_a_plain_calculation_gives() -> None:
    codes, latents = drawn((50, 6)) * 0.2 + 1, drawn((400, 6), 1) * 2
    seen = mismatch(codes, latents)
    z = latents.astype(np.float64)
    spread = sum(float(np.var(z[:, d])) for d in range(6))
    distance = math.dist(codes.astype(np.float64).mean(axis=0), z.mean(axis=0))
    assert seen.mean_distance_ratio == pytest.approx(distance / math.sqrt(spread))
    assert seen.variance_ratio == pytest.approx(float(codes.astype(np.float64).var(axis=0).sum()) / spread)
    norms = [sorted(math.hypot(*row) for row in rows.tolist()) for rows in (codes, latents)]
    assert seen.norm_ratio == pytest.approx(((norms[0][24] + norms[0][25]) / 2) / ((norms[1][199] + norms[1][200]) / 2))


def test_a_codebook_of_the_latents_fits_them_and_a_shrunken_one_shows() -> None:
    latents = drawn((512, 16))
    assert mismatch(latents[:256], latents).norm_ratio == pytest.approx(1, rel=0.1)
    assert mismatch(latents[:256], latents).variance_ratio == pytest.approx(1, rel=0.1)
    assert mismatch(latents[:256] / 20, latents).norm_ratio < 0.3


def test_dead_codes_are_left_out_of_the_mismatch_when_named() -> None:
    latents = drawn((64, 4))
    codes = np.concatenate([latents, 1e4 * latents])
    active = np.arange(128) < 64
    assert mismatch(codes, latents, active).variance_ratio == pytest.approx(1)
    assert mismatch(codes, latents).variance_ratio > 1e6


def test_heads_split_the_latents_features() -> None:
    latents = drawn((64, 8))
    books = np.stack([latents[:, :4], latents[:, 4:]])
    assert mismatch(books, latents).norm_ratio == pytest.approx(1)
    assert mismatch(books, latents[:, :4]).norm_ratio == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("codes", "latents"),
    [
        (np.ones((2, 3)), np.ones((0, 3))),
        (np.ones((2, 3)), np.ones((4, 5))),
        (np.ones((2, 3)), np.ones(3)),
        (np.ones((2, 3)), np.full((4, 3), np.nan)),
        (np.full((2, 3), np.inf), np.ones((4, 3))),
        (np.ones((2, 3)), np.zeros((4, 3))),
    ],
)
def test_without_evidence_there_is_no_mismatch(codes: NDArray[np.float64], latents: NDArray[np.float64]) -> None:
    seen = mismatch(codes, latents)
    assert math.isnan(seen.norm_ratio)
    assert math.isnan(seen.mean_distance_ratio)
    assert math.isnan(seen.variance_ratio)


def test_no_active_code_is_no_mismatch() -> None:
    assert math.isnan(mismatch(np.ones((2, 3)), drawn((4, 3)), np.zeros(2, bool)).norm_ratio)
