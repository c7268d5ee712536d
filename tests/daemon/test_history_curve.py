"""The columns of the store: what is packed comes back, what is merged keeps its extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqwatch_daemon.history import curve

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
SERIES = st.dictionaries(st.tuples(st.sampled_from("abcd")), FLOATS, max_size=4)
SAMPLES = st.lists(st.tuples(st.integers(0, 2**40), st.floats(1, 2e9), SERIES), min_size=1, max_size=30)


def made(samples: list[tuple[int, float, dict[tuple[str, ...], float]]]) -> curve.Curve:
    """Return the curve of (step, time, series) samples."""
    return curve.from_samples([(step, time, tuple(s), list(s.values())) for step, time, s in samples])


def plain(item: curve.Curve) -> list[tuple[int, float, dict[tuple[str, ...], float]]]:
    """Return a curve as the samples that it was made of."""
    rows = []
    for row in range(len(item.steps)):
        columns = [i for i in range(len(item.labels)) if item.present[row, i]]
        series = {item.labels[i]: float(item.mean[row, i]) for i in columns}
        rows.append((int(item.steps[row]), round(float(item.times[row]), 3), series))
    return rows


def same(left: object, right: object) -> bool:
    """Compare, with NaN equal to itself."""
    return repr(left) == repr(right)


@settings(max_examples=80, deadline=None)
@given(SAMPLES)
def test_what_is_packed_comes_back(samples: list[tuple[int, float, dict[tuple[str, ...], float]]]) -> None:
    packed = curve.pack(made(samples))
    back = plain(curve.unpack(packed))
    places = list(dict.fromkeys(labels for _, _, series in samples for labels in series))
    for (step, time, series), (step_back, time_back, series_back) in zip(samples, back, strict=True):
        assert step_back == step
        assert time_back == pytest.approx(time, abs=0.0011)
        assert same(series_back, {labels: series[labels] for labels in places if labels in series})


def test_damaged_bytes_are_a_value_error() -> None:
    packed = bytearray(curve.pack(made([(1, 1.0, {(): 2.0})])))
    packed[-3] ^= 0xFF
    with pytest.raises(ValueError, match="not a packed curve"):
        curve.unpack(bytes(packed))


def test_buckets_keep_the_extremes_beside_the_mean() -> None:
    samples = [(step, 100.0 + step, {(): float(step % 7)}) for step in range(60)]
    merged = curve.bucket(made(samples), 30.0)
    assert merged.bucketed
    assert merged.low[:, 0].min() == 0
    assert merged.high[:, 0].max() == 6
    assert merged.steps[-1] == 59
    assert len(merged.steps) == 3


def test_a_measured_nan_shows_in_the_mean_and_not_in_the_extremes() -> None:
    samples = [(0, 0.0, {(): 1.0}), (1, 1.0, {(): math.nan}), (2, 2.0, {(): 3.0})]
    merged = curve.bucket(made(samples), 30.0)
    assert math.isnan(merged.mean[0, 0])
    assert (merged.low[0, 0], merged.high[0, 0]) == (1, 3)


def test_an_absent_value_does_not_pull_the_mean() -> None:
    samples = [(0, 0.0, {("a",): 4.0, ("b",): 1.0}), (1, 1.0, {("a",): 6.0})]
    merged = curve.bucket(made(samples), 30.0)
    assert merged.mean[0].tolist() == [5.0, 1.0]


def test_thinning_keeps_a_single_spike_visible() -> None:
    samples = [(step, float(step), {(): 100.0 if step == 777 else 1.0}) for step in range(3000)]
    thinned = curve.thin(made(samples), 100)
    assert len(thinned.steps) <= 100
    assert thinned.high.max() == 100


def test_a_run_that_went_back_to_a_checkpoint_is_thinned_in_order_of_time() -> None:
    steps = [*range(500), *range(200, 700)]
    samples = [(step, float(i), {(): float(step)}) for i, step in enumerate(steps)]
    thinned = curve.thin(made(samples), 50)
    assert len(thinned.steps) == 50
    assert np.all(np.diff(thinned.times) > 0)


def test_joining_aligns_label_sets_that_differ() -> None:
    first = made([(0, 0.0, {("a",): 1.0})])
    second = curve.bucket(made([(1, 1.0, {("b",): 2.0}), (2, 2.0, {("b",): 4.0})]), 60.0)
    joined = curve.join([second, first])
    assert joined is not None
    assert plain(joined) == [(0, 0.0, {("a",): 1.0}), (2, 2.0, {("b",): 3.0})]
    assert float(joined.low[0, joined.labels.index(("a",))]) == 1.0


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_rounding_stays_within_its_promise_and_leaves_the_non_finite_alone(values: list[float]) -> None:
    rounded = curve.rounded(made([(0, 0.0, {(str(i),): value for i, value in enumerate(values)})])).mean[0].tolist()
    for value, near in zip(values, rounded, strict=True):
        if math.isfinite(value):
            assert abs(near - value) <= max(1.3e-4 * abs(value), 1e-38)
        else:
            assert same(near, value)
