"""One layer's code usage as the heatmap draws it: in order of index or of use, and no wider than a screen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def row(counts: Sequence[int], order: str = "index", columns: int = 1024) -> dict[str, Any]:
    """Return ``{"size", "used", "total", "values"}``: counts, or means of neighbours where cut to ``columns``.

    >>> row([0, 4, 1, 0], "sorted")
    {'size': 4, 'used': 2, 'total': 5, 'values': [4, 1, 0, 0]}
    >>> row([1, 3, 0, 0], columns=2)["values"]
    [2.0, 0.0]
    """
    values = np.asarray(counts, np.int64)
    summary = {"size": len(values), "used": int(np.count_nonzero(values)), "total": int(values.sum())}
    if order == "sorted":
        values = np.sort(values)[::-1]
    if len(values) <= columns:
        return {**summary, "values": values.tolist()}
    edges = np.arange(columns) * len(values) // columns
    widths = np.diff(np.append(edges, len(values)))
    return {**summary, "values": np.round(np.add.reduceat(values, edges) / widths, 2).tolist()}
