"""Residual energies against the residuals of a real stack of nearest-code quantizers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch_daemon.metrics.residuals import residuals

energies = st.floats(1e-30, 1e30)


def test_a_stack_of_quantizers_is_described_layer_by_layer() -> None:
    rng = np.random.default_rng(0)
    residual = rng.standard_normal((400, 4))
    start = float((residual**2).sum(axis=1).mean())
    left = []
    for layer in range(4):
        codes = rng.standard_normal((32, 4)) * 0.6**layer
        nearest = ((residual[:, None] - codes) ** 2).sum(axis=2).argmin(axis=1)
        residual = residual - codes[nearest]
        left.append(float((residual**2).sum(axis=1).mean()))
    seen = residuals(start, left)
    assert seen.energy_ratio == pytest.approx([energy / start for energy in left])
    assert list(seen.energy_ratio) == sorted(seen.energy_ratio, reverse=True)
    assert 10 ** (-sum(seen.gain_db) / 10) == pytest.approx(seen.energy_ratio[-1])


@given(energies, st.lists(energies, min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_gains_add_up_to_the_last_ratio_and_do_not_depend_on_scale(
    start: float, left: list[float], scale: float
) -> None:
    seen = residuals(start, left)
    gains = [10 * math.log10(a) - 10 * math.log10(b) for a, b in zip([start, *left], left, strict=False)]
    assert seen.gain_db == pytest.approx([max(-138.474, min(138.474, gain)) for gain in gains], abs=1e-3)
    again = residuals(start * scale, [energy * scale for energy in left])
    assert again.gain_db == pytest.approx(seen.gain_db, abs=1e-6)


def test_a_useless_layer_gains_nothing_and_a_harmful_one_less() -> None:
    assert residuals(2.0, [1.0, 1.0, 2.0]).gain_db == pytest.approx([3.0103, 0, -3.0103], abs=1e-4)


def test_a_layer_that_was_dropped_out_leaves_its_own_and_the_next_gain_unknown() -> None:
    seen = residuals(8.0, [4.0, math.nan, 2.0, 1.0])
    assert [math.isnan(value) for value in seen.energy_ratio] == [False, True, False, False]
    assert [math.isnan(value) for value in seen.gain_db] == [False, True, True, False]


def test_perfect_layers_and_empty_residuals_have_defined_gains() -> None:
    gains = residuals(1.0, [0.0, 0.0, 1.0]).gain_db
    assert gains[0] == pytest.approx(138.474, abs=1e-3)
    assert math.isnan(gains[1])
    assert gains[2] == pytest.approx(-138.474, abs=1e-3)


@pytest.mark.parametrize("start", [0.0, -1.0, math.nan, math.inf])
def test_without_input_energy_nothing_is_known(start: float) -> None:
    seen = residuals(start, [1.0, 2.0])
    assert all(math.isnan(value) for value in (*seen.energy_ratio, *seen.gain_db))
    assert len(seen.gain_db) == len(seen.energy_ratio) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_an_energy_that_cannot_be_is_unknown(bad: float) -> None:
    seen = residuals(1.0, [bad])
    assert math.isnan(seen.energy_ratio[0])
    assert math.isnan(seen.gain_db[0])


def test_no_layers_are_no_readings() -> None:
    assert residuals(1.0, []).gain_db == ()
