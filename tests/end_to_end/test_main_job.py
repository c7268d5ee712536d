"""The main job: a real training, the daemon, Prometheus and Alertmanager, each a process of its own."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median

import pytest
from tests.servers import Alertmanager, Prometheus, Webhook, require_server, wait_for
from tests.watching import Daemon, TrainingProcess

import vqwatch

Start = Callable[..., Daemon]


def test_a_nan_loss_reaches_prometheus_and_the_webhook_and_resolves(
    start_daemon: Start, alertmanager: Alertmanager, webhook: Webhook, start_prometheus: Callable[..., Prometheus]
) -> None:
    daemon = start_daemon("--alertmanager", alertmanager.url)
    prometheus = start_prometheus([f"127.0.0.1:{daemon.port}"])
    with TrainingProcess(daemon.endpoint, "e2e", "--steps", "100000", "--rate", "20", "--fault", "nan-loss@40:240"):
        fired = webhook.wait_for_alert("firing", timeout=90.0, alertname="VqLossNotFinite", run="e2e")
        received = time.time()
        assert fired["labels"]["severity"] == "critical"
        assert fired["annotations"]["runbook_url"] == f"{daemon.url}/runbooks/VqLossNotFinite"
        [series] = prometheus.wait_for_series('vqwatch_nonfinite_total{run="e2e", source="loss"} > 0')
        assert float(series["value"][1]) >= 1
        assert prometheus.wait_for_series('vqwatch_alerts_firing{alertname="VqLossNotFinite", run="e2e"} >= 1')
        webhook.wait_for_alert("resolved", timeout=60.0, alertname="VqLossNotFinite", run="e2e")
        [step] = prometheus.wait_for_series('vqwatch_step{run="e2e"} > 240')
        assert float(step["value"][1]) > 240
        wait_for(lambda: prometheus.query('count(vqwatch_codebook_perplexity{run="e2e"}) == 8'), 20.0, "all layers")
    print(f"webhook {received - _started(fired):.3f} s after the daemon saw the step")


def _started(alert: dict[str, object]) -> float:
    return datetime.fromisoformat(str(alert["startsAt"])).timestamp()


@pytest.mark.alone
def test_an_alert_is_at_the_webhook_soon_after_the_step_that_raised_it(
    start_daemon: Start, alertmanager: Alertmanager, webhook: Webhook
) -> None:
    daemon = start_daemon("--alertmanager", alertmanager.url)
    delays = []
    for number in range(12):
        with vqwatch.attach(run=f"delay {number}", endpoint=daemon.endpoint, rank=0, world_size=1) as watch:
            for step in range(5):
                watch.step(step, losses={"total": 1.0})
                time.sleep(0.02)
            began = time.monotonic()
            watch.step(5, losses={"total": math.nan})
            wait_for(lambda run=f"delay {number}": webhook.alerts(run=run), 10.0, "the alert", pause=0.001)
            arrived = next(
                at for at, body in webhook.received if body["alerts"][0]["labels"]["run"] == f"delay {number}"
            )
            delays.append(arrived - began)
    print(
        f"step() to webhook: median {median(delays) * 1e3:.1f} ms, slowest {max(delays) * 1e3:.1f} ms of {len(delays)}"
    )


def test_what_is_scraped_pleases_promtool(start_daemon: Start) -> None:
    daemon = start_daemon()
    with TrainingProcess(daemon.endpoint, "lint", "--steps", "60"):
        daemon.wait_for_step("lint", 55)
        exposed = daemon.metrics()
    checked = subprocess.run(
        [require_server("promtool"), "check", "metrics"], input=exposed, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_daemon_ends_cleanly_when_it_is_told_to(start_daemon: Start) -> None:
    daemon = start_daemon()
    assert daemon.process is not None
    daemon.process.terminate()
    assert daemon.process.wait(10.0) == 0
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--http", "everywhere"], "--http: 'everywhere' is not ADDRESS:PORT"),
        (["--window", "1"], "--window: Input should be greater than or equal to 2 (got '1')"),
        (["--listen", "udp://x"], "'udp://x' is neither ipc://PATH nor tcp://ADDRESS:PORT"),
        (["--listen", "tcp://0.0.0.0:7777"], "can be reached from other machines"),
        (["--alertmanager", "localhost:9093"], "'localhost:9093' is no http:// or https:// URL"),
        (["--rules", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--state", "/dev/null"], "cannot use /dev/null: File exists"),
        (["--state", "/proc"], "cannot use /proc"),
    ],
)
def test_a_daemon_that_cannot_be_as_asked_names_what_is_wrong(options: list[str], complaint: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "vqwatch_daemon.cli", "daemon", "--http", "127.0.0.1:0", *options],
        capture_output=True, text=True, check=False, timeout=20.0, env={"XDG_RUNTIME_DIR": "/nonexistent"},
    )  # fmt: skip
    assert asked.returncode == 2
    assert complaint in asked.stderr
    assert "Traceback" not in asked.stderr


def test_a_second_daemon_cannot_take_the_socket_of_the_first(start_daemon: Start) -> None:
    first = start_daemon()
    second = subprocess.run(
        [sys.executable, "-m", "vqwatch_daemon.cli", "daemon", "--http", "127.0.0.1:0", "--listen", first.endpoint],
        capture_output=True, text=True, check=False, timeout=20.0,
    )  # fmt: skip
    assert second.returncode == 2
    assert "another daemon listens" in second.stderr


def test_a_taken_http_port_is_named(start_daemon: Start, tmp_path: Path) -> None:
    first = start_daemon()
    address = f"127.0.0.1:{first.port}"
    second = subprocess.run(
        [sys.executable, "-m", "vqwatch_daemon.cli", "daemon", "--http", address, "--listen", f"ipc://{tmp_path}/s"],
        capture_output=True, text=True, check=False, timeout=20.0,
    )  # fmt: skip
    assert second.returncode == 2
    assert f"cannot serve on {address}" in second.stderr


def test_health_and_readiness_are_answered(start_daemon: Start) -> None:
    daemon = start_daemon()
    for path in ("/-/healthy", "/-/ready", "/"):
        with urllib.request.urlopen(daemon.url + path, timeout=5.0) as answer:
            assert answer.status == 200
