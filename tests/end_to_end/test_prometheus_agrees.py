"""One recorded training, judged by the daemon and by a real Prometheus with the exported rules: the same fires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.servers import Prometheus, free_port
from tests.watching import Daemon, TrainingProcess

from vqwatch.wire import Step
from vqwatch_daemon.recording import read

pytestmark = pytest.mark.alone

RUN = "judged twice"
STEPS = 560
STEPS_PER_SECOND = 20.0
"""The pace of the replay. Prometheus looks once a second, so a wait of 20 steps is one evaluation."""

SETTLE_SECONDS = 6.0
"""For Prometheus' last scrape and evaluation, and for waits that end later because it looks once a second."""

Fired = tuple[str, str, str]
"""Name, severity and layer ("" where the alert has none)."""

HISTORY = "Prometheus needs 20 scrapes of history, 20 s: that reaches back to the first climb, where all is scattered"
SHORT = "its wait of 20 steps is 1 s: what holds for less than two scrapes after that is only seen by the daemon"
BRIEF = "one step in 20 is scraped: what lasts a few steps lies between two scrapes, or seems to last"

BY_NATURE: Mapping[str, str] = {
    "VqEntropyDrop": HISTORY,
    "VqLossSpike": HISTORY,
    "VqSnrDrop": HISTORY,
    "VqSpectralDistanceSpike": HISTORY,
    "VqTemporalConsistencyDrop": HISTORY,
    "VqTemporalOrderLost": HISTORY,
    "VqCodebookNormShrunk": SHORT,
    "VqEmaMovementSpike": BRIEF,
    "VqGradientNormHigh": BRIEF,
    "VqGradientSpike": BRIEF,
}
"""Alerts that the two may judge differently in this recording, and why. promtool's unit tests hold what these rules say
to the engine's word (tests/rules/test_prometheus_export.py); whatever is not here has to fire in both or in neither."""

MUST = {
    ("VqLossNotFinite", "critical", ""),
    ("VqGradientNotFinite", "warning", ""),
    ("VqCodebookCollapse", "critical", ""),
    *(("VqPerplexityLow", "critical", str(layer)) for layer in range(8)),
    *(("VqDeadCodes", "critical", str(layer)) for layer in range(8)),
    *(("VqEmaWarmupComplete", "info", str(layer)) for layer in range(8)),
}
"""What the recording is made for; without these in both the comparison would prove little."""

VQWATCH = (sys.executable, "-m", "vqwatch_daemon.cli")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real training: healthy, its loss NaN for a while, healthy again, then its codebooks collapse to the end."""
    folder = tmp_path_factory.mktemp("r")
    path, endpoint = folder / "run.vqrec", f"tcp://127.0.0.1:{free_port()}"
    recorder = subprocess.Popen([*VQWATCH, "record", "-o", str(path), "--listen", endpoint], stderr=subprocess.DEVNULL)
    try:
        with TrainingProcess(
            endpoint, "recorded", "--steps", str(STEPS), "--batch-size", "16", "--length", "32", "--budget", "inf",
            "--fault", "nan-loss@180:280", "--fault", f"collapse@370:{STEPS}",
        ) as training:  # fmt: skip
            training.finish(timeout=600.0)
    finally:
        recorder.terminate()
        assert recorder.wait(10.0) == 0
    return path


def exported(folder: Path) -> Path:
    """Write the shipped pack for Prometheus, for this pace."""
    path = folder / "rules.yml"
    text = subprocess.run(
        [*VQWATCH, "rules", "export", "--step-seconds", str(1 / STEPS_PER_SECOND), "--scrape-seconds", "1"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    path.write_text(text, encoding="utf-8")
    return path


def speed(recording: Path) -> float:
    """Return how much faster than it happened the recording has to be played."""
    times = [now for now, message in read(recording) if isinstance(message, Step)]
    return STEPS_PER_SECOND * (times[-1] - times[0]) / (len(times) - 1)


def of_daemon(daemon: Daemon, to: str) -> set[Fired]:
    log = daemon.get("/api/alerts/log?limit=1000&run=judged%20twice")
    assert len(log) < 1000
    return {(one["name"], one["severity"], one["labels"].get("layer", "")) for one in log if one["to"] == to}


def of_prometheus(prometheus: Prometheus) -> set[Fired]:
    series = prometheus.query(f'last_over_time(ALERTS{{alertstate="firing", run="{RUN}"}}[10m])')
    labels = [one["metric"] for one in series]
    return {(one["alertname"], one["severity"], one.get("layer", "")) for one in labels}


def test_a_recorded_stream_raises_the_same_alerts_in_the_daemon_and_in_prometheus(
    recording: Path,
    start_daemon: Callable[..., Daemon],
    start_prometheus: Callable[..., Prometheus],
    tmp_path: Path,
) -> None:
    daemon = start_daemon(state=True)
    prometheus = start_prometheus([f"127.0.0.1:{daemon.port}"], rule_files=[exported(tmp_path)])
    played = subprocess.run(
        [*VQWATCH, "replay", str(recording), "--to", daemon.endpoint, "--speed", str(speed(recording)), "--run", RUN],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stderr
    time.sleep(SETTLE_SECONDS)
    here, there = of_daemon(daemon, "firing"), of_prometheus(prometheus)
    # The steps ended and with them the daemon's waits; in Prometheus the last readings stand and time goes on.
    waiting = {
        (one["labels"]["alertname"], one["labels"]["severity"], one["labels"].get("layer", ""))
        for one in daemon.alerts("pending", run=RUN)
    }
    differing = {(*one, "daemon" if one in here else "Prometheus") for one in here ^ (there - waiting)}
    print(f"{len(here)} fired in the daemon, {len(there)} in Prometheus; only one: {sorted(differing)}")

    assert here >= MUST
    assert there >= MUST
    assert {one for one in differing if one[0] not in BY_NATURE} == set()


def test_the_same_recording_is_judged_the_same_in_every_process(recording: Path) -> None:
    def backtest(seed: str) -> str:
        return subprocess.run(
            [*VQWATCH, "rules", "test", "--on", str(recording), "--json"],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout  # fmt: skip

    first = backtest("1")
    found = {(one["alert"], one["severity"], dict(one["labels"]).get("layer", "")) for one in json.loads(first)}
    assert found >= MUST
    assert backtest("2") == first
