"""A real daemon with sinks: frozen and killed ones leave its answers, its alerts and its exit as they were."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from tests.daemon.sinks.conftest import wait_until
from tests.messages import Trainer
from tests.watching import Daemon

from vqwatch.wire import Ack, Evaluation, decode, encode
from vqwatch_daemon.sinks.outlet import _descendants

pytestmark = pytest.mark.alone


class Peer:
    """A trainer with a socket, which waits for the answer to each message."""

    def __init__(self, endpoint: str) -> None:
        self.trainer = Trainer(run="demo")
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.step = 0
        self.ask(self.trainer.hello())

    def ask(self, message: object) -> float:
        """Send a message and wait until it is acknowledged; return the seconds that this took."""
        started = time.perf_counter()
        self.socket.send_multipart(encode(message))  # type: ignore[arg-type]
        while True:
            assert self.socket.poll(20_000), "no answer"
            answer = decode(self.socket.recv_multipart())
            if isinstance(answer, Ack) and answer.seq >= self.trainer.seq:
                return time.perf_counter() - started

    def p99(self, count: int = 300, loss: float = 1.0) -> float:
        """Make steps and return the 99th percentile of the seconds until the daemon has one and what follows it."""
        seconds = []
        for _ in range(count):
            self.step += 1
            self.socket.send_multipart(encode(self.trainer.step(self.step, time.time(), losses={"total": loss})))
            numbered = self.trainer._next()
            seconds.append(self.ask(Evaluation(**numbered, time_ns=0, step=0, phase="begin")))
        return float(np.percentile(seconds, 99))


@contextmanager
def peer(endpoint: str) -> Iterator[Peer]:
    found = Peer(endpoint)
    try:
        yield found
    finally:
        found.socket.close()


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
def test_sinks_that_are_struck_leave_the_daemon_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    jsonl = tmp_path / "out.jsonl"
    options = ["--wandb", "project", "--tensorboard", str(tmp_path / "board"), "--jsonl", str(jsonl),
               "--sink-interval-seconds", "0"]  # fmt: skip
    with Daemon(tmp_path / "daemon", options) as daemon, peer(daemon.endpoint) as trainer:
        quiet = trainer.p99(count=50)
        for sink in ("wandb", "tensorboard", "jsonl"):
            wait_until(lambda sink=sink: daemon.value("vqwatch_sink_written_total", sink=sink))  # type: ignore[misc]
        quiet = max(quiet, trainer.p99())
        assert daemon.process is not None
        struck = _descendants(daemon.process.pid)
        assert len(struck) >= 4, "three sinks, and wandb's service"
        for pid in struck:
            os.kill(pid, blow)
        while_struck = trainer.p99()
        trainer.p99(count=10, loss=float("nan"))
        wait_until(lambda: daemon.alerts(alertname="VqLossNotFinite"), 5.0)
        print(f"{blow.name}: p99 {quiet * 1e3:.2f} ms before, {while_struck * 1e3:.2f} ms struck")
        assert while_struck < max(3 * quiet, 0.05)
        if blow == signal.SIGKILL:
            wait_until(lambda: any('"alert"' in line for line in jsonl.read_text().splitlines()))
            steps = {json.loads(line)["step"] for line in jsonl.read_text().splitlines()}
            assert set(range(1, trainer.step)) <= steps
            assert (daemon.value("vqwatch_sink_failures_total", sink="jsonl") or 0) >= 1
        started = time.monotonic()
        daemon.process.terminate()
        assert daemon.process.wait(20.0) == 0
        assert time.monotonic() - started < 12.0
