"""Tells whether a long series of measurements stayed where it was. Pure: no clock, no process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PARTS = 6
"""A series is cut into so many parts; the first is warm-up, the second is compared with the last."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much more the last part may be than the second: a share of it, and an amount on top."""

    share: float
    amount: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Medians of the second and the last part, the slope over all but the warm-up, and whether that is flat."""

    early: float
    late: float
    per_hour: float
    most: float
    flat: bool


def judge(times: Sequence[float], values: Sequence[float], bound: Bound) -> Verdict:
    """Judge values at ``times`` (seconds); fewer than one for each part, or one that is nan, is not flat.

    >>> judge(range(60), [5.0] * 60, Bound(0.0, 0.0)).flat, judge(range(60), range(60), Bound(0.5, 1.0)).flat
    (True, False)
    """
    if len(values) < PARTS or not np.isfinite(np.asarray(values, np.float64)).all():
        return Verdict(np.nan, np.nan, np.nan, np.nan, flat=False)
    parts = np.array_split(np.asarray(values, np.float64), PARTS)
    early, late = float(np.median(parts[1])), float(np.median(parts[-1]))
    warm = len(parts[0])
    slope = float(np.polyfit(np.asarray(times, np.float64)[warm:], np.asarray(values, np.float64)[warm:], 1)[0])
    most = early * (1 + bound.share) + bound.amount
    return Verdict(early, late, slope * 3600, most, flat=late <= most)
