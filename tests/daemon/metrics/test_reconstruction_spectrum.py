"""The log-spectral distance against scipy's short-time Fourier transform and signals whose distance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import get_window, stft

from vqwatch_daemon.metrics.reconstruction import reconstruction
from vqwatch_daemon.metrics.spectrum import FLOOR, HOP_FRAMES, WINDOW_FRAMES, spectral_distances, window_starts


def distance(x: NDArray[np.floating], y: NDArray[np.floating], mask: NDArray[np.bool_] | None = None) -> float:
    return reconstruction(x, y, mask).spectral_db


def by_scipy(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """One sequence [T, D] without a mask, spectra from scipy.signal.stft."""
    powers = []
    for values in (x, y):
        window = get_window("hann", WINDOW_FRAMES)
        _, _, spectra = stft(
            values, window=window, nperseg=WINDOW_FRAMES, noverlap=WINDOW_FRAMES - HOP_FRAMES,
            boundary=None, padded=False, axis=0,
        )  # fmt: skip
        powers.append(np.abs(spectra * window.sum()) ** 2)  # [bins, D, windows]
    found = []
    for w in range(powers[0].shape[2]):
        p, q = powers[0][:, :, w], powers[1][:, :, w]
        floor = FLOOR * max(p.mean(), q.mean())
        for d in range(p.shape[1]):
            decibels = [10 * math.log10((p[k, d] + floor) / (q[k, d] + floor)) for k in range(p.shape[0])]
            found.append(math.sqrt(sum(v * v for v in decibels) / len(decibels)))
    return float(np.mean(found))


@pytest.mark.parametrize("frames", [32, 33, 47, 48, 500])
def test_the_distance_is_that_of_scipys_spectra(frames: int) -> None:
    rng = np.random.default_rng(0)
    x, y = np.cumsum(rng.standard_normal((2, frames, 5)), axis=1)
    assert distance(x[None], y[None]) == pytest.approx(by_scipy(x, y), rel=1e-9)
    assert distance(x[None].astype(np.float32), y[None].astype(np.float32)) == pytest.approx(by_scipy(x, y), rel=1e-3)


def test_a_gain_of_ten_is_twenty_decibels() -> None:
    x = np.random.default_rng(0).standard_normal((2, 64, 3))
    assert distance(x, 10 * x) == pytest.approx(20, abs=0.05)
    assert distance(10 * x, x) == pytest.approx(20, abs=0.05)


def test_smoothing_along_time_shows_although_the_error_is_small() -> None:
    rng = np.random.default_rng(0)
    slow = np.sin(np.arange(256) / 20)[None, :, None] * 10
    x = slow + 0.5 * rng.standard_normal((1, 256, 8))
    noisy = slow + 0.5 * rng.standard_normal((1, 256, 8))
    blurred = np.broadcast_to(slow, x.shape)
    assert reconstruction(x, blurred).mse < reconstruction(x, noisy).mse
    assert distance(x, blurred) > 3 * distance(x, noisy)


@pytest.mark.parametrize("frames", [1, 2, 31])
def test_a_sequence_too_short_for_a_window_has_no_reading(frames: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, frames, 3))
    assert math.isnan(distance(x, x))


def test_sequences_of_different_length_are_read_as_far_as_they_go() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 100, 4))
    lengths = [100, 40, 31]
    seen = reconstruction(x, y, np.arange(100) < np.array(lengths)[:, None])
    assert seen.samples.spectral_db[0] == pytest.approx(by_scipy(x[0], y[0]))
    assert seen.samples.spectral_db[1] == pytest.approx(by_scipy(x[1, :40], y[1, :40]))
    assert math.isnan(seen.samples.spectral_db[2])
    windows = [len(window_starts(np.ones(length, bool))) for length in lengths]
    assert windows == [5, 1, 0]
    assert seen.spectral_db == pytest.approx(np.dot(seen.samples.spectral_db[:2], windows[:2]) / 6)


def test_no_window_reaches_over_a_hole_in_the_mask() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 90, 4))
    mask = np.ones((1, 90), bool)
    mask[0, 40] = False
    x[0, 40] = 1e6
    parts = [by_scipy(x[0, :40], y[0, :40]), by_scipy(x[0, 41:], y[0, 41:])]
    assert distance(x, y, mask) == pytest.approx((parts[0] + 2 * parts[1]) / 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=120), st.integers(0, 60))
def test_windows_cover_valid_frames_only_and_every_place_they_fit(head: list[bool], run: int) -> None:
    valid = np.array(head + [True] * run, bool)
    starts = window_starts(valid)
    for start in starts:
        assert valid[start : start + WINDOW_FRAMES].all()
        assert start + WINDOW_FRAMES <= len(valid)
    expected, first = [], None
    for t in range(len(valid) + 1):
        if t < len(valid) and valid[t]:
            first = t if first is None else first
        elif first is not None:
            while first + WINDOW_FRAMES <= t:
                expected.append(first)
                first += HOP_FRAMES
            first = None
    assert starts == expected


def test_a_window_of_silence_in_both_is_no_evidence() -> None:
    x = np.zeros((1, 64, 2))
    x[0, 48:] = 1.0
    assert spectral_distances(x, x, np.ones((1, 64), bool))[1] == 2 * 1 + 2 * 0
    assert math.isnan(distance(np.zeros((1, 64, 2)), np.zeros((1, 64, 2))))


def test_the_distance_ignores_the_order_of_channels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2, 64, 6))
    assert distance(x[..., ::-1], y[..., ::-1]) == pytest.approx(distance(x, y))
