"""Numbers as pictures: a matrix to RGB pixels, dark to bright. Knows no imaging library."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_STOPS: Final = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""Anchors of a dark-to-bright scale whose lightness rises steadily."""


def colours(matrix: NDArray[np.float64], low: float, high: float, height: int = 16) -> NDArray[np.uint8]:
    """Return [rows * height, columns, 3] pixels of a matrix [rows, columns]; ``low`` is darkest; nan is grey.

    >>> colours(np.array([[0.0, 1.0]]), 0.0, 1.0, height=1).tolist()
    [[[0, 0, 4], [252, 255, 164]]]
    """
    span = high - low if high > low else 1.0
    place = np.clip((matrix - low) / span, 0, 1) * (len(_STOPS) - 1)
    known = ~np.isnan(place)
    place = np.where(known, place, 0.0)
    below = np.minimum(place.astype(np.int64), len(_STOPS) - 2)
    share = (place - below)[..., None]
    pixels = _STOPS[below] * (1 - share) + _STOPS[below + 1] * share
    pixels[~known] = 128
    return np.repeat(np.rint(pixels).astype(np.uint8), height, axis=0)


def usage_matrix(counts: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return [layers, codes]: log(1 + count) over the layer's largest; nan beyond a layer's own codebook."""
    matrix = np.full((len(counts), max(map(len, counts), default=0)), np.nan)
    for row, values in zip(matrix, counts, strict=True):
        largest = max(1, int(values.max(initial=0)))
        row[: len(values)] = np.log1p(values) / np.log1p(largest)
    return matrix
