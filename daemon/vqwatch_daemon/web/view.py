"""What the HTTP side sees of the daemon: read-only, thread-safe, always a fresh or immutable value.

A fake of it is a dozen lines, which is how the tests of this package get their daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vqwatch_daemon.readings import Readings


@dataclass(frozen=True, slots=True)
class RunView:
    """One training job as people see it.

    ``state`` is "live", "finished" (said goodbye) or "gone" (fell silent); ``started_at`` and ``last_seen`` are Unix
    seconds; ``layers`` holds one map per quantizer with the fields of ``vqwatch.wire.Layer``.
    """

    name: str
    step: int
    ranks: int
    world_size: int
    started_at: float
    last_seen: float
    state: str
    layers: list[dict[str, Any]] = field(default_factory=list)


class AlertView(Protocol):
    """What the page needs of an alert; the rule engine's own alerts have this shape.

    ``state`` is "pending", "firing" or "resolved"; times are Unix seconds, None where it has not happened.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  # the class says what they are
    @property
    def severity(self) -> str: ...  # noqa: D102
    @property
    def run(self) -> str: ...  # noqa: D102
    @property
    def labels(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def annotations(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def value(self) -> float | None: ...  # noqa: D102
    @property
    def started_step(self) -> int | None: ...  # noqa: D102
    @property
    def active_at(self) -> float | None: ...  # noqa: D102
    @property
    def fired_at(self) -> float | None: ...  # noqa: D102
    @property
    def resolved_at(self) -> float | None: ...  # noqa: D102


class HistoryView(Protocol):
    """What the page asks of the store; :class:`vqwatch_daemon.history.History` answers."""

    def runs(self) -> list[dict[str, Any]]:
        """Return every run that the store knows, the latest first."""
        ...

    def latest(self, run: str) -> Readings:
        """Return the last value of every series; empty when the run is not known."""
        ...

    def series(
        self,
        run: str,
        metrics: Sequence[str],
        *,
        start: float | None = None,
        end: float | None = None,
        points: int = 400,
        by: str = "step",
    ) -> dict[str, Any]:
        """Return the metrics' curves between ``start`` and ``end`` (of ``by``), thinned to ``points``."""
        ...

    def usage_at(self, run: str, step: int | None = None) -> dict[str, Any] | None:
        """Return the code usage snapshot at or before ``step``; None when there is none."""
        ...

    def usage_steps(self, run: str) -> list[tuple[int, float]]:
        """Return (step, time) of every usage snapshot."""
        ...

    def alert_log(self, run: str | None = None, *, limit: int = 200) -> list[dict[str, Any]]:
        """Return the latest alert transitions, the newest first."""
        ...


class DaemonView(Protocol):
    """The daemon, seen from the outside. Every call may come from any thread."""

    def ready(self) -> bool:
        """Return whether the daemon listens and its rules are loaded."""
        ...

    def runs(self) -> list[RunView]:
        """Return the runs that the daemon holds."""
        ...

    def readings(self, run: str) -> Readings | None:
        """Return a run's current readings; None when the run is not known."""
        ...

    def usage(self, run: str) -> Mapping[str, Sequence[int]] | None:
        """Return how often each code was used over the window, by layer; None when the run is not known."""
        ...

    def alerts(self) -> Sequence[AlertView]:
        """Return the alerts that are pending, firing or were resolved lately."""
        ...

    def history(self) -> HistoryView | None:
        """Return the store; None when the daemon keeps no history."""
        ...

    def runbook(self, alert_name: str) -> str | None:
        """Return the runbook of an alert as Markdown; None when there is none."""
        ...
