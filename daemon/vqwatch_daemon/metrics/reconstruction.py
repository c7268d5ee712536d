"""How well the decoder gives back what the encoder saw: error, direction, movement along time and spectrum.

Samples are features [B, T, D] (or [B, D]: one frame each) with a mask [B, T] that is true, or not 0, at valid frames.
:func:`reconstruction` returns every reading over the whole sample and sample by sample, reading each array once in
blocks that stay in the cache. Sums over a frame are in the arrays' own precision, sums over frames in float64.

What is not evidence is left out: masked frames (whatever they hold), pairs of frames with a masked one between or
beside them, cosines of two zero vectors, sequences without a run of frames long enough for a spectrum. What is not
finite in a valid frame makes every reading of its sequence nan, and the pooled ones with it, and is counted.

Where this departs from the proposal, section 3.2: it zeroes masked frames and then compares neighbours, so that the
jump at the mask's edge, alike in input and output, passes for temporal consistency; it adds 1e-10 to the noise, which
ruins the SNR of small features and bounds it by the scale of large ones; it multiplies by the mask, so that a NaN in
the padding spoils everything; it lets cosines of zero vectors count as 0; and it names a spectral distance that it
does not define.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.spectrum import spectral_distances
from vqwatch_daemon.metrics.tensors import (
    Floats,
    Mask,
    block_rows,
    nonfinite_values,
    row_products,
    squared_distances,
    widened,
)

Values: TypeAlias = NDArray[np.float64]

HIGHEST_SNR: Final = float(20 * np.log10(2**23))
"""138.5 dB: noise of one unit in the last place of float32. A better, or perfect, reconstruction reads this."""

_ONE_PACE: Final = 1e-6
"""Distances from frame to frame whose variance is below this share of their squared mean are all alike."""

_CANCELS: Final = 1 / 32
"""A squared step or error below this share of what it is the difference of is not taken as a difference."""

_PROBED: Final = 8
"""Frames, or up to twice as many, that tell what to measure."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Readings of one sample per entry, [B] each; nan where there is no evidence.

    ``mse`` squared feature units, mean over valid values. ``snr_db`` signal over noise power, up to 138.5; nan for a
    signal of zeros. ``cosine`` mean over valid frames of the cosine between input and output, -1 to 1; a frame where
    just one of the two is zero counts as 0, one where both are is left out. ``temporal`` cosine between the two
    vectors of distances from frame to frame, 0 to 1; 0 when just one of them stands still. ``temporal_correlation``
    their Pearson correlation, -1 to 1: distances are positive, so that their cosine stays near 1 even where the frames
    have been shuffled, and this falls to 0; nan where one of them keeps one pace. ``spectral_db`` as
    :mod:`~vqwatch_daemon.metrics.spectrum` defines it, at least 0.
    """

    mse: Values
    snr_db: Values
    cosine: Values
    temporal: Values
    temporal_correlation: Values
    spectral_db: Values


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Readings of the whole sample, pooled over all its valid frames, and of each sequence in ``samples``.

    Pooled means: every valid frame (pair of frames, window) weighs the same, whichever sequence it belongs to.
    ``frames`` is how many were valid; ``nonfinite_values`` how many values in them, of either array, were not finite.
    """

    mse: float
    snr_db: float
    cosine: float
    temporal: float
    temporal_correlation: float
    spectral_db: float
    frames: int
    nonfinite_values: int
    samples: Scores


def reconstruction(
    original: Floats, reconstructed: Floats, mask: NDArray[Any] | None = None, *, spectral: bool = True
) -> Reconstruction:
    """Compare [B, T, D] or [B, D] with its reconstruction; ``mask`` [B, T] or [B]; ValueError if shapes do not fit.

    >>> whole = np.array([[[3.0, 4.0], [0.0, 0.0]]])
    >>> seen = reconstruction(whole, whole * 0.9, np.array([[True, False]]))
    >>> seen.frames, round(seen.mse, 6), round(seen.snr_db, 6), round(seen.cosine, 6)
    (1, 0.125, 20.0, 1.0)
    """
    x, y, valid = _checked(original, reconstructed, mask)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = _frame_sums(x, y, valid)
        if x.dtype == np.float32 and not sums.trusted(valid):
            x, y = x.astype(np.float64), y.astype(np.float64)
            sums = _frame_sums(x, y, valid)
    sound = sums.finite | ~valid
    spoilt = ~sound.all(axis=1)
    bad = nonfinite_values(x[~sound], y[~sound]) if spoilt.any() else 0
    parts = _parts(sums, valid, x.shape[2])
    spectra = spectral_distances(x, y, valid & sums.finite) if spectral else np.zeros((2, len(x)))
    parts = np.where(spoilt, np.nan, np.concatenate([parts, spectra]))
    scores = _scores(np.concatenate([parts, parts.sum(axis=1, keepdims=True)], axis=1))  # the last is of all
    return Reconstruction(
        mse=float(scores.mse[-1]),
        snr_db=float(scores.snr_db[-1]),
        cosine=float(scores.cosine[-1]),
        temporal=float(scores.temporal[-1]),
        temporal_correlation=float(scores.temporal_correlation[-1]),
        spectral_db=float(scores.spectral_db[-1]),
        frames=int(np.count_nonzero(valid)),
        nonfinite_values=bad,
        samples=Scores(
            mse=scores.mse[:-1],
            snr_db=scores.snr_db[:-1],
            cosine=scores.cosine[:-1],
            temporal=scores.temporal[:-1],
            temporal_correlation=scores.temporal_correlation[:-1],
            spectral_db=scores.spectral_db[:-1],
        ),
    )


@dataclass(frozen=True, slots=True)
class _FrameSums:
    """Sums over the features of each frame, [B, T]: squares, products, squared errors, squared steps to the next."""

    xx: Values
    yy: Values
    xy: Values
    error: Values
    x_step: Values  # the last frame of a sequence has no next: what stands there is never read
    y_step: Values

    @property
    def finite(self) -> Mask:
        """Frames whose values are all finite in both arrays: an error is finite only where both are."""
        return np.isfinite(self.xx + self.error)

    def trusted(self, valid: Mask) -> bool:
        """Whether no square left float32's range, upward or downward."""
        return not valid.any() or bool(self.finite[valid].all() and self.xx[valid].sum() > 1e-30)


def _checked(original: Floats, reconstructed: Floats, mask: NDArray[Any] | None) -> tuple[Floats, Floats, Mask]:
    if original.shape != reconstructed.shape or original.ndim not in (2, 3):
        raise ValueError(f"[B, T, D] or [B, D] and the same, not {original.shape} and {reconstructed.shape}")
    x, y = widened(original), widened(reconstructed)
    if x.dtype != y.dtype:
        x, y = x.astype(np.float64), y.astype(np.float64)
    if original.ndim == 2:
        x, y = x[:, None], y[:, None]
    if mask is None:
        return x, y, np.ones(x.shape[:2], bool)
    valid = np.asarray(mask) != 0
    if valid.shape != original.shape[:-1]:
        raise ValueError(f"a mask {valid.shape} for samples {original.shape}")
    return x, y, valid.reshape(x.shape[:2])


def _frame_sums(x: Floats, y: Floats, valid: Mask) -> _FrameSums:
    """Return the sums of every frame; blocks of frames without a valid one are left at 0.

    Of squares, products and squared differences two kinds give the third. Squares are needed; of the other two that one
    is measured which loses nothing when the other is derived from it: the error where most of it is small, as far as
    can be told from a few frames, and else the product. Where a frame is unlike most, both are measured.
    """
    count, dim = x.shape[0] * x.shape[1], x.shape[2]
    flat = x.reshape(count, dim), y.reshape(count, dim)
    wanted = valid.reshape(-1)
    close = _are_close(*flat, wanted)
    sums = np.zeros((5, count), x.dtype)
    block = block_rows(x)
    buffer = np.empty((min(block, count), dim), x.dtype)
    for start in range(0, count, block):
        end, after = min(start + block, count), min(start + block, count - 1)
        if not wanted[start:end].any():
            continue
        for rows, squares, steps in ((flat[0], sums[0], sums[3]), (flat[1], sums[1], sums[4])):
            row_products(rows[start:end], rows[start:end], out=squares[start:end])
            row_products(rows[start + 1 : after + 1], rows[start:after], out=steps[start:after])
        a, b = flat[0][start:end], flat[1][start:end]
        if close:
            a = b = np.subtract(a, b, out=buffer[: end - start])
        row_products(a, b, out=sums[2, start:end])
    xx, yy, measured, x_step, y_step = sums.astype(np.float64)
    both = xx + yy
    if close:
        error, xy = measured, (both - measured) / 2
        _measure(xy, wanted & ~(error < _CANCELS * both), *flat, row_products, block)
    else:
        error, xy = both - 2 * measured, measured
        _measure(error, wanted & (error < _CANCELS * both), *flat, squared_distances, block)
    for products, squares, rows in ((x_step, xx, flat[0]), (y_step, yy, flat[1])):
        _to_steps(products, squares, rows, wanted, block)
    return _FrameSums(*(values.reshape(x.shape[:2]) for values in (xx, yy, xy, error, x_step, y_step)))


def _are_close(x: Floats, y: Floats, wanted: NDArray[np.bool_]) -> bool:
    """Whether most frames, by some of them, are so close that products would lose what is between them."""
    frames = np.flatnonzero(wanted)
    frames = frames[:: max(1, len(frames) // _PROBED)]
    a, b = x[frames], y[frames]
    near = squared_distances(a, b) < _CANCELS * (row_products(a, a) + row_products(b, b))
    return 2 * int(np.count_nonzero(near)) > len(frames)


def _to_steps(products: Values, squares: Values, rows: Floats, wanted: NDArray[np.bool_], block: int) -> None:
    """Turn products of neighbouring frames [n], in place, into squared steps: |a|^2 + |b|^2 - 2ab.

    Where that cancels, so that rounding would show, the step is measured itself. What remains are steps of at least
    about a quarter of a frame's length, whose squares keep five digits in float32.
    """
    both = squares[:-1] + squares[1:]
    steps = products[:-1]
    steps[:] = both - 2 * steps
    near = (steps < _CANCELS * both) & wanted[:-1] & wanted[1:]
    _measure(steps, near, rows[1:], rows[:-1], squared_distances, block)


def _measure(
    found: Values,
    wanted: NDArray[np.bool_],
    a: Floats,
    b: Floats,
    how: Callable[[Floats, Floats], Floats],
    block: int,
) -> None:
    """Put into ``found`` what ``how`` says of the rows of blocks that hold a wanted one."""
    for start in np.unique(np.flatnonzero(wanted) // block) * block:
        end = min(start + block, len(wanted))
        found[start:end] = how(a[start:end], b[start:end])


def _parts(sums: _FrameSums, valid: Mask, dim: int) -> Values:
    """Return what adds up over sequences, [11, B]; see :func:`_scores` for what each is."""
    steps = np.zeros_like(valid)
    steps[:, :-1] = valid[:, :-1] & valid[:, 1:]
    xx, yy, xy, error = np.where(valid, (sums.xx, sums.yy, sums.xy, sums.error), 0.0)  # nan in padding is nobody's
    squares = np.where(steps, (sums.x_step, sums.y_step), 0.0)
    parts = np.empty((11, len(valid)))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = np.sqrt(xx) * np.sqrt(yy)
        cosines = np.clip(np.where(lengths > 0, xy / lengths, 0), -1, 1)
        distances = np.sqrt(squares)
        parts[0] = np.count_nonzero(valid, axis=1) * np.float64(dim)
        parts[1] = error.sum(axis=1)
        parts[2] = xx.sum(axis=1)
        parts[3] = np.count_nonzero((xx > 0) | (yy > 0), axis=1)
        parts[4] = cosines.sum(axis=1)
        parts[5] = (distances[0] * distances[1]).sum(axis=1)
        parts[6:8] = squares.sum(axis=2)
        parts[8] = np.count_nonzero(steps, axis=1)
        parts[9:] = distances.sum(axis=2)
    return parts


def _scores(parts: Values) -> Scores:
    values, error, signal, directed, cosines, products, x_steps, y_steps, steps, moved, followed, *spectral = parts
    distances, spectra = spectral
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        snr = 10 * np.log10(signal / error)
        together = steps * products - moved * followed
        still = (x_steps > 0) ^ (y_steps > 0)
        return Scores(
            mse=error / np.where(values > 0, values, np.nan),
            snr_db=np.minimum(np.where(signal > 0, snr, np.nan), HIGHEST_SNR),
            cosine=cosines / np.where(directed > 0, directed, np.nan),
            temporal=np.where(still, 0, np.clip(products / (np.sqrt(x_steps) * np.sqrt(y_steps)), 0, 1)),
            temporal_correlation=np.clip(
                together / (_spread(steps, moved, x_steps) * _spread(steps, followed, y_steps)), -1, 1
            ),
            spectral_db=distances / np.where(spectra > 0, spectra, np.nan),
        )


def _spread(steps: Values, moved: Values, squares: Values) -> Values:
    """Return the standard deviation of the distances times their number; nan where it is within their rounding."""
    variance = steps * squares - moved * moved
    return np.sqrt(np.where(variance > _ONE_PACE * moved * moved, variance, np.nan))
