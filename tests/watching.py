"""A real daemon and a real training, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.servers import Server, wait_for

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "emitter" / "examples" / "train_documents.py"


class Daemon(Server):
    """``vqwatch daemon`` on a socket of its own; ``options`` are further command-line arguments."""

    program = sys.executable

    def __init__(self, directory: Path, options: Sequence[str] = (), *, state: bool = False) -> None:
        super().__init__(directory)
        # pytest's own directories are deeper than the 107 characters that an ipc path may have.
        self._short = tempfile.TemporaryDirectory(prefix="vqw")
        self.endpoint = f"ipc://{self._short.name}/s"
        self.options = [*options, *(["--state", str(directory / "state")] if state else [])]

    def command(self) -> list[str]:
        """Return the arguments of a daemon that only this test can reach."""
        return ["-m", "vqwatch_daemon.cli", "daemon", "--listen", self.endpoint, "--http", f"127.0.0.1:{self.port}",
                *self.options]  # fmt: skip

    def __exit__(self, *_: object) -> None:
        super().__exit__(*_)
        self._short.cleanup()

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no chance to say goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def get(self, path: str) -> Any:
        """Return the JSON at a path of the API."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=5.0) as answer:
            return json.load(answer)

    def metrics(self) -> str:
        """Return the text that Prometheus scrapes."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5.0) as answer:
            return str(answer.read().decode())

    def value(self, name: str, **labels: str) -> float | None:
        """Return one sample of ``/metrics`` by its name and all of its labels; None when there is none."""
        wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        for line in self.metrics().splitlines():
            if line.startswith(f"{name}{{{wanted}}} " if wanted else f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        return None

    def wait_for_step(self, run: str, step: int, timeout: float = 60.0) -> None:
        """Wait until the run has come as far as ``step``."""
        wait_for(lambda: (self.value("vqwatch_step", run=run) or -1) >= step, timeout, f"step {step} of {run}")

    def alerts(self, state: str = "firing", **labels: str) -> list[dict[str, Any]]:
        """Return the alerts in a state that have these labels."""
        found: list[dict[str, Any]] = self.get("/api/alerts")
        return [
            alert for alert in found
            if alert["state"] == state and all(alert["labels"].get(key) == value for key, value in labels.items())
        ]  # fmt: skip

    def log(self) -> str:
        """Return what the daemon wrote to its log."""
        return (self.directory / "log.txt").read_text(encoding="utf-8")


class TrainingProcess:
    """The example training beside the test; a context manager that ends it."""

    def __init__(self, endpoint: str, run: str, *options: str, **environment: str) -> None:
        self._command = [
            sys.executable,
            str(TRAINING),
            "--run",
            run,
            "--endpoint",
            endpoint,
            "--threads",
            "1",
            *options,
        ]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> TrainingProcess:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def finish(self, timeout: float = 120.0) -> str:
        """Wait for the training's own end and return what it printed; its exit code must be 0."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, output
        return output

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
