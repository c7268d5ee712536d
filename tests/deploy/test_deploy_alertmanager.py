"""Alertmanager's own tools on deploy/alertmanager, and its routes and inhibitions with real alerts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.daemon.alerts import firing
from tests.servers import Alertmanager, Webhook, wait_for

from vqwatch_daemon.alertmanager import Alertmanagers
from vqwatch_daemon.notices import Alert
from vqwatch_rules import default_pack

from .tools import DEPLOY, passes, run

CONFIG = DEPLOY / "alertmanager" / "alertmanager.yml"
RECEIVERS = sorted((DEPLOY / "alertmanager" / "receivers").glob("*.yml"))


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(CONFIG.read_text()))


def receiver_of(*labels: str) -> str:
    return passes("amtool", "config", "routes", "test", f"--config.file={CONFIG}", *labels).strip()


def test_amtool_accepts_the_configuration_as_it_stands() -> None:
    passes("amtool", "check-config", CONFIG)


@pytest.mark.parametrize("file", RECEIVERS, ids=lambda file: file.stem)
def test_amtool_accepts_it_with_each_of_the_example_receivers(file: Path, tmp_path: Path) -> None:
    merged = config() | yaml.safe_load(file.read_text())
    written = tmp_path / "alertmanager.yml"
    written.write_text(yaml.safe_dump(merged))
    passes("amtool", "check-config", written)


def test_amtool_would_find_a_receiver_that_is_missing(tmp_path: Path) -> None:
    written = tmp_path / "alertmanager.yml"
    written.write_text(yaml.safe_dump(config() | {"receivers": [{"name": "page"}]}))
    assert run("amtool", "check-config", written).returncode != 0


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=VqLossNotFinite", "severity=critical", "run=docs"], "page"),
        (["alertname=VqDeadCodes", "severity=warning", "run=docs", "layer=3"], "notify"),
        (["alertname=VqUtilizationFull", "severity=info", "run=docs"], "record"),
        (["alertname=VqDaemonDown", "severity=critical", "instance=a"], "page"),
        (["alertname=VqWatchdog", "severity=none"], "watchdog"),
        (["alertname=SomethingElse"], "notify"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_alerts_are_routed_by_how_bad_they_are(labels: list[str], receiver: str) -> None:
    assert receiver_of(*labels) == receiver


def test_every_alert_that_the_inhibitions_name_exists() -> None:
    named = set(re.findall(r"\bVq[A-Za-z]+", yaml.safe_dump(config())))
    meta = "".join(file.read_text() for file in (DEPLOY / "prometheus").glob("*/*.yml"))
    known = set(re.findall(r"alert: (Vq[A-Za-z]+)", default_pack().read_text() + meta))
    assert named <= known


@pytest.fixture
def tell(
    start_alertmanager: Callable[..., Alertmanager], webhook: Webhook
) -> Callable[[list[Alert]], list[tuple[str, str]]]:
    """Send alerts through the shipped configuration; return (alertname, severity) of those that reach people."""
    shipped = config()
    receivers = [
        {"name": each["name"], "webhook_configs": [{"url": f"{webhook.url}{each['name']}"}]}
        for each in shipped["receivers"]
    ]
    server = start_alertmanager(shipped | {"receivers": receivers})

    def send(alerts: list[Alert]) -> list[tuple[str, str]]:
        alertmanagers = Alertmanagers([server.url])
        alertmanagers.update(alerts, time.time())
        alertmanagers.close(5.0)
        assert len(server.alerts()) == len(alerts)
        wait_for(lambda: webhook.received, what="the first notification")
        time.sleep(1.3)  # a group waits for 1 s; what has not come by then was muted
        return sorted((alert["labels"]["alertname"], alert["labels"]["severity"]) for alert in webhook.alerts())

    return send


def test_people_hear_of_the_cause_and_not_of_its_consequences(
    tell: Callable[[list[Alert]], list[tuple[str, str]]],
) -> None:
    now = time.time()
    nan, collapse, well = {"run": "nan"}, {"run": "collapse"}, {"run": "well"}
    heard = tell(
        [
            firing("VqDeadCodes", now, "warning", layer="0", **nan),
            firing("VqLossNotFinite", now, "critical", component="total", **nan),
            firing("VqPerplexityLow", now, "warning", layer="2", **collapse),
            firing("VqCodebookCollapse", now, "critical", **collapse),
            firing("VqSnrLow", now, "warning", **well),
            firing("VqSnrLow", now, "critical", **well),
            firing("VqDeadCodes", now, "warning", layer="0", **well),
        ]
    )
    assert heard == [
        ("VqCodebookCollapse", "critical"),
        ("VqDeadCodes", "warning"),
        ("VqLossNotFinite", "critical"),
        ("VqSnrLow", "critical"),
    ]


def test_a_fault_of_many_layers_is_one_message(
    tell: Callable[[list[Alert]], list[tuple[str, str]]], webhook: Webhook
) -> None:
    heard = tell([firing("VqDeadCodes", time.time(), "warning", layer=str(layer)) for layer in range(8)])
    assert len(heard) == 8
    assert len(webhook.received) == 1
