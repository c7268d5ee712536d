"""Faults that need processes of their own: ranks that train together, a trainer that is killed.

The training is the example's script; the daemon is the gallery's, here in the test's process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from tests.faults.gallery import EXAMPLES, Outcome, Setting
from tests.faults.listening import RUN, Daemon, Teller

ATTEMPTS = 3
"""Another process may take the port on which the ranks wanted to meet."""


def two_ranks(
    fault: str,
    ranks: Sequence[int],
    seed: int,
    must: Collection[str],
    teller: Teller | None = None,
    *,
    begins: int = 40,
    steps: int = 200,
) -> Outcome:
    """Train in two processes that average gradients and codebooks; put a fault into these ``ranks``.

    Ends when everything that must fire has. Simulated time runs with the real one; where one rank falls silent, a step
    takes a second afterwards. Raises RuntimeError when the ranks never came as far as the fault.
    """
    for _ in range(ATTEMPTS):
        outcome, came_to = _two_ranks(fault, ranks, seed, must, teller, begins, steps)
        if came_to >= begins:
            return outcome
    raise RuntimeError(f"{fault}, seed {seed}: the ranks ended at step {came_to}, before the fault")


def _two_ranks(
    fault: str,
    ranks: Sequence[int],
    seed: int,
    must: Collection[str],
    teller: Teller | None,
    begins: int,
    steps: int,
) -> tuple[Outcome, int]:
    outcome = Outcome(fault, Setting(), seed)
    daemon = Daemon(teller=teller)
    with ExitStack() as stack:
        stack.callback(daemon.close)
        port = _free_port()
        trainers = [
            stack.enter_context(
                _process(daemon, outcome.setting, seed, steps, {fault: begins} if rank in ranks else {}, rank, port)
            )
            for rank in (0, 1)
        ]
        since = _listen(
            daemon,
            lambda: (
                any(trainer.poll() is None for trainer in trainers)
                and not set(must) <= {one.name for one in daemon.fired()}
            ),
            begins,
            slow_from=begins + 5 if len(ranks) == 1 else steps,
        )
        outcome.fired = [replace(one, step=one.step - begins, now=one.now - since) for one in daemon.fired()]
    return outcome, daemon.step


def killed(seed: int, teller: Teller | None = None, *, at: int = 60, seconds: float = 330.0) -> Outcome:
    """Kill a training process and wait so many simulated seconds."""
    outcome = Outcome("kill", Setting(), seed)
    daemon = Daemon(teller=teller)
    with ExitStack() as stack:
        stack.callback(daemon.close)
        trainer = stack.enter_context(_process(daemon, outcome.setting, seed, at + 50, {"kill": at}))
        since = _listen(daemon, lambda: trainer.poll() is None, at - 1)
        daemon.wait(seconds)
        outcome.fired = [replace(one, step=one.step - at, now=one.now - since) for one in daemon.fired()]
    return outcome


def _listen(daemon: Daemon, going: Callable[[], bool], begins: int, slow_from: int = sys.maxsize) -> float:
    """Listen as long as it is going on; return the time at which the step came in which the fault began."""
    then, step, since = time.monotonic(), slow_from, daemon.now
    while going():
        daemon.receive(0.02)
        now = time.monotonic()
        daemon.now += now - then + max(0, daemon.step - step)
        then, step = now, max(step, daemon.step)
        if daemon.step < begins:
            since = daemon.now
    return since


@contextmanager
def _process(
    daemon: Daemon, setting: Setting, seed: int, steps: int, faults: dict[str, int], rank: int = 0, port: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, str(EXAMPLES / "train_documents.py"), "--run", RUN, "--endpoint", daemon.endpoint,
        "--steps", str(steps), "--seed", str(seed), "--budget", "inf", "--quantizer", setting.quantizer,
        "--batch-size", str(setting.batch_size), "--length", str(setting.length),
        *(f"--fault={name}@{step}" for name, step in faults.items()),
    ]  # fmt: skip
    group = (
        {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        if port
        else {}
    )
    quiet = subprocess.DEVNULL  # the rank that is left complains when the other one ends
    process = subprocess.Popen(command, env={**os.environ, **group}, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
