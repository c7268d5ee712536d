"""An alert as the rule engine would hand it over, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FakeAlert:
    """The fields that the Alertmanager client reads; see `vqwatch_daemon.notices.Alert`."""

    state: str = "firing"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    fired_at: float | None = None
    resolved_at: float | None = None


def firing(name: str = "VqLossNotFinite", at: float = 1000.0, severity: str = "critical", **labels: str) -> FakeAlert:
    """Return an alert that began to fire at ``at``."""
    labels = {"alertname": name, "severity": severity, "run": "docs", **labels}
    return FakeAlert("firing", labels, {"summary": f"{name} fires."}, fired_at=at)


def resolved(name: str = "VqLossNotFinite", at: float = 1000.0, end: float = 1010.0, **labels: str) -> FakeAlert:
    """Return an alert that fired at ``at`` and ended at ``end``."""
    alert = firing(name, at, **labels)
    return FakeAlert("resolved", alert.labels, alert.annotations, at, end)


def pending(name: str = "VqLossNotFinite", **labels: str) -> FakeAlert:
    """Return an alert that fired once and now waits to fire again."""
    return FakeAlert("pending", firing(name, **labels).labels, {}, fired_at=5.0, resolved_at=6.0)
