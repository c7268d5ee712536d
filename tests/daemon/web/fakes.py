"""A daemon for the page to look at, without a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqwatch_daemon.readings import Readings
from vqwatch_daemon.web import HistoryView, RunView


@dataclass(frozen=True)
class FakeAlert:
    name: str = "CodebookCollapse"
    severity: str = "critical"
    run: str = "rq-512"
    labels: Mapping[str, str] = field(default_factory=lambda: {"layer": "3"})
    annotations: Mapping[str, str] = field(default_factory=lambda: {"summary": "The codebook of layer 3 collapsed."})
    state: str = "firing"
    value: float | None = 0.04
    started_step: int | None = 400
    active_at: float | None = 1_790_000_000.0
    fired_at: float | None = 1_790_000_002.0
    resolved_at: float | None = None


@dataclass
class FakeDaemon:
    run_views: list[RunView] = field(default_factory=list)
    run_readings: dict[str, Readings] = field(default_factory=dict)
    run_usage: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    run_alerts: list[FakeAlert] = field(default_factory=list)
    store: HistoryView | None = None
    runbooks: dict[str, str] = field(default_factory=dict)
    is_ready: bool = True

    def ready(self) -> bool:
        return self.is_ready

    def runs(self) -> list[RunView]:
        return list(self.run_views)

    def readings(self, run: str) -> Readings | None:
        return self.run_readings.get(run)

    def usage(self, run: str) -> dict[str, list[int]] | None:
        return self.run_usage.get(run)

    def alerts(self) -> list[FakeAlert]:
        return list(self.run_alerts)

    def history(self) -> HistoryView | None:
        return self.store

    def runbook(self, alert_name: str) -> str | None:
        return self.runbooks.get(alert_name)


def layer(name: str, size: int = 256) -> dict[str, Any]:
    return {"name": name, "kind": "ema", "size": size, "dim": 64, "family": "rq", "path": f"quantizer.{name}"}


def run_view(name: str = "rq-512", step: int = 1200, state: str = "live", layers: int = 8) -> RunView:
    return RunView(name, step, 2, 2, 1_790_000_000.0, 1_790_000_600.0, state, [layer(str(i)) for i in range(layers)])


def scrape(accept: str) -> tuple[str, bytes]:
    """Render what a scrape gets."""
    return "text/plain; version=0.0.4; charset=utf-8", b"vqwatch_runs 1.0\n"
