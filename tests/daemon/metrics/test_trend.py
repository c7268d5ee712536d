"""The trend that is kept up to date, against numpy's polyfit of the same points."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch_daemon.metrics.trend import Trend

Points = list[tuple[int, float]]

points = st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e6, 1e6)), min_size=3, max_size=60)


def fitted(chosen: Points) -> float:
    steps, values = zip(*chosen, strict=True)
    return float(np.polyfit(np.array(steps) - np.mean(steps), values, 1)[0])


@given(points, st.integers(2, 20))
def test_the_trend_is_polyfits_of_the_last_readings_after_each_of_them(readings: Points, length: int) -> None:
    trend = Trend(length)
    for count, (step, value) in enumerate(readings, start=1):
        trend.update(step, value)
        held = readings[max(0, count - length) : count]
        assert list(trend.points) == held
        if len({step for step, _ in held}) > 1:
            assert trend.slope == pytest.approx(fitted(held), rel=1e-6, abs=1e-6)
        else:
            assert math.isnan(trend.slope)


def test_a_value_that_has_left_the_window_leaves_nothing_behind() -> None:
    trend = Trend(100)
    trend.update(0, 1e30)
    for step in range(1, 130):
        trend.update(step, 2.0 + 0.5 * step)
    assert trend.slope == pytest.approx(0.5, rel=1e-12)


def test_the_trend_late_in_a_run_is_as_precise_as_early() -> None:
    trend = Trend(100)
    for step in range(10_000_000, 10_001_050):
        trend.update(step, 5 - 1e-4 * (step - 10_000_000))
    assert trend.slope == pytest.approx(-1e-4, rel=1e-9)


def test_a_bad_value_is_left_out() -> None:
    assert Trend(9, enumerate([0.0, math.nan, 2.0, math.inf, 4.0])).slope == pytest.approx(1)


def test_a_trend_of_the_points_it_held_goes_on_as_if_nothing_had_happened() -> None:
    rng = np.random.default_rng(0)
    trend = Trend(10, enumerate(rng.random(37).tolist()))
    resumed = Trend(10, trend.points)
    for step, value in enumerate(rng.random(25).tolist(), start=37):
        trend.update(step, value)
        resumed.update(step, value)
        assert resumed.slope == pytest.approx(trend.slope, rel=1e-9)


@pytest.mark.parametrize("readings", [[], [(1, 2.0)], [(1, 2.0), (1, 3.0)], [(1, math.nan), (2, 3.0)]])
def test_fewer_than_two_different_steps_have_no_trend(readings: Points) -> None:
    assert math.isnan(Trend(5, readings).slope)


@given(points, st.integers(2, 20), st.data())
def test_after_a_restore_every_slope_is_the_same_to_the_bit(readings: Points, length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(readings)))
    kept = Trend(length)
    for step, value in readings[:cut]:
        kept.update(step, value)
    restored = Trend(length)
    restored.restore(json.loads(json.dumps(kept.state())))
    for step, value in readings[cut:]:
        kept.update(step, value)
        restored.update(step, value)
        assert restored.slope == kept.slope or math.isnan(kept.slope)
    assert restored.points == kept.points
