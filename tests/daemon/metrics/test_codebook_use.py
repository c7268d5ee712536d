"""Entropy and use of codes, against scipy and plain loops in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.special import digamma
from scipy.stats import entropy as scipy_entropy

from vqwatch_daemon.metrics import codebook
from vqwatch_daemon.metrics.counting import Counts, Floats
from vqwatch_daemon.metrics.entropy import (
    bitrate_efficiency,
    entropy_nats,
    entropy_ratio,
    n_log_n,
    perplexity,
    perplexity_unbiased,
)

usage = arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 50))
used = usage.filter(lambda counts: bool(counts.any(axis=-1).all()))

Metric = Callable[[Counts, int], Floats]

METRICS: dict[str, Metric] = {
    "entropy": lambda counts, _: entropy_nats(counts),
    "entropy ratio": entropy_ratio,
    "perplexity": lambda counts, _: perplexity(counts),
    "unbiased perplexity": lambda counts, _: perplexity_unbiased(counts),
    "utilization": codebook.utilization,
    "against uniform": lambda counts, size: codebook.utilization_vs_uniform(
        counts, size, counts.sum(axis=-1).astype(float)
    ),
    "gini": codebook.gini,
    "dead codes": codebook.dead_codes,
    "alive codes": codebook.alive_codes,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


@given(used)
def test_entropy_and_perplexity_agree_with_scipy(counts: Counts) -> None:
    expected = scipy_entropy(counts, axis=-1)
    np.testing.assert_allclose(entropy_nats(counts), expected, atol=1e-12)
    np.testing.assert_allclose(perplexity(counts), np.exp(expected), rtol=1e-12)


@given(used.filter(lambda counts: counts.shape[1] > 1))
def test_the_entropy_ratio_is_the_entropy_in_base_k(counts: Counts) -> None:
    size = counts.shape[1]
    np.testing.assert_allclose(entropy_ratio(counts, size), scipy_entropy(counts, base=size, axis=-1), atol=1e-12)


def grassberger_by_digamma(counts: list[int]) -> float:
    n = sum(counts)
    total = 0.0
    for c in counts:
        if c:
            total += c * (digamma(c) + (-1) ** c / 2 * (digamma((c + 1) / 2) - digamma(c / 2)))
    return math.exp(max(math.log(n) - total / n, 0.0))


@given(used)
def test_the_unbiased_perplexity_is_grassbergers_with_scipys_digamma(counts: Counts) -> None:
    expected = [grassberger_by_digamma(layer) for layer in counts.tolist()]
    np.testing.assert_allclose(perplexity_unbiased(counts), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 1022, 1023, 1024, 1025, 65_537, 10**9])
def test_counts_at_and_beyond_the_table_are_as_exact_as_within(count: int) -> None:
    counts = [count, count + 1, 3]
    assert float(perplexity_unbiased(np.array(counts))) == pytest.approx(grassberger_by_digamma(counts), rel=1e-10)


@pytest.mark.parametrize("count", [65_534, 65_535, 65_536, 10**9])
def test_entropy_is_as_exact_where_the_table_of_logarithms_ends(count: int) -> None:
    counts = np.array([count, 7, 0])
    assert float(entropy_nats(counts)) == pytest.approx(float(scipy_entropy(counts)), rel=1e-8)
    assert float(n_log_n(counts)[0]) == pytest.approx(count * math.log(count), rel=1e-15)


@given(used)
def test_gini_is_half_the_relative_mean_difference(counts: Counts) -> None:
    differences = np.abs(counts[:, :, np.newaxis] - counts[:, np.newaxis, :]).sum(axis=(1, 2))
    size = counts.shape[1]
    np.testing.assert_allclose(codebook.gini(counts, size), differences / (2 * size * counts.sum(axis=1)), atol=1e-12)


@given(used)
def test_utilization_and_dead_and_alive_codes_agree_with_a_loop(counts: Counts) -> None:
    size = counts.shape[1]
    for layer in counts.tolist():
        seen, once, twice = (sum(map(match, layer)) for match in (lambda c: c > 0, (1).__eq__, (2).__eq__))
        assert float(codebook.utilization(np.array(layer), size)) == seen / size
        assert float(codebook.dead_codes(np.array(layer), size)) == sum(c < 5 for c in layer)
        assert float(codebook.dead_codes(np.array(layer), size, below=1)) == size - seen
        alive = min(seen + once * (once - 1) / (2 * (twice + 1)), size)
        assert float(codebook.alive_codes(np.array(layer), size)) == pytest.approx(alive)


@given(used, st.floats(1.0, 1e6))
def test_utilization_against_uniform_divides_by_the_expected_distinct_codes(counts: Counts, effective: float) -> None:
    size = counts.shape[1]
    expected = size * (1 - math.exp(effective * math.log1p(-1 / size))) if size > 1 else 1.0
    ratio = codebook.utilization_vs_uniform(counts, size, np.full(len(counts), effective))
    np.testing.assert_allclose(ratio, (counts > 0).sum(axis=1) / expected, rtol=1e-9)


@given(used)
def test_every_reading_is_in_its_range(counts: Counts) -> None:
    size = counts.shape[1]
    slack = 1e-9
    ranges = {
        "entropy": (0, math.log(size)),
        "perplexity": (1, size),
        "unbiased perplexity": (1, math.inf),
        "utilization": (1 / size, 1),
        "gini": (0, (size - 1) / size),
        "dead codes": (0, size),
        "alive codes": (1, size),
    }
    for name, (low, high) in ranges.items():
        reading = METRICS[name](counts, size)
        assert (reading >= low - slack).all(), name
        assert (reading <= high * (1 + slack) + slack).all(), name


@every_metric
@given(counts=used, seed=st.integers(0, 9))
def test_no_reading_depends_on_how_codes_are_numbered(metric: Metric, counts: Counts, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permuted(counts, axis=1)
    size = counts.shape[1]
    np.testing.assert_allclose(metric(shuffled, size), metric(counts, size), rtol=1e-9, atol=1e-12)


@every_metric
@given(counts=used, padding=st.integers(1, 5))
def test_no_reading_depends_on_padding_to_a_larger_layer(metric: Metric, counts: Counts, padding: int) -> None:
    size = counts.shape[1]
    padded = np.pad(counts, ((0, 0), (0, padding)))
    np.testing.assert_allclose(metric(padded, size), metric(counts, size), rtol=1e-9, atol=1e-12)


@every_metric
@given(counts=usage)
def test_one_layer_reads_alone_what_it_reads_among_others(metric: Metric, counts: Counts) -> None:
    size = counts.shape[1]
    together = metric(counts, size)
    for layer, reading in zip(counts, together, strict=True):
        np.testing.assert_allclose(metric(layer, size), reading, rtol=1e-12)


@every_metric
@pytest.mark.parametrize("size", [1, 4])
def test_nothing_assigned_reads_nan(metric: Metric, size: int) -> None:
    assert np.isnan(metric(np.zeros((2, size), np.int64), size)).all()


@every_metric
def test_an_empty_layer_leaves_its_neighbour_alone(metric: Metric) -> None:
    readings = metric(np.array([[0, 0, 0], [7, 6, 8]]), 3)
    assert np.isnan(readings).tolist() == [True, False]


def test_a_codebook_of_one_code_is_used_and_has_no_entropy_ratio() -> None:
    counts = np.array([9])
    readings = {name: float(metric(counts, 1)) for name, metric in METRICS.items()}
    assert math.isnan(readings.pop("entropy ratio"))
    assert readings == {
        "entropy": 0.0,
        "perplexity": 1.0,
        "unbiased perplexity": pytest.approx(1.0, abs=0.2),
        "utilization": 1.0,
        "against uniform": 1.0,
        "gini": 0.0,
        "dead codes": 0.0,
        "alive codes": 1.0,
    }


def test_one_sample_has_defined_readings() -> None:
    counts = np.array([0, 1, 0, 0])
    readings = {name: float(metric(counts, 4)) for name, metric in METRICS.items()}
    assert readings == {
        "entropy": 0.0,
        "entropy ratio": 0.0,
        "perplexity": 1.0,
        "unbiased perplexity": pytest.approx(2 * math.exp(np.euler_gamma)),
        "utilization": 0.25,
        "against uniform": pytest.approx(1.0),
        "gini": 0.75,
        "dead codes": 4.0,
        "alive codes": 1.0,
    }


def test_full_collapse_has_a_positive_gini() -> None:
    assert float(codebook.gini(np.bincount([0] * 1000, minlength=256), 256)) == pytest.approx(255 / 256)


@pytest.mark.parametrize("scale", [1, 10**6])
def test_a_uniform_codebook_reads_its_size_however_long_the_window(scale: int) -> None:
    assert float(perplexity(np.full(256, 100 * scale))) == pytest.approx(256)


def test_bitrate_efficiency_weighs_layers_by_their_bits() -> None:
    counts = [np.array([1, 1, 1, 1, 1, 1, 1, 1]), np.array([3, 3])]
    bits = [scipy_entropy(layer, base=2) for layer in counts]
    nats = np.array([float(entropy_nats(layer)) for layer in counts])
    assert bitrate_efficiency(nats, np.log([16.0, 2.0])) == pytest.approx(sum(bits) / (4 + 1))


def test_bitrate_efficiency_of_no_layer_or_of_codebooks_of_one_is_unknown() -> None:
    assert math.isnan(bitrate_efficiency(np.array([np.nan]), np.array([8.0])))
    assert math.isnan(bitrate_efficiency(np.array([0.0]), np.array([0.0])))


@given(
    arrays(np.float64, st.integers(11, 40), elements=st.floats(0, 1)),
    st.integers(0, 10**9),
    st.lists(st.integers(1, 7), min_size=40, max_size=40),
)
def test_the_slope_is_numpys_straight_line(values: Floats, start: int, gaps: list[int]) -> None:
    steps = start + np.cumsum(gaps[: len(values)]).astype(np.float64)
    expected = np.polynomial.Polynomial.fit(steps, values, 1).convert().coef
    assert float(codebook.slope(steps, values)) == pytest.approx(expected[1] if len(expected) > 1 else 0.0, abs=1e-9)


def test_the_slope_leaves_unknown_values_out_layer_by_layer() -> None:
    steps = np.arange(20.0)
    rising = 0.3 + 0.02 * steps
    gappy = rising.copy()
    gappy[[0, 5, 6]] = np.nan
    assert codebook.slope(steps, np.stack([rising, gappy])) == pytest.approx([0.02, 0.02])


def test_the_slope_needs_eleven_known_points_at_more_than_one_step() -> None:
    steps = np.arange(11.0)
    values = steps.copy()
    assert float(codebook.slope(steps, values)) == pytest.approx(1.0)
    values[3] = np.nan
    assert math.isnan(float(codebook.slope(steps, values)))
    assert math.isnan(float(codebook.slope(np.full(11, 4.0), steps)))
    assert math.isnan(float(codebook.slope(np.array([]), np.array([]))))


def test_mean_and_worst_are_of_the_layers_that_are_known() -> None:
    values = np.array([0.9, np.nan, 0.3])
    assert codebook.mean_over_layers(values) == pytest.approx(0.6)
    assert codebook.worst_over_layers(values) == 0.3
    assert math.isnan(codebook.mean_over_layers(np.array([np.nan])))
    assert math.isnan(codebook.worst_over_layers(np.array([])))
