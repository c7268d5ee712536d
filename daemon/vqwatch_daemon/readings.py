"""The one shape in which values travel inside the daemon: metric -> label values -> value.

Names come without the ``vqwatch_`` prefix, label values in the catalogue's order without ``run`` (the run is the
context). A reading without evidence is absent; a non-finite one is there only where what was measured is non-finite.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

Labels: TypeAlias = tuple[str, ...]
Series: TypeAlias = dict[Labels, float]
Readings: TypeAlias = dict[str, Series]


def one(value: float) -> Series:
    """Return the series of a metric that has no labels besides the run; empty when the value is nan.

    >>> one(2.0), one(float("nan"))
    ({(): 2.0}, {})
    """
    return {} if math.isnan(value) else {(): float(value)}


def known(labels: Iterable[Labels], values: Collection[float]) -> Series:
    """Pair labels with values and leave out the nan ones: unknown is absent.

    >>> known([("0",), ("1",)], [0.5, float("nan")])
    {('0',): 0.5}
    """
    total = sum(values)
    if total == total:  # then none of them is nan
        return dict(zip(labels, values, strict=True))
    return {label: value for label, value in zip(labels, values, strict=True) if value == value}


def copy(readings: Mapping[str, Mapping[Labels, float]]) -> Readings:
    """Return a copy that later changes of the original do not reach."""
    return {metric: dict(series) for metric, series in readings.items()}
