"""The geometry of a codebook against numpy's SVD and variance, scikit-learn and plain loops."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from vqwatch_daemon.metrics import geometry as geometry_module
from vqwatch_daemon.metrics.geometry import (
    active_rows,
    effective_rank,
    embedding_variance,
    geometry,
    near_duplicate_ratio,
    norm_spread_ratio,
)
from vqwatch_daemon.metrics.tensors import nonfinite_values

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (64, 16), (16, 64), (40, 40)]
codebooks = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    # scikit-learn takes a norm below about 1e-15 for 0
    elements=st.just(0.0) | st.floats(0.125, 100, width=32) | st.floats(-100, -0.125, width=32),
)


def drawn(shape: tuple[int, ...], seed: int = 0, dtype: type = np.float32) -> NDArray[np.floating]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rank_by_svd(codebook: NDArray[np.floating]) -> float:
    values = np.linalg.svd(codebook.astype(np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares))


def twins_by_loop(codebook: NDArray[np.floating], threshold: float) -> float:
    similar = cosine_similarity(codebook.astype(np.float64))
    zero = ~codebook.any(axis=1)
    count = 0
    for i in range(len(codebook)):
        others = [j for j in range(len(codebook)) if j != i]
        count += any(similar[i, j] > threshold or (zero[i] and zero[j]) for j in others)
    return count / len(codebook)


@pytest.mark.parametrize("shape", SHAPES)
def test_variance_is_numpys(shape: tuple[int, int]) -> None:
    codebook = drawn(shape) + 3
    expected = codebook.astype(np.float64).var(axis=0).mean()
    assert embedding_variance(codebook) == pytest.approx(expected, abs=1e-12)
    assert geometry(codebook).embedding_variance == pytest.approx(expected, abs=1e-12)


def test_variance_tells_collapse_from_a_tight_cluster_far_from_the_origin() -> None:
    centre = np.full((1, 64), 100.0)
    assert embedding_variance(np.repeat(centre, 32, axis=0)) < 1e-9
    spread = embedding_variance(centre + 2e-3 * drawn((32, 64), dtype=np.float64))
    assert spread == pytest.approx(4e-6, rel=0.1)


def test_a_collapsed_head_is_not_hidden_by_the_others() -> None:
    books = drawn((3, 16, 4))
    books[1] = books[1, 0]
    assert geometry(books).embedding_variance == pytest.approx(0, abs=1e-12)
    assert embedding_variance(books) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_rank_is_that_of_the_svd(shape: tuple[int, int]) -> None:
    codebook = drawn(shape, seed=3)
    assert effective_rank(codebook) == pytest.approx(rank_by_svd(codebook), rel=1e-6)
    assert geometry(codebook).effective_rank == pytest.approx(rank_by_svd(codebook), rel=1e-6)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97])
def test_effective_rank_keeps_its_precision_when_the_spectrum_falls_steeply(decay: float) -> None:
    rng = np.random.default_rng(5)
    left, right = np.linalg.qr(rng.standard_normal((96, 96)))[0], np.linalg.qr(rng.standard_normal((128, 96)))[0]
    codebook = (left * decay ** np.arange(96)) @ right.T
    assert effective_rank(codebook) == pytest.approx(rank_by_svd(codebook), rel=1e-5)


def test_effective_rank_of_one_line_is_one_in_float32_too() -> None:
    codebook = np.outer(np.linspace(1, 2, 200), drawn((300,))).astype(np.float32)
    assert effective_rank(codebook) == pytest.approx(1, abs=1e-3)


def test_only_active_rows_have_a_rank() -> None:
    codebook = drawn((20, 8))
    active = active_rows(np.where(np.arange(20) < 3, 5.0, 0.0))
    assert effective_rank(codebook, active) == pytest.approx(rank_by_svd(codebook[:3]), rel=1e-6)
    assert geometry(codebook, active).effective_rank == pytest.approx(rank_by_svd(codebook[:3]), rel=1e-6)
    wide = drawn((20, 64))
    assert geometry(wide, active[0]).effective_rank == pytest.approx(rank_by_svd(wide[:3]), rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 64), (30, 8)])
def test_no_active_row_and_no_length_are_no_evidence_of_rank(shape: tuple[int, int]) -> None:
    assert math.isnan(geometry(drawn(shape), np.zeros(30, bool)).effective_rank)
    assert math.isnan(effective_rank(np.zeros(shape)))
    assert math.isnan(geometry(np.zeros(shape)).effective_rank)


def test_a_codebook_too_large_on_both_sides_has_no_rank_but_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_module, "LARGEST_GRAM", 8)
    reading = geometry(drawn((10, 12)))
    assert math.isnan(reading.effective_rank)
    assert reading.embedding_variance > 0
    assert reading.near_duplicate_ratio == 0


@settings(max_examples=60, deadline=None)
@given(codebooks, st.sampled_from([-0.5, 0.3, 0.9]))
def test_near_duplicates_are_scikit_learns(codebook: NDArray[np.float32], threshold: float) -> None:
    similar = cosine_similarity(codebook.astype(np.float64))
    if np.any(np.abs(similar - threshold) < 1e-5):
        return  # within rounding of the threshold either answer is right
    assert near_duplicate_ratio(codebook, threshold) == pytest.approx(twins_by_loop(codebook, threshold))


@pytest.mark.parametrize("dim", [4, 64])
def test_both_ways_of_finding_duplicates_agree(dim: int) -> None:
    codebook = drawn((40, dim))
    codebook[7] = 3 * codebook[30]
    codebook[11] = -codebook[12]
    codebook[[20, 25]] = 0
    assert geometry(codebook).near_duplicate_ratio == near_duplicate_ratio(codebook) == 4 / 40
    assert near_duplicate_ratio(codebook) == twins_by_loop(codebook, 0.99)


def test_an_all_zero_codebook_is_all_duplicates_and_one_code_is_none() -> None:
    for shape in ((6, 3), (6, 12)):
        assert geometry(np.zeros(shape)).near_duplicate_ratio == 1
        assert near_duplicate_ratio(np.zeros(shape)) == 1
    assert geometry(np.zeros((1, 3))).near_duplicate_ratio == near_duplicate_ratio(np.ones((1, 3))) == 0


def test_a_large_codebook_is_sampled_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_module, "COMPARED_ROWS", 400)
    monkeypatch.setattr(geometry_module, "_BLOCK_ENTRIES", 4000)
    codebook = drawn((2000, 16))
    codebook[1:1000:2] = codebook[0:1000:2]
    assert near_duplicate_ratio(codebook) == pytest.approx(0.5, abs=0.02)


def test_duplicates_of_different_heads_are_none() -> None:
    books = np.stack([np.eye(4), np.eye(4)])
    assert geometry(books).near_duplicate_ratio == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_spread_is_largest_over_median(shape: tuple[int, int]) -> None:
    codebook = drawn(shape)
    norms = sorted(math.sqrt(sum(float(v) ** 2 for v in row)) for row in codebook)
    middle = (norms[(len(norms) - 1) // 2] + norms[len(norms) // 2]) / 2
    assert norm_spread_ratio(codebook) == pytest.approx(norms[-1] / middle, rel=1e-6)
    assert geometry(codebook).norm_spread_ratio == pytest.approx(norms[-1] / middle, rel=1e-6)


def test_empty_rows_do_not_widen_the_norm_spread() -> None:
    codebook = np.ones((10, 4))
    codebook[:6] = 0
    assert norm_spread_ratio(codebook) == 1
    assert math.isnan(norm_spread_ratio(np.zeros((3, 2))))


@settings(max_examples=60, deadline=None)
@given(codebooks)
def test_readings_are_in_range_and_do_not_depend_on_the_order_of_codes(codebook: NDArray[np.float32]) -> None:
    order = np.random.default_rng(0).permutation(len(codebook))
    one, other = geometry(codebook), geometry(codebook[order])
    assert one.embedding_variance >= 0
    assert 0 <= one.near_duplicate_ratio <= 1
    assert math.isnan(one.effective_rank) or 1 - 1e-9 <= one.effective_rank <= min(codebook.shape) + 1e-9
    assert math.isnan(one.norm_spread_ratio) or one.norm_spread_ratio >= 1 - 1e-12
    assert one.embedding_variance == pytest.approx(other.embedding_variance, abs=1e-9)
    assert one.norm_spread_ratio == pytest.approx(other.norm_spread_ratio, nan_ok=True)
    assert one.effective_rank == pytest.approx(other.effective_rank, rel=1e-4, nan_ok=True)
    assert one.near_duplicate_ratio == other.near_duplicate_ratio or np.any(
        np.abs(cosine_similarity(codebook.astype(np.float64)) - 0.99) < 1e-6
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (2, 5, 3)])
def test_one_bad_value_leaves_no_reading_that_looks_healthy(poison: float, shape: tuple[int, ...]) -> None:
    codebook = drawn(shape)
    codebook[..., -1, 1] = poison
    reading = geometry(codebook)
    assert reading.nonfinite_values == math.prod(shape[:-2])
    for value in (
        reading.embedding_variance,
        reading.effective_rank,
        reading.near_duplicate_ratio,
        reading.norm_spread_ratio,
        embedding_variance(codebook),
        effective_rank(codebook),
        near_duplicate_ratio(codebook),
        norm_spread_ratio(codebook),
    ):
        assert math.isnan(value)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 16, 40)])
def test_without_its_rank_a_codebook_reads_the_same(shape: tuple[int, ...], scale: float) -> None:
    codebook = drawn(shape)
    codebook[..., : shape[-2] // 3, :] = codebook[..., :1, :] * np.float32(1.5)
    codebook[..., -1, :] = 0
    codebook *= np.float32(scale)
    whole, short = asdict(geometry(codebook)), asdict(geometry(codebook, rank=False))
    assert math.isnan(short.pop("effective_rank"))
    del whole["effective_rank"]
    assert short == pytest.approx(whole, rel=1e-9, nan_ok=True)


def test_huge_finite_values_are_not_taken_for_infinite() -> None:
    codebook = np.full((4, 4), 3e38, np.float32)
    reading = geometry(codebook)
    assert reading.nonfinite_values == 0
    assert reading.near_duplicate_ratio == near_duplicate_ratio(codebook) == 1
    assert reading.norm_spread_ratio == norm_spread_ratio(codebook) == 1


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.floats(width=32)))
def test_nonfinite_values_are_counted_one_by_one(values: NDArray[np.float32]) -> None:
    expected = sum(not math.isfinite(value) for value in values.reshape(-1).tolist())
    assert nonfinite_values(values) == nonfinite_values(values.astype(np.float64)) == expected


def test_half_precision_integers_and_nothing_can_be_counted() -> None:
    half = np.array([65504, np.inf, np.nan], np.float16)
    assert nonfinite_values(half, np.arange(5), np.array([True]), np.zeros(0)) == 2
    assert nonfinite_values() == 0


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (1, 2, 3, 4)])
def test_what_is_no_codebook_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a codebook is"):
        geometry(np.zeros(shape))
