"""Losses, trends and speed against plain loops, numpy's polyfit and made-up clocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vqwatch_daemon.metrics.training import (
    Smoothed,
    loss_shares,
    ratio,
    stalled_ratio,
)

finite = st.floats(-1e6, 1e6)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6))
def test_shares_of_losses_that_add_up_add_up_to_one(parts: list[float]) -> None:
    assume(sum(parts) > 1e-3)
    shares = loss_shares({"total": sum(parts)} | {str(i): part for i, part in enumerate(parts)})
    assert "total" not in shares
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 + 1e-9 for share in shares.values())


@pytest.mark.parametrize("total", [0.0, math.nan, math.inf])
def test_a_total_that_is_no_measure_gives_no_shares(total: float) -> None:
    assert math.isnan(loss_shares({"total": total, "vq": 1.0})["vq"])


def test_a_bad_component_does_not_spoil_the_others() -> None:
    shares = loss_shares({"total": 2.0, "vq": math.nan, "recon": 1.0})
    assert math.isnan(shares["vq"])
    assert shares["recon"] == 0.5
    assert loss_shares({"vq": 1.0}) == loss_shares({}) == {}


@pytest.mark.parametrize(("part", "whole"), [(1, 0), (0, 0), (math.nan, 1), (1, math.inf), (math.inf, 1)])
def test_a_ratio_that_says_nothing_is_unknown(part: float, whole: float) -> None:
    assert math.isnan(ratio(part, whole))


def test_a_ratio_of_small_losses_is_not_bent_by_a_constant() -> None:
    assert ratio(2e-9, 1e-9) == pytest.approx(2)


@given(st.lists(st.tuples(st.integers(1, 30), finite), min_size=1, max_size=30), st.floats(0.5, 100))
def test_the_smoothed_value_is_the_weighted_mean_of_all_that_came(
    readings: list[tuple[int, float]], half_life: float
) -> None:
    series, step, steps = Smoothed(half_life), 0, []
    for gap, value in readings:
        step += gap
        steps.append(step)
        series.update(step, value)
    weights = [0.5 ** ((step - past) / half_life) for past in steps]
    expected = sum(w * value for w, (_, value) in zip(weights, readings, strict=True)) / sum(weights)
    assert series.value == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_after_a_jump_half_the_way_is_done_in_one_half_life() -> None:
    series = Smoothed(half_life=50)
    for step in range(2000):
        series.update(step, 0.0)
    for step in range(2000, 2050):
        series.update(step, 1.0)
    assert series.value == pytest.approx(0.5, abs=1e-6)


def test_non_finite_readings_are_skipped_and_nothing_is_known_before_the_first() -> None:
    series = Smoothed()
    assert math.isnan(series.value)
    assert math.isnan(series.update(1, math.nan))
    assert series.update(2, 4.0) == 4.0
    assert series.update(3, math.inf) == 4.0


def test_steps_that_go_backwards_or_repeat_count_as_one_later() -> None:
    forward, rewound = Smoothed(5), Smoothed(5)
    for step, value in ((100, 1.0), (101, 2.0), (102, 3.0)):
        forward.update(step, value)
    for step, value in ((100, 1.0), (40, 2.0), (40, 3.0)):
        rewound.update(step, value)
    assert rewound.value == pytest.approx(forward.value)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e4))
def test_a_stall_is_measured_in_usual_steps_but_not_in_hiccups(since: float, usual: float) -> None:
    assert stalled_ratio(since, usual) == pytest.approx(since / max(usual, 1.0))


def test_a_stall_is_not_known_before_the_usual_time_is() -> None:
    assert math.isnan(stalled_ratio(10.0, math.nan))
    assert stalled_ratio(-1.0, 1.0) == 0
