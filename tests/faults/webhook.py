"""From step() to the webhook: the daemon's own client tells a real Alertmanager what fires in a play.

    with Desk(folder) as desk:                              # once, in the process that reports
        teller = Teller(desk.url, "collapse of seed 0")     # in the process that plays, one for each play
        ...
        teller.close()
        desk.seconds("collapse of seed 0", teller.said)     # {"VqSnrDrop": 0.004, ...}

Every play has a run's name of its own, so that Alertmanager does not take an alert for one that it has told already.
Each alert is a group of its own there and waits for nothing (group_wait 0), so that what is measured is the way:
emitter, ZeroMQ, hub, rules, the client, Alertmanager, webhook.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.faults.listening import ALARMING
from tests.servers import Alertmanager, Webhook

from vqwatch_daemon.alertmanager import Alertmanagers
from vqwatch_rules import Alert

PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Retold:
    """An alert of simulated time, as it is told at real times under the play's name."""

    state: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    fired_at: float | None
    resolved_at: float | None


class Teller:
    """Tells one Alertmanager of a play. ``said`` is when step() was called, real Unix time, for each alert's first."""

    def __init__(self, url: str, run: str) -> None:
        self.said: dict[str, float] = {}
        self._run = run
        self._client = Alertmanagers([url])
        self._moments: dict[tuple[object, ...], float] = {}

    def fires(self, alert: Alert, said_at: float) -> None:
        """Note when what made an alert fire was said; the first of several severities and layers counts."""
        if alert.severity in ALARMING:
            self.said.setdefault(alert.name, said_at)

    def update(self, alerts: Sequence[Alert]) -> None:
        """Do what the daemon does when an alert has changed."""
        now = time.time()
        self._client.update([self._retold(alert, now) for alert in alerts], now)

    def _retold(self, alert: Alert, now: float) -> Retold:
        labels = {**alert.labels, "run": self._run}
        moments = (
            None if at is None else self._moments.setdefault((what, at, *sorted(labels.items())), now)
            for what, at in (("fired", alert.fired_at), ("resolved", alert.resolved_at))
        )
        return Retold(alert.state, labels, alert.annotations, *moments)

    def close(self) -> None:
        """Let everything end, so that Alertmanager can forget the play."""
        self._client.update([], time.time())
        self._client.close(PATIENCE_SECONDS)


class Desk:
    """A real Alertmanager and the webhook behind it. Its storage is a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._resources = ExitStack()
        self._read = 0
        self._arrived: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._webhook = stack.enter_context(Webhook())
            self._unix = time.time() - time.monotonic()
            self._alertmanager = stack.enter_context(Alertmanager(self._folder, self._webhook.url, self._config()))
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _config(self) -> dict[str, object]:
        return {
            "route": {
                "receiver": "webhook",
                "group_by": ["..."],
                "group_wait": "0s",
                "group_interval": "5s",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "webhook", "webhook_configs": [{"url": self._webhook.url, "send_resolved": False}]}],
        }

    @property
    def url(self) -> str:
        """Where to tell of alerts."""
        return self._alertmanager.url

    def seconds(self, run: str, said: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds from step() to the webhook, by alert; what does not arrive in 10 s is left out."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._has(run, said) and time.monotonic() < deadline:
            time.sleep(0.01)
        arrived = {name: self._arrived.get((run, name)) for name in said}
        return {name: at - said[name] for name, at in arrived.items() if at is not None}

    def _has(self, run: str, names: Mapping[str, float]) -> bool:
        received = self._webhook.received
        for at, payload in received[self._read :]:
            self._read += 1
            for alert in payload["alerts"]:
                labels = alert["labels"]
                if alert["status"] == "firing" and labels["severity"] in ALARMING:
                    self._arrived.setdefault((labels["run"], labels["alertname"]), at + self._unix)
        return all((run, name) in self._arrived for name in names)
