"""The demo as a user starts it: a real daemon, a real training, a real fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "vqwatch_daemon.cli", "demo", "--plain", "--rate", "0"]
QUICK = ["--fault", "nan-loss", "--healthy-steps", "30"]


def start(options: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(of: int) -> list[int]:
    """The processes that a process started, by Linux's own book-keeping."""
    listed = Path(f"/proc/{of}/task/{of}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_alert_fires_and_resolves_and_the_demo_ends_well() -> None:
    with start(QUICK) as demo:
        output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    assert "fault put in: the loss is NaN" in output
    assert "VqLossNotFinite" in output
    assert "All resolved" in output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_folder_behind(number: signal.Signals, tmp_path: Path) -> None:
    os.environ["TMPDIR"], before = str(tmp_path), os.environ.get("TMPDIR")
    try:
        demo = start(["--healthy-steps", "100000"])
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
    with demo:
        deadline = time.monotonic() + 60
        while len(started := children(demo.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(started) == 2
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert not any(alive(pid) for pid in started)
    assert not list(tmp_path.glob("vqwatch-demo-*"))
