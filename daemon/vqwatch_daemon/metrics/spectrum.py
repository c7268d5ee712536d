"""Log-spectral distance along time, for features of which every channel is a signal.

Each run of valid frames of a sequence is cut into Hann windows of 32 frames, 16 apart, from the run's first frame on;
fewer than 16 frames at its end are not looked at, and a run shorter than a window gives none. Per window and channel

    d = sqrt(mean over the 17 bins of (10 log10((P + f) / (Q + f)))^2)    in dB

with the power spectra P of the original and Q of the reconstruction, and the floor f = 1e-6 (60 dB down) times the
larger of the two windows' mean powers over bins and channels: what lies below it is silence in both. The distance does
not depend on the scale of both nor on which is which. A window in which both are zero throughout is no evidence.

Gray and Markel, "Distance measures for speech processing", 1976, on power spectra of channels instead of sound.
The transform is a product with a 32 x 32 matrix, window included: channels stay last and BLAS does the work, which at
this length is faster than an FFT along a strided axis.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.tensors import Floats, Mask

WINDOW_FRAMES: Final = 32
HOP_FRAMES: Final = 16
FLOOR: Final = 1e-6

_DECIBELS: Final = 10 / math.log(10)  # in a neper of power

_BINS: Final = WINDOW_FRAMES // 2 + 1


def spectral_distances(x: Floats, y: Floats, valid: Mask) -> NDArray[np.float64]:
    """Return per sequence of [B, T, D] the sum of distances in dB and how many there are (windows x channels), [2, B].

    Their ratio is the mean distance. ``valid`` [B, T] chooses the frames; those must be finite. ``x`` and ``y`` are
    of one dtype, float32 or float64.

    >>> x = np.sin(np.arange(40.0))[None, :, None]
    >>> spectral_distances(x, 10 * x, np.ones((1, 40), bool))[1]
    array([1.])
    """
    transform = _transform(x.dtype)
    found = np.zeros((2, len(x)))
    p, q = np.empty((2, WINDOW_FRAMES, x.shape[2]), x.dtype)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for sequence, starts in enumerate(map(window_starts, valid)):
            for start in starts:
                window = slice(start, start + WINDOW_FRAMES)
                power = _power(transform, x[sequence, window], p)
                other = _power(transform, y[sequence, window], q)
                loudest = max(float(power.mean()), float(other.mean()))
                if loudest == 0:
                    continue
                power += x.dtype.type(FLOOR * loudest)
                other += x.dtype.type(FLOOR * loudest)
                np.divide(power, other, out=power)
                level = np.log(power, out=power)  # numpy's vectorised logarithm of float32; log10 is not
                found[0, sequence] += _DECIBELS * np.sqrt(np.einsum("bd,bd->d", level, level) / _BINS).sum(
                    dtype=np.float64
                )
                found[1, sequence] += x.shape[2]
    return found


def window_starts(valid: Mask) -> list[int]:
    """Return the first frame of every window of one sequence [T]: windows lie within runs of valid frames.

    >>> window_starts(np.repeat([True, False, True], [50, 1, 32]))
    [0, 16, 51]
    """
    edges = np.flatnonzero(np.diff(valid.astype(np.int8), prepend=0, append=0))
    return [
        start
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        for start in range(first, end - WINDOW_FRAMES + 1, HOP_FRAMES)
    ]


@lru_cache(maxsize=4)
def _transform(dtype: np.dtype[Any]) -> Floats:
    """Return the Hann-windowed DFT as a matrix: 17 rows of cosines, then the 15 of sines that are not zero."""
    frames = np.arange(WINDOW_FRAMES)
    angles = 2 * np.pi / WINDOW_FRAMES * np.outer(np.arange(_BINS), frames)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW_FRAMES * frames)
    rows: Floats = (np.concatenate([np.cos(angles), np.sin(angles)[1:-1]]) * hann).astype(dtype)
    rows.setflags(write=False)
    return rows


def _power(transform: Floats, frames: Floats, out: Floats) -> Floats:
    """Return the power spectrum [17, D] of one window [32, D], in the first rows of ``out`` [32, D]."""
    np.matmul(transform, frames, out=out)
    np.multiply(out, out, out=out)
    power = out[:_BINS]
    power[1:-1] += out[_BINS:]
    return power
