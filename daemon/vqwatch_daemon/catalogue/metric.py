"""What the catalogue says about a metric, and what its values mean to a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PREFIX: Final = "vqwatch_"

PROPOSAL: Final = "the monitoring proposal"
"""The source of what the proposal asked for."""

LAYER: Final = ("layer",)


@dataclass(frozen=True, slots=True)
class Bands:
    """What a value means to the person who looks: inside ``healthy``, else inside ``concerning``, else critical.

    Both are closed intervals (low, high); an open side is None. With ``per_code`` the bounds are shares of the
    codebook's size, because a count of codes means nothing without it.
    """

    healthy: tuple[float | None, float | None]
    concerning: tuple[float | None, float | None]
    per_code: bool = False

    def verdict(self, value: float, codebook_size: int = 1) -> str:
        """Return "healthy", "concerning" or "critical"; a nan is critical.

        >>> Bands(healthy=(15, None), concerning=(10, None)).verdict(12)
        'concerning'
        """
        scale = codebook_size if self.per_code else 1
        for name, (low, high) in (("healthy", self.healthy), ("concerning", self.concerning)):
            if (low is None or value >= low * scale) and (high is None or value <= high * scale) and value == value:
                return name
        return "critical"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it counts in, and what it means.

    ``labels`` come after ``run``, which every metric has that is ``per_run``. ``unit`` is "" for pure numbers.
    """

    name: str
    group: str
    unit: str
    labels: tuple[str, ...]
    help: str
    source: str = ""
    kind: str = "gauge"
    per_run: bool = True
    bands: Bands | None = None

    @property
    def exposed_name(self) -> str:
        """The name that Prometheus sees."""
        return PREFIX + self.name

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels that Prometheus sees, ``run`` first."""
        return ("run", *self.labels) if self.per_run else self.labels
