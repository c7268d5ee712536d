"""What layers share, against numpy and scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from vqwatch_daemon.metrics.between import mutual_information, usage_correlation


def shared(first: NDArray[Any], second: NDArray[Any], seed: int = 0) -> float:
    return float(mutual_information(np.stack([first, second]), np.random.default_rng(seed))[0, 1])


@given(arrays(np.int64, (4, 9), elements=st.integers(0, 1000)).filter(lambda c: bool((np.ptp(c, axis=1) > 0).all())))
def test_usage_correlation_is_numpys(counts: NDArray[np.int64]) -> None:
    np.testing.assert_allclose(usage_correlation(counts, 9), np.corrcoef(counts), atol=1e-9)


def test_constant_usage_correlates_with_nothing() -> None:
    correlation = usage_correlation(np.array([[0, 0, 0], [3, 3, 3], [1, 2, 3]]), 3)
    assert np.isnan(correlation).tolist() == [[True, True, True], [True, True, True], [True, True, False]]


def test_layers_of_different_size_have_no_usage_correlation_and_padding_is_not_usage() -> None:
    small, other = [5, 1, 2], [1, 1, 7]
    counts = np.array([[*small, 0], [*other, 0], [4, 3, 2, 1]])
    correlation = usage_correlation(counts, [3, 3, 4])
    assert correlation[0, 1] == pytest.approx(np.corrcoef(small, other)[0, 1])
    assert np.isnan(correlation[0, 2])
    assert np.isnan(usage_correlation(np.array([[2, 2, 0], [1, 3, 0]]), 2)[0, 1])


@given(arrays(np.int64, (3, 6), elements=st.integers(0, 50)), st.integers(0, 9))
def test_usage_correlation_is_symmetric_in_range_and_blind_to_a_common_renumbering(
    counts: NDArray[np.int64], seed: int
) -> None:
    correlation = usage_correlation(counts, 6)
    known = correlation[~np.isnan(correlation)]
    assert (np.abs(known) <= 1).all()
    np.testing.assert_array_equal(correlation, correlation.T)
    renumbered = counts[:, np.random.default_rng(seed).permutation(6)]
    np.testing.assert_allclose(usage_correlation(renumbered, 6), correlation, atol=1e-9)


def test_no_layer_and_no_vector_are_no_error() -> None:
    assert usage_correlation(np.zeros((0, 4), np.int64), 4).shape == (0, 0)
    assert np.isnan(mutual_information(np.zeros((2, 0), np.int64), np.random.default_rng(0))).all()
    assert mutual_information(np.zeros((0, 5), np.int64), np.random.default_rng(0)).shape == (0, 0)


def test_mutual_information_is_scikit_learns_less_what_shuffled_pairs_show() -> None:
    rng = np.random.default_rng(8)
    first = rng.integers(0, 12, 4000)
    second = np.where(rng.random(4000) < 0.5, first, rng.integers(0, 12, 4000))
    order = np.random.default_rng(0).permutation(4000)
    chance = mutual_info_score(first, second[order])
    smaller = min(scipy_entropy(np.bincount(first)), scipy_entropy(np.bincount(second)))
    expected = (mutual_info_score(first, second) - chance) / (1 - chance / smaller)
    assert shared(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("largest", [255, 300, 20_000, 300_000])
def test_how_large_the_numbers_of_codes_are_changes_nothing(largest: int) -> None:
    """Pairs are numbered in 16, 32 or 64 bits, as their codes need."""
    rng = np.random.default_rng(11)
    first = rng.integers(0, 250, 6000)
    second = np.where(rng.random(6000) < 0.6, first, rng.integers(0, 250, 6000))
    numbers = np.append(rng.choice(largest, 249, replace=False), largest)
    assert shared(numbers[first], numbers[second]) == pytest.approx(shared(first, second), rel=1e-12)


@pytest.mark.parametrize("copied", [0.0, 0.3, 0.9])
def test_the_shuffled_baseline_stands_for_the_exact_expectation(copied: float) -> None:
    rng = np.random.default_rng(9)
    first = rng.integers(0, 32, 5000)
    second = np.where(rng.random(5000) < copied, first, rng.integers(0, 32, 5000))
    smaller = min(scipy_entropy(np.bincount(first)), scipy_entropy(np.bincount(second)))
    exact = adjusted_mutual_info_score(first, second, average_method="min") * smaller
    assert shared(first, second) == pytest.approx(exact, abs=0.03)


def test_independent_layers_share_nothing_where_the_plain_estimate_shows_more_than_a_nat() -> None:
    rng = np.random.default_rng(10)
    codes = rng.integers(0, 256, (2, 16_384))
    assert mutual_info_score(*codes) > 1.0
    values = []
    for seed in range(20):
        first, second = rng.integers(0, 256, (2, 16_384))
        values.append(shared(first, second, seed))
    assert abs(np.mean(values)) < 0.01
    assert np.abs(values).max() < 0.05


def test_a_layer_that_copies_another_shares_all_its_entropy() -> None:
    rng = np.random.default_rng(11)
    first = rng.integers(0, 256, 16_384)
    renumbering = rng.permutation(256)
    assert shared(first, renumbering[first]) == pytest.approx(math.log(256), rel=0.01)


@pytest.mark.parametrize("copied", [0.1, 0.5, 0.9])
def test_partly_copied_codes_share_what_theory_says(copied: float) -> None:
    rng = np.random.default_rng(12)
    size, n = 256, 16_384
    first = rng.integers(0, size, n)
    second = np.where(rng.random(n) < copied, first, rng.integers(0, size, n))
    equal, different = (copied + (1 - copied) / size) / size, (1 - copied) / size / size
    truth = size * equal * math.log(equal * size**2)
    truth += size * (size - 1) * different * math.log(different * size**2)
    assert shared(first, second) == pytest.approx(truth, abs=0.25)


def test_too_few_pairs_for_the_codes_in_use_are_no_reading() -> None:
    rng = np.random.default_rng(13)
    few, many = rng.integers(0, 256, (2, 2000)), rng.integers(0, 256, (2, 8000))
    assert math.isnan(shared(*few))
    assert not math.isnan(shared(*many))


@pytest.mark.parametrize("n", [1, 2])
def test_one_vector_or_two_say_nothing(n: int) -> None:
    assert math.isnan(shared(np.arange(n), np.arange(n)))


def test_a_collapsed_layer_cannot_tell_anything() -> None:
    codes = np.random.default_rng(14).integers(0, 8, 1000)
    assert math.isnan(shared(codes, np.zeros(1000, np.int64)))


def test_the_diagonal_is_the_entropy_and_the_matrix_is_symmetric() -> None:
    codes = np.random.default_rng(15).integers(0, 8, (3, 1000)).astype(np.uint8)
    information = mutual_information(codes, np.random.default_rng(0))
    np.testing.assert_array_equal(information, information.T)
    np.testing.assert_allclose(np.diag(information), [scipy_entropy(np.bincount(layer)) for layer in codes])


def test_vectors_without_a_code_in_one_of_the_layers_are_left_out() -> None:
    rng = np.random.default_rng(16)
    first = rng.integers(0, 8, 4000)
    second = np.where(rng.random(4000) < 0.5, first, rng.integers(0, 8, 4000))
    hidden = rng.random(4000) < 0.3
    both = shared(first[~hidden], second[~hidden])
    assert shared(first, np.where(hidden, -1, second)) == pytest.approx(both, abs=0.02)
    assert math.isnan(shared(np.full(50, -1), second[:50]))


def test_renumbering_codes_changes_nothing() -> None:
    rng = np.random.default_rng(17)
    first, second = rng.integers(0, 16, (2, 3000))
    assert shared(rng.permutation(16)[first], second) == pytest.approx(shared(first, second), abs=1e-12)


def test_huge_code_numbers_neither_overflow_nor_cost_a_table() -> None:
    """Numbers whose products, kept in 32 bits, would all be 0."""
    first, second = np.random.default_rng(18).integers(0, 8, (2, 2000))
    far = shared(4 * first, np.minimum(first, second) + 2**30 - 8)
    assert far == pytest.approx(shared(first, np.minimum(first, second)), abs=1e-12)


def test_the_same_generator_gives_the_same_reading() -> None:
    codes = np.random.default_rng(19).integers(0, 16, (2, 2000))
    assert shared(codes[0], codes[1], seed=3) == shared(codes[0], codes[1], seed=3)
