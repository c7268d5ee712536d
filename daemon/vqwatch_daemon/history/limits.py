"""What is kept, how finely and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vqwatch_daemon.catalogue import CATALOGUE

_NOT_KEPT: Final = frozenset(
    {
        "build_info",
        "run_info",
        "codebook_info",
        "last_message_timestamp_seconds",
        "step",
        "evaluation_step",
        "alerts_firing",
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How fine and how large the store may become.

    A reading is kept at most once per ``resolution`` seconds (layer-by-layer matrices: ``matrix_resolution``). After
    ``fine_hours`` samples become buckets of ``medium_seconds`` (smallest, mean, largest, right to 1.3e-4), after
    ``medium_hours`` buckets of ``coarse_seconds``. Nothing lives longer than ``max_age_days``; beyond ``max_bytes``
    the oldest goes. What is in memory reaches the file every ``flush_seconds``: a killed daemon loses no more.
    """

    resolution: float = 1.0
    matrix_resolution: float = 15.0
    usage_resolution: float = 10.0
    flush_seconds: float = 2.0
    block_seconds: float = 300.0
    fine_hours: float = 4.0
    medium_seconds: float = 30.0
    medium_hours: float = 48.0
    coarse_seconds: float = 600.0
    max_age_days: float = 30.0
    max_bytes: int = 512 * 1024 * 1024
    max_runs: int = 500
    max_alerts: int = 20_000
    max_series: int = 256
    queue_length: int = 1024

    def resolution_of(self, metric: str) -> float | None:
        """Return the seconds between two kept samples of a metric; None when it is not kept.

        >>> Limits().resolution_of("loss"), Limits().resolution_of("run_info")
        (1.0, None)
        """
        if metric in _NOT_KEPT:
            return None
        known = CATALOGUE.get(metric)
        matrix = known is not None and "other_layer" in known.labels
        return self.matrix_resolution if matrix else self.resolution
