"""The same training told to Weights & Biases and to vqwatch, while the process beside it is frozen or killed.

Weights & Biases is held to what the installed version does, so that the comparison stays honest: where it gets better,
these tests fail and the sentence in the README has to go.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import pytest
import wandb
from tests.watching import ROOT, Daemon

pytestmark = pytest.mark.alone

SCRIPT = Path(__file__).with_name("logged_training.py")
STEPS, FROZEN, KILLED = 450, 150, 300
WARM_UP = 50
BLOCKED_SECONDS = 3.0
PR_SET_CHILD_SUBREAPER = 36


class Training:
    """The training with a logger; a context manager that ends it and the process beside it."""

    def __init__(self, logger: str, folder: Path, endpoint: str = "") -> None:
        self._log = (folder / f"{logger}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), logger, str(folder), "--steps", str(STEPS)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                 "OMP_NUM_THREADS": "1", "VQWATCH_ENDPOINT": endpoint},
            stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
        )  # fmt: skip
        self._waiting = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._waiting.register(self._output, selectors.EVENT_READ)
        self._rest = b""
        self.service: psutil.Process | None = None
        self.step = 0
        self.result: dict[str, Any] = {}

    def go_on(self, until: int | str, silence: float = 60.0) -> bool:
        """Follow the training to a step or a word; return whether it came there without being silent for so long."""
        while not (self.step >= until if isinstance(until, int) else until == "end" and self.result):
            if not self._waiting.select(silence):
                return False
            more = os.read(self._output.fileno(), 1 << 16)
            if not more:
                return False
            *lines, self._rest = (self._rest + more).split(b"\n")
            for line in lines:
                if self._heard(line.decode()) == until:
                    return True
        return True

    def _heard(self, line: str) -> str:
        if line.startswith("service"):
            self.service = psutil.Process(int(line.split()[1]))
        elif line.startswith("{"):
            self.result = json.loads(line)
        elif line.isdigit():
            self.step = int(line)
        return line

    def finish(self) -> dict[str, Any]:
        """Follow it to its own end; return what it measured. It must not have raised anything."""
        came = self.go_on("end")
        assert came, self.said()
        assert self._process.wait(20.0) == 0, self.said()
        assert "Traceback" not in self.said()
        return self.result

    def fail(self) -> str:
        """Wait until the training has died; return what it said."""
        assert not self.go_on("end")
        assert self._process.wait(20.0) != 0
        return self.said()

    def said(self) -> str:
        """Return what it wrote to its standard error."""
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self.service is not None and self.service.is_running():
            self.service.kill()
            self.service.wait(10.0)
        self._output.close()
        self._waiting.close()
        self._log.close()


@pytest.fixture(scope="module", autouse=True)
def _orphans_are_ours() -> Iterator[None]:
    """What a dead training leaves behind becomes our child, so that we can see it gone."""
    system = ctypes.CDLL(None)
    system.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    system.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the training comes to when nobody is told."""
    with Training("none", tmp_path_factory.mktemp("bare")) as training:
        digest: str = training.finish()["digest"]
        return digest


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the training measured that told vqwatch: its daemon was frozen after a third of it and killed after two."""
    folder = tmp_path_factory.mktemp("watched")
    with Daemon(folder) as daemon, Training("vqwatch", folder, daemon.endpoint) as training:
        assert training.go_on(FROZEN)
        daemon.signal(signal.SIGSTOP)
        try:
            assert training.go_on(KILLED)
        finally:
            daemon.kill()
        return training.finish()


@pytest.mark.parametrize(("fault", "since", "until"), [("frozen", FROZEN, KILLED), ("killed", KILLED, STEPS)])
def test_vqwatch_takes_as_long_as_before_when_its_daemon_is_gone(
    watched: dict[str, Any], fault: str, since: int, until: int
) -> None:
    """Other jobs on the machine make single steps longer by many milliseconds, but not their processor time."""
    for name, allowance in (("of_processor", 0.001), ("seconds", 0.02)):
        before, after = (p99(watched[name][part]) for part in (slice(WARM_UP, FROZEN), slice(since, until)))
        print(f"vqwatch, daemon {fault}: step() {name} p99 {1e3 * before:.2f} ms before, {1e3 * after:.2f} ms after")
        assert after < 1.5 * before + allowance
    assert max(watched["seconds"][since:until]) < BLOCKED_SECONDS / 6


def test_vqwatch_says_what_it_left_out_meanwhile(watched: dict[str, Any]) -> None:
    print(f"vqwatch: left out {watched['dropped']}")
    left_out = sum(watched["dropped"].get(f"reconstruction:{reason}", 0) for reason in ("busy_peer", "no_peer"))
    assert left_out > (STEPS - FROZEN) / 2
    assert not any(key.startswith("step:") for key in watched["dropped"])


def test_vqwatch_changes_nothing_of_what_is_trained(watched: dict[str, Any], bare: str) -> None:
    assert watched["digest"] == bare


def test_wandb_stops_the_training_while_its_service_is_frozen_and_ends_it_when_that_is_killed(tmp_path: Path) -> None:
    with Training("wandb", tmp_path) as training:
        assert training.go_on(FROZEN)
        assert training.service is not None
        training.service.suspend()
        at = training.step
        assert not training.go_on("stepped", silence=BLOCKED_SECONDS), "wandb does not block any more"
        blocked_at = training.step
        training.service.resume()
        assert training.go_on(blocked_at + 1, silence=BLOCKED_SECONDS), "it was not the frozen service that blocked"
        training.service.kill()
        said = training.fail()
    print(f"wandb {wandb.__version__}: frozen at step {at}, the training stood still at {blocked_at} until SIGCONT;"
          f" killed: {said.strip().splitlines()[-1]} in the loop, at step {training.step} of {STEPS}")  # fmt: skip
    assert training.step < STEPS
    assert "in tell" in said
    assert "ConnectionResetError" in said


def p99(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.99))
