"""Identifiers, exact and sampled, with the errors that the docstrings state."""

import math
from collections import Counter
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vqwatch_daemon.metrics.identifiers import (
    IdentifierSample,
    effective_count,
    identifier_counts,
    unique_ratio,
)


def tuples(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Eight codes below 256, [8, n], that spell each number: an identifier per number."""
    return (numbers >> np.arange(0, 64, 8)[:, np.newaxis]) & 255


def held(sample: IdentifierSample) -> NDArray[np.int64]:
    """The numbers that the sample's identifiers spell."""
    spelled: NDArray[np.int64] = (sample.codes.astype(np.int64) << np.arange(0, 64, 8)).sum(axis=1)
    return spelled


@given(arrays(np.int16, st.tuples(st.integers(0, 30), st.integers(1, 4)), elements=st.integers(0, 3)))
def test_identifiers_are_counted_as_tuples(codes: NDArray[np.int16]) -> None:
    expected = Counter(map(tuple, codes.tolist()))
    counts = identifier_counts(codes)
    assert sorted(counts.tolist()) == sorted(expected.values())


@given(arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 9)))
def test_the_effective_count_is_all_pairs_over_equal_pairs(labels: NDArray[np.int64]) -> None:
    equal = sum(labels[i] == labels[j] for i in range(len(labels)) for j in range(i))
    pairs = len(labels) * (len(labels) - 1) / 2
    expected = pairs / equal if equal else math.nan
    assert effective_count(identifier_counts(labels[:, np.newaxis]), fewest_pairs=1) == pytest.approx(
        expected, nan_ok=True
    )


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 9)))
def test_the_unique_ratio_is_distinct_per_vector(labels: NDArray[np.int64]) -> None:
    assert unique_ratio(identifier_counts(labels[:, np.newaxis])) == len(set(labels.tolist())) / len(labels)


def test_rows_that_differ_in_one_code_or_in_order_are_different() -> None:
    rng = np.random.default_rng(20)
    numbers = rng.choice(2**40, 200_000, replace=False)
    assert (identifier_counts(tuples(numbers).T) == 1).all()
    assert (identifier_counts(np.array([[1, 2, 3], [3, 2, 1], [2, 1, 3], [0, 0, 0], [0, 0, 1]])) == 1).all()


def test_the_effective_count_is_unbiased_at_every_n() -> None:
    rng = np.random.default_rng(21)
    weights = np.arange(1.0, 101) ** -0.75
    weights /= weights.sum()
    for n in (40, 200, 2000):
        draws = rng.multinomial(n, weights, size=2000)
        inverse = [1 / effective_count(counts, fewest_pairs=1) for counts in draws if counts.max() > 1]
        assert np.mean(inverse) == pytest.approx((weights**2).sum(), rel=0.02)


def test_too_few_equal_pairs_are_no_effective_count() -> None:
    assert math.isnan(effective_count(np.array([4, 2, 1])))
    assert effective_count(np.array([5])) == 1.0
    assert math.isnan(effective_count(np.zeros(0, np.int64)))
    assert math.isnan(effective_count(np.array([1])))


def test_an_empty_sample_says_nothing() -> None:
    unique, collision, effective, samples = IdentifierSample(layers=8).compute()
    assert (math.isnan(unique), math.isnan(collision), math.isnan(effective), samples) == (True, True, True, 0)


def test_a_short_stream_is_held_entirely_and_read_exactly() -> None:
    rng = np.random.default_rng(22)
    numbers = rng.integers(0, 300, 1000)
    sample = IdentifierSample(layers=8, capacity=1000)
    for part in np.split(numbers, 10):
        sample.add(tuples(part), rng)
    assert sorted(held(sample).tolist()) == sorted(numbers.tolist())
    reading = sample.compute()
    assert reading.unique_ratio == len(np.unique(numbers)) / 1000
    assert reading.collision_ratio == pytest.approx(1 - reading.unique_ratio)
    assert reading.effective_count == effective_count(np.bincount(numbers))
    assert reading.samples == 1000


def test_vectors_masked_or_dropped_in_a_layer_are_no_identifiers() -> None:
    rng = np.random.default_rng(23)
    indices = np.array([[[0, 1, 2], [3, 4, -1]], [[5, -1, 7], [8, 9, 9]]], np.int16)
    mask = np.array([[True, True, False], [True, True, True]])
    sample = IdentifierSample(layers=2)
    sample.add(indices, rng, mask)
    assert sorted(map(tuple, sample.codes.tolist())) == [(0, 5), (3, 8), (4, 9)]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_codes_of_every_width_are_held_as_they_are(dtype: str) -> None:
    sample = IdentifierSample(layers=2)
    sample.add(np.array([[7, 200 % 128], [1, 2]], dtype), np.random.default_rng(0))
    assert sorted(map(tuple, sample.codes.tolist())) == [(7, 1), (72, 2)]


def test_memory_is_bounded_and_constant_however_long_the_run() -> None:
    rng = np.random.default_rng(24)
    sample = IdentifierSample(layers=8, capacity=512, half_life=4096)
    before = sample.nbytes
    for _ in range(500):
        sample.add(tuples(rng.integers(0, 2**40, 1000)), rng)
    assert sample.nbytes == before == 2 * 512 * (4 * 8 + 8)
    assert sample.compute().samples == 512


def test_no_vector_is_held_twice_and_one_offer_may_exceed_the_memory_many_times() -> None:
    rng = np.random.default_rng(25)
    sample = IdentifierSample(layers=8, capacity=100, half_life=1e9)
    for start in range(0, 30_000, 10_000):
        sample.add(tuples(np.arange(start, start + 10_000)), rng)
    assert len(set(held(sample).tolist())) == 100


def test_without_decay_every_vector_of_the_stream_is_equally_likely_to_be_held() -> None:
    rng = np.random.default_rng(26)
    times_held = np.zeros(1000)
    for _ in range(300):
        sample = IdentifierSample(layers=8, capacity=100, half_life=1e12)
        for start in range(0, 1000, 50):
            sample.add(tuples(np.arange(start, start + 50)), rng)
        times_held[held(sample)] += 1
    by_tenth = times_held.reshape(10, 100).sum(axis=1) / (300 * 10)
    assert by_tenth == pytest.approx(np.ones(10), abs=0.08)


def test_a_vector_one_half_life_older_is_held_half_as_often() -> None:
    rng = np.random.default_rng(27)
    ages = []
    for _ in range(40):
        sample = IdentifierSample(layers=8, capacity=500, half_life=20_000)
        for start in range(0, 200_000, 1000):
            sample.add(tuples(np.arange(start, start + 1000)), rng)
        ages.append((200_000 - held(sample)) // 20_000)
    by_half_life = np.bincount(np.concatenate(ages), minlength=10)[:4].astype(float)
    assert by_half_life[1:] / by_half_life[:-1] == pytest.approx([0.5, 0.5, 0.5], abs=0.05)


def stream(weights: NDArray[np.float64], sample: IdentifierSample, rng: np.random.Generator, steps: int = 60) -> None:
    for _ in range(steps):
        sample.add(tuples(rng.choice(len(weights), 8000, p=weights)), rng)


@pytest.mark.parametrize(("identifiers", "within"), [(1, 0.0), (100, 0.02), (10_000, 0.05), (1_000_000, 0.35)])
def test_the_effective_count_of_a_long_stream_is_within_its_stated_error(identifiers: int, within: float) -> None:
    rng = np.random.default_rng(28)
    sample = IdentifierSample(layers=8)
    for _ in range(60):
        sample.add(tuples(rng.integers(0, identifiers, 8000)), rng)
    reading = sample.compute()
    stated = math.sqrt(2 * identifiers) / reading.samples
    assert 4 * stated <= within or identifiers == 1
    assert reading.effective_count == pytest.approx(identifiers, rel=within, abs=1e-9)


def test_uneven_identifiers_are_within_the_stated_error_too() -> None:
    weights = np.arange(1.0, 20_001) ** -1.0
    weights /= weights.sum()
    square, cube = (weights**2).sum(), (weights**3).sum()
    stated = 2 * math.sqrt((cube / square**2 - 1) / 16_384) + math.sqrt(2 / square) / 16_384
    rng = np.random.default_rng(29)
    sample = IdentifierSample(layers=8)
    stream(weights, sample, rng)
    assert stated < 0.05
    assert sample.compute().effective_count == pytest.approx(1 / square, rel=4 * stated)


def test_more_identifiers_than_the_sample_can_tell_are_no_reading() -> None:
    rng = np.random.default_rng(30)
    sample = IdentifierSample(layers=8)
    sample.add(tuples(rng.integers(0, 2**60, 50_000)), rng)
    reading = sample.compute()
    assert math.isnan(reading.effective_count)
    assert reading.unique_ratio > 0.999


def test_a_collapse_late_in_a_long_run_shows_within_a_few_steps() -> None:
    rng = np.random.default_rng(31)
    sample = IdentifierSample(layers=8)
    for _ in range(300):
        sample.add(tuples(rng.integers(0, 100_000, 8000)), rng)
    healthy = sample.compute()
    for _ in range(5):
        sample.add(tuples(np.zeros(8000, np.int64)), rng)
    assert healthy.effective_count == pytest.approx(100_000, rel=0.15)
    assert sample.compute().effective_count < 200


def test_the_same_stream_and_seed_give_the_same_sample() -> None:
    def sampled() -> list[int]:
        rng = np.random.default_rng(35)
        sample = IdentifierSample(layers=8, capacity=50)
        for _ in range(5):
            sample.add(tuples(rng.integers(0, 1000, 100)), rng)
        return [int(number) for number in held(sample)]

    assert sampled() == sampled()


def test_a_stream_of_nothing_but_empty_batches_is_no_error() -> None:
    rng = np.random.default_rng(36)
    sample = IdentifierSample(layers=3)
    sample.add(np.zeros((3, 0), np.int64), rng)
    sample.add(np.full((3, 4), -1), rng)
    assert sample.compute().samples == 0


class Ties:
    """Draws the same number each time, but for two larger ones at first."""

    def random(self, count: int) -> NDArray[np.float64]:
        return np.where(np.arange(count) < 2, 0.5, 0.25)


@pytest.mark.parametrize("offered", [5, 6, 8, 9, 40])
def test_of_vectors_with_equal_priorities_as_many_are_held_as_fit(offered: int) -> None:
    sample = IdentifierSample(layers=1, capacity=5, half_life=float("inf"))
    sample.add(np.arange(offered)[np.newaxis], cast(np.random.Generator, Ties()))
    held = sample.codes[:, 0].tolist()
    assert len(held) == len(set(held)) == 5
    assert set(held) <= set(range(2 if offered > 6 else 0, offered))


def test_what_is_held_are_the_smallest_priorities_whatever_leaves() -> None:
    rng = np.random.default_rng(3)
    whole, small = IdentifierSample(layers=1, capacity=4000), IdentifierSample(layers=1, capacity=50)
    for start in range(0, 2000, 90):
        batch = np.arange(start, start + 90)[np.newaxis]
        draws = rng.random(90)
        for sample in (whole, small):
            sample._insert(batch.T, draws)
    state = whole.state()
    expected = set(state["codes"][np.argsort(state["priorities"])[:50], 0].tolist())
    assert set(small.codes[:, 0].tolist()) == expected


@given(st.integers(1, 9), st.sampled_from([3, 256, 257, 70_000]), st.integers(0, 2**31))
def test_identifiers_of_any_width_are_counted_alike(layers: int, codes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, codes, (20, layers), np.int32)[rng.integers(0, 20, 300)]
    assert sorted(identifier_counts(rows)) == sorted(Counter(map(tuple, rows.tolist())).values())


@pytest.mark.parametrize("beyond", [256, -256])
def test_a_code_that_no_byte_holds_is_not_taken_for_one_that_it_ends_in(beyond: int) -> None:
    assert identifier_counts(np.array([[7, 0], [7, beyond], [7, 0]])).tolist() in ([1, 2], [2, 1])
