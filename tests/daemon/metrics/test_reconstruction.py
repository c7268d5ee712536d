"""Reconstruction readings against loops in float64, torch and scikit-learn, and what must not depend on padding."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import paired_cosine_distances
from torchmetrics.functional.audio import signal_noise_ratio

from vqwatch_daemon.metrics.reconstruction import HIGHEST_SNR, Reconstruction, Scores, reconstruction

Array = NDArray[np.floating]
READINGS = ("mse", "snr_db", "cosine", "temporal", "temporal_correlation", "spectral_db")


def drawn(shape: tuple[int, ...], seed: int = 0, noise: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    return x, (x + noise * rng.standard_normal(shape)).astype(np.float32)


def correlation(moved: list[float], followed: list[float]) -> float:
    varied = len(moved) > 1 and min(np.std(moved), np.std(followed)) > 1e-3 * max(np.mean(moved), np.mean(followed))
    return pearsonr(moved, followed).statistic if varied else math.nan


def by_loop(x: Array, y: Array, mask: NDArray[np.bool_]) -> dict[str, float]:
    """The definitions, frame by frame."""
    error = signal = count = dot = xx = yy = 0.0
    cosines, moved, followed = [], [], []
    for b, t in np.ndindex(*mask.shape):
        if not mask[b, t]:
            continue
        p, q = x[b, t].astype(np.float64), y[b, t].astype(np.float64)
        error += float(((p - q) ** 2).sum())
        signal += float((p**2).sum())
        count += p.size
        if p.any() or q.any():
            lengths = math.sqrt(float((p**2).sum())) * math.sqrt(float((q**2).sum()))
            cosines.append(float((p * q).sum()) / lengths if lengths else 0.0)
        if t + 1 < mask.shape[1] and mask[b, t + 1]:
            dx = float(np.linalg.norm(x[b, t + 1].astype(np.float64) - p))
            dy = float(np.linalg.norm(y[b, t + 1].astype(np.float64) - q))
            dot, xx, yy = dot + dx * dy, xx + dx * dx, yy + dy * dy
            moved.append(dx)
            followed.append(dy)
    return {
        "mse": error / count if count else math.nan,
        "snr_db": 10 * math.log10(signal / error) if signal and error else math.nan,
        "cosine": float(np.mean(cosines)) if cosines else math.nan,
        "temporal": dot / math.sqrt(xx * yy) if xx and yy else math.nan,
        "temporal_correlation": correlation(moved, followed),
    }


def same(one: Reconstruction | Scores, other: Reconstruction | Scores, rel: float = 1e-5) -> None:
    for name in READINGS:
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=rel, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 8), (3, 1, 4), (1, 9, 3), (4, 50, 16), (2, 300, 700), (5, 7, 1)])
@pytest.mark.parametrize("density", [1.0, 0.7, 0.3])
def test_every_reading_is_its_definition(shape: tuple[int, int, int], density: float) -> None:
    x, y = drawn(shape)
    mask = np.random.default_rng(1).random(shape[:2]) < density
    seen = reconstruction(x, y, mask)
    for name, expected in by_loop(x, y, mask).items():
        assert getattr(seen, name) == pytest.approx(expected, rel=2e-5, abs=1e-7, nan_ok=True), name
    assert seen.frames == mask.sum()
    for b in range(shape[0]):
        for name, expected in by_loop(x[b : b + 1], y[b : b + 1], mask[b : b + 1]).items():
            assert getattr(seen.samples, name)[b] == pytest.approx(expected, rel=2e-5, abs=1e-7, nan_ok=True), name


def test_without_a_mask_the_readings_are_torchs_and_scikit_learns() -> None:
    x, y = drawn((3, 40, 24))
    seen = reconstruction(x, y)
    tx, ty = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    flat = x.reshape(-1, 24).astype(np.float64), y.reshape(-1, 24).astype(np.float64)
    steps = [torch.linalg.vector_norm(v[:, 1:] - v[:, :-1], dim=-1).flatten() for v in (tx, ty)]
    assert seen.mse == pytest.approx(mean_squared_error(*flat))
    assert seen.cosine == pytest.approx(1 - paired_cosine_distances(*flat).mean())
    assert seen.temporal == pytest.approx(torch.nn.functional.cosine_similarity(*steps, dim=0).item())
    assert seen.snr_db == pytest.approx(10 * torch.log10((tx**2).sum() / ((tx - ty) ** 2).sum()).item())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_error_noise_and_direction_are_torchmetrics(scale: float) -> None:
    x, y = (v * np.float32(scale) for v in drawn((3, 40, 24), noise=0.2))
    seen = reconstruction(x, y)
    frames = torch.from_numpy(y).double().flatten(0, 1), torch.from_numpy(x).double().flatten(0, 1)
    whole = frames[0].flatten(), frames[1].flatten()
    assert seen.mse == pytest.approx(torchmetrics.functional.mean_squared_error(*whole).item(), rel=1e-5)
    assert seen.snr_db == pytest.approx(signal_noise_ratio(*whole).item(), rel=1e-5)
    cosine = torchmetrics.functional.cosine_similarity(*frames, reduction="mean")
    assert seen.cosine == pytest.approx(cosine.item(), rel=1e-5)


@pytest.mark.parametrize("stride", [1e-4, 0.01, 0.15, 0.2, 0.24, 0.26, 0.3, 1.0])
def test_the_steps_of_slow_features_keep_their_precision(stride: float) -> None:
    """From frames that hardly move, where a difference of squares would be rounding, to frames of their own."""
    rng = np.random.default_rng(3)
    walks = rng.standard_normal((2, 1, 300, 512)) * stride
    walks[:, :, 0] = rng.standard_normal((2, 1, 512))
    for t in range(1, 300):
        walks[:, :, t] += walks[:, :, t - 1] / math.sqrt(1 + stride**2)
    x, y = walks.astype(np.float32)
    mask = np.ones((1, 300), bool)
    mask[0, 140:150] = False
    assert reconstruction(x, y, mask).temporal == pytest.approx(by_loop(x, y, mask)["temporal"], rel=1e-6)


@pytest.mark.parametrize("dim", [8, 64, 1024])
def test_shuffled_frames_leave_the_cosine_of_distances_high_and_their_correlation_at_none(dim: int) -> None:
    x, y = drawn((4, 400, dim), noise=0.3)
    shuffled = y[:, np.random.default_rng(9).permutation(400)]
    healthy, lost = reconstruction(x, y, spectral=False), reconstruction(x, shuffled, spectral=False)
    assert lost.temporal > 0.9
    assert healthy.temporal_correlation > 0.8
    assert abs(lost.temporal_correlation) < 0.1


def test_one_pace_correlates_with_nothing() -> None:
    x = np.tile(np.arange(50.0)[:, np.newaxis], (1, 1, 3)).reshape(1, 50, 3)
    y = x + np.random.default_rng(0).standard_normal(x.shape)
    assert math.isnan(reconstruction(x, y).temporal_correlation)
    assert reconstruction(y, y).temporal_correlation == pytest.approx(1)
    assert math.isnan(reconstruction(y[:, :2], y[:, :2]).temporal_correlation)


def test_frames_that_stand_still_have_no_steps_at_all() -> None:
    x = np.repeat(np.random.default_rng(4).standard_normal((1, 1, 700), np.float32), 90, axis=1)
    moving = x + np.random.default_rng(5).standard_normal(x.shape, np.float32)
    assert math.isnan(reconstruction(x, x).temporal)
    assert reconstruction(x, moving).temporal == 0


def test_the_jump_at_the_masks_edge_is_no_temporal_consistency() -> None:
    rng = np.random.default_rng(0)
    x = 100 + rng.standard_normal((2, 40, 8))
    y = 100 + rng.standard_normal((2, 40, 8))
    mask = np.arange(40) < np.array([[20], [30]])
    seen = reconstruction(x, y, mask)
    assert seen.temporal == pytest.approx(by_loop(x, y, mask)["temporal"])
    zeroed = reconstruction(x * mask[..., None], y * mask[..., None])
    assert zeroed.temporal > 0.99 > seen.temporal + 0.02


def test_what_padding_holds_changes_nothing() -> None:
    x, y = drawn((3, 90, 12))
    mask = np.arange(90) < np.array([[90], [50], [10]])
    expected = reconstruction(x, y, mask)
    for filler in (0.0, 1e30, np.nan, np.inf):
        padded_x, padded_y = np.where(mask[..., None], x, np.float32(filler)), np.where(mask[..., None], y, -filler)
        seen = reconstruction(padded_x, padded_y.astype(np.float32), mask)
        same(seen, expected)
        same(seen.samples, expected.samples)
        assert seen.nonfinite_values == 0


def test_longer_padding_changes_nothing() -> None:
    x, y = drawn((2, 70, 6))
    more = [np.concatenate([v, np.full((2, 33, 6), 7, np.float32)], axis=1) for v in (x, y)]
    mask = np.ones((2, 70), bool)
    same(reconstruction(*more, np.pad(mask, ((0, 0), (0, 33)))), reconstruction(x, y, mask))


def test_a_sample_alone_reads_what_it_reads_among_others() -> None:
    x, y = drawn((4, 64, 5))
    mask = np.arange(64) < np.array([[64], [33], [1], [0]])
    together = reconstruction(x, y, mask).samples
    for b in range(4):
        same(
            Scores(*(value[b : b + 1] for value in astuple(together))),
            reconstruction(x[[b]], y[[b]], mask[[b]]).samples,
        )
    order = [2, 0, 3, 1]
    same(reconstruction(x[order], y[order], mask[order]), reconstruction(x, y, mask))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 3)
)
def test_readings_stay_in_their_ranges(b: int, t: int, d: int, seed: int, density: float, noise: float) -> None:
    x, y = drawn((b, t, d), seed, noise)
    mask = np.random.default_rng(seed).random((b, t)) < density
    seen = reconstruction(x, y, mask)
    for scores in (seen.samples, seen):
        for name, low, high in (
            ("mse", 0, math.inf),
            ("snr_db", -math.inf, HIGHEST_SNR),
            ("cosine", -1, 1),
            ("temporal", 0, 1),
            ("spectral_db", 0, math.inf),
        ):
            values = np.atleast_1d(getattr(scores, name))
            assert ((values >= low) & (values <= high) | np.isnan(values)).all(), name
    assert math.isnan(seen.mse) == (not mask.any())


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_only_the_error_depends_on_the_scale_of_the_features(scale: float) -> None:
    x, y = drawn((2, 80, 8))
    base, scaled = reconstruction(x, y), reconstruction(x * np.float32(scale), y * np.float32(scale))
    assert scaled.mse == pytest.approx(base.mse * scale**2, rel=1e-4)
    for name in READINGS[1:]:
        assert getattr(scaled, name) == pytest.approx(getattr(base, name), rel=1e-4), name


@pytest.mark.parametrize("scale", [1e-22, 1e22])
def test_squares_that_leave_float32_do_not_spoil_the_readings(scale: float) -> None:
    x, y = drawn((2, 80, 8))
    base, scaled = reconstruction(x, y), reconstruction(x * np.float32(scale), y * np.float32(scale))
    assert scaled.nonfinite_values == 0
    for name in READINGS[1:]:
        assert getattr(scaled, name) == pytest.approx(getattr(base, name), rel=1e-4), name


def test_a_perfect_reconstruction_has_the_highest_snr_and_not_infinity() -> None:
    x, _ = drawn((1, 64, 8))
    seen = reconstruction(x, x.copy())
    assert (seen.mse, seen.snr_db, seen.spectral_db) == (0, HIGHEST_SNR, 0)
    assert seen.cosine == pytest.approx(1)
    assert seen.temporal == pytest.approx(1)


@pytest.mark.parametrize("decibels", [0, 20, 60, 100])
def test_the_snr_is_precise_far_below_the_signal(decibels: int) -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 2, 100, 64))
    noise *= np.linalg.norm(x) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    assert reconstruction(x, x + noise).snr_db == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize("usual", [1e-3, 0.1, 0.3, 2.0])
def test_frames_that_are_much_closer_or_further_than_most_are_as_precise(usual: float) -> None:
    """Errors come from products of frames or products from errors, whichever loses nothing for most frames."""
    rng = np.random.default_rng(5)
    x, noise = rng.standard_normal((2, 3, 200, 96))
    noise *= usual
    for at, factor in ((20, 1e-5), (90, 1e-3), (150, 30.0), (170, 1e3)):
        noise[:, at] *= factor
    x[1, 40], x[1, 60] = 0, x[1, 60] * 1e-4
    x, y = x.astype(np.float32), (x + noise).astype(np.float32)
    frames = reconstruction(x.reshape(-1, 1, 96), y.reshape(-1, 1, 96)).samples  # each beside all the others
    for b, t in np.ndindex(3, 200):
        expected = by_loop(x[b : b + 1, t : t + 1], y[b : b + 1, t : t + 1], np.ones((1, 1), bool))
        for name in ("mse", "cosine"):
            seen = getattr(frames, name)[b * 200 + t]
            assert seen == pytest.approx(expected[name], rel=1e-5, abs=1e-12, nan_ok=True), (name, b, t)


def test_a_signal_of_zeros_has_no_snr_and_a_frame_of_two_zeros_no_cosine() -> None:
    x, y = drawn((1, 4, 3))
    x[0, :2] = 0
    y[0, 0] = 0
    seen = reconstruction(x, y)
    assert seen.cosine == pytest.approx((0 + 2 * reconstruction(x[:, 2:], y[:, 2:]).cosine) / 3)
    silent = reconstruction(np.zeros((1, 4, 3)), np.zeros((1, 4, 3)))
    assert silent.mse == 0
    assert all(math.isnan(getattr(silent, name)) for name in READINGS[1:])


def test_an_output_of_zeros_is_no_similarity_to_anything() -> None:
    x, _ = drawn((2, 64, 3))
    seen = reconstruction(x, np.zeros_like(x))
    assert (seen.cosine, seen.temporal, seen.snr_db) == (0, 0, 0)
    assert seen.spectral_db > 30


def test_an_output_that_stands_still_is_not_consistent() -> None:
    x, _ = drawn((2, 64, 3))
    assert reconstruction(x, np.ones_like(x)).temporal == 0


@pytest.mark.parametrize("mask", [np.zeros((2, 5), bool), np.zeros((2, 5), np.float32)])
def test_an_empty_mask_is_no_evidence(mask: NDArray[np.bool_]) -> None:
    seen = reconstruction(*drawn((2, 5, 3)), mask)
    assert seen.frames == seen.nonfinite_values == 0
    assert all(math.isnan(getattr(seen, name)) for name in READINGS)
    assert all(np.isnan(getattr(seen.samples, name)).all() for name in READINGS)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_at_all_is_no_evidence(shape: tuple[int, int, int]) -> None:
    seen = reconstruction(np.zeros(shape), np.zeros(shape))
    assert all(math.isnan(getattr(seen, name)) for name in READINGS)


def test_single_frames_have_no_time_but_the_rest() -> None:
    x, y = drawn((6, 4))
    seen = reconstruction(x, y, np.array([1, 1, 0, 1, 1, 0]))
    expected = by_loop(x[:, None], y[:, None], np.array([[1], [1], [0], [1], [1], [0]], bool))
    assert (seen.mse, seen.cosine) == (pytest.approx(expected["mse"]), pytest.approx(expected["cosine"]))
    assert math.isnan(seen.temporal)
    assert math.isnan(seen.spectral_db)
    assert seen.samples.mse.shape == (6,)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_one_bad_value_spoils_its_sequence_and_the_whole_and_is_counted(poison: float, which: int) -> None:
    pair = drawn((3, 64, 4))
    clean = reconstruction(*pair).samples
    pair[which][1, 40, 2] = poison
    seen = reconstruction(*pair)
    assert seen.nonfinite_values == 1
    assert seen.frames == 3 * 64
    for name in READINGS:
        assert math.isnan(getattr(seen, name)), name
        assert math.isnan(getattr(seen.samples, name)[1]), name
        assert getattr(seen.samples, name)[[0, 2]] == pytest.approx(getattr(clean, name)[[0, 2]]), name


def test_the_same_bad_value_in_both_is_counted_twice_and_not_taken_for_agreement() -> None:
    x, y = drawn((1, 8, 4))
    x[0, 3], y[0, 3] = np.inf, np.inf
    seen = reconstruction(x, y)
    assert seen.nonfinite_values == 8
    assert math.isnan(seen.mse)


def test_half_precision_and_mixed_precision_are_widened() -> None:
    x, y = drawn((2, 40, 4))
    half = reconstruction(x.astype(np.float16), y.astype(np.float16))
    same(half, reconstruction(x.astype(np.float16).astype(np.float32), y.astype(np.float16).astype(np.float32)))
    same(reconstruction(x.astype(np.float64), y), reconstruction(x, y))


def test_arrays_that_cannot_be_written_or_are_not_contiguous_are_read() -> None:
    x, y = drawn((2, 40, 8))
    x.setflags(write=False)
    same(reconstruction(x[:, ::2, ::2], y[:, ::2, ::2]), reconstruction(x[:, ::2, ::2].copy(), y[:, ::2, ::2].copy()))


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [(((2, 3, 4), (2, 3, 5)), None), (((4,), (4,)), None), (((2, 3, 4), (2, 3, 4)), (2, 4)), (((2, 4), (2, 4)), (4,))],
)
def test_shapes_that_do_not_fit_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], mask: tuple[int, ...] | None
) -> None:
    with pytest.raises(ValueError, match=r"not \(|for samples"):
        reconstruction(np.zeros(shapes[0]), np.zeros(shapes[1]), None if mask is None else np.ones(mask))
