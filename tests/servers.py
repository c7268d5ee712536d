"""Real Prometheus and Alertmanager on free loopback ports, and a webhook that receives what Alertmanager sends.

Each is a context manager; `conftest.py` makes fixtures of them. Where a server is not installed the test is skipped
with a reason, and fails when ``CI=true`` is set: there it has to be installed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import yaml

T = TypeVar("T")

START_SECONDS = 30.0


def require_server(name: str) -> str:
    """Return the path of an installed program; without it skip the test, or fail it under ``CI=true``."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(f"{reason}, and CI must not skip this")
        pytest.skip(reason)
    return path


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(probe: Callable[[], T], timeout: float = 10.0, what: str = "the condition", pause: float = 0.02) -> T:
    """Return the first truthy value of ``probe``; fail the test when none comes in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout} s for {what}; the last value was {value!r}")
        time.sleep(pause)


def get(url: str, timeout: float = 5.0) -> Any:
    """Return the JSON that a URL serves."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return json.load(response)


@dataclass
class Webhook:
    """A receiver of Alertmanager's notifications. ``received`` holds (monotonic time, payload), in order."""

    received: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.received.append((time.monotonic(), json.loads(body)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="webhook", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where to send notifications."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}/"

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Return every alert received that has these labels, oldest first; one comes again with each notification."""
        return [
            alert
            for _, payload in list(self.received)
            for alert in payload["alerts"]
            if labels.items() <= alert["labels"].items()
        ]

    def wait_for_alert(self, status: str = "firing", timeout: float = 10.0, **labels: str) -> dict[str, Any]:
        """Return the first alert received with this status and these labels."""
        return wait_for(
            lambda: next((alert for alert in self.alerts(**labels) if alert["status"] == status), None),
            timeout,
            f"{status} alert {labels}",
        )


class Server:
    """A server process with a directory and a port of its own, which keeps both over `stop` and `start`."""

    program: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return the arguments after the program's name."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        log = self.directory / "log.txt"
        with log.open("ab") as out:
            self.process = subprocess.Popen([require_server(self.program), *self.command()], stdout=out, stderr=out)
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"{self.program} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1.0) as response:
                return response.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """End the server, politely first."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Stop and start again, with the same port and storage."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Alertmanager(Server):
    """A real Alertmanager that notifies one webhook at once, unless ``config`` says otherwise."""

    program = "prometheus-alertmanager"

    def __init__(self, directory: Path, webhook_url: str, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(directory)
        self.config = config or {
            "route": {
                "receiver": "webhook",
                "group_by": ["alertname", "run"],
                "group_wait": "0s",
                "group_interval": "1s",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook_url, "send_resolved": True}]}],
        }

    def command(self) -> list[str]:
        """Return the arguments: loopback only, no gossip."""
        file = self.directory / "alertmanager.yml"
        file.write_text(yaml.safe_dump(dict(self.config)))
        return [
            f"--config.file={file}",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Return the alerts it holds that have these labels."""
        return [alert for alert in get(f"{self.url}/api/v2/alerts") if labels.items() <= alert["labels"].items()]


class Prometheus(Server):
    """A real Prometheus that scrapes ``targets`` ("host:port") and evaluates ``rule_files``, each second by default."""

    program = "prometheus"

    def __init__(
        self,
        directory: Path,
        targets: Sequence[str],
        *,
        rule_files: Sequence[Path] = (),
        alertmanagers: Sequence[str] = (),
        interval: str = "1s",
        job: str = "vqwatch",
    ) -> None:
        super().__init__(directory)
        self.config: dict[str, Any] = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(file) for file in rule_files],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": list(targets)}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
        }

    def command(self) -> list[str]:
        """Return the arguments: loopback only."""
        file = self.directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(self.config))
        return [
            f"--config.file={file}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query: a list of ``{"metric": labels, "value": [time, text]}``."""
        query = urllib.parse.urlencode({"query": expression})
        answer = get(f"{self.url}/api/v1/query?{query}")
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def wait_for_series(self, expression: str, timeout: float = 15.0) -> list[dict[str, Any]]:
        """Return the series of an instant query as soon as there are any."""
        return wait_for(lambda: self.query(expression), timeout, f"series of {expression}", pause=0.1)
