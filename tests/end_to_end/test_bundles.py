"""Steps that a real link sends as bundles to a real daemon: it reads what it reads of the same steps one by one."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.messages import Memory, codes_of_steps
from tests.servers import wait_for
from tests.watching import Daemon

from vqwatch.backlog import Backlog
from vqwatch.link import Link, Make
from vqwatch.wire import (
    Codes,
    Frame,
    Hello,
    Layer,
    Origin,
    Step,
    Tensor,
    encode,
    encode_step,
    unpacked,
)

TOGETHER = 4
STEPS = 60
LAYERS = tuple(Layer(str(index), "ema", 16, 4, decay=0.9) for index in range(2))
BEGAN_NS = time.time_ns()
CODES = (np.random.default_rng(0).random((STEPS, 2, 3, 40)) ** 2 * 16).astype(np.int16)

LOSSES: dict[str, Callable[[int], float]] = {
    "total": lambda step: 2.0 + math.sin(step),
    "vq": lambda step: 1.0 / (1 + step),
}

OF_THE_MOMENT = (
    "vqwatch_last_message_timestamp_seconds", "vqwatch_message_delay_seconds", "vqwatch_rank_silent_seconds",
    "vqwatch_run_info", "vqwatch_stalled_ratio",
)  # fmt: skip
"""Readings that tell when a message came, or the session that sent it."""


class Telling:
    """One run, told through a link of its own. Gradient norms are NaN, so that each step applied counts once."""

    def __init__(self, daemon: Daemon, run: str) -> None:
        self.run = run
        self.dropped: Counter[str] = Counter()
        self.backlog = Backlog(1000, 1 << 20)
        self._daemon = daemon
        self._origin = Origin(run, 0, f"session of {run}")
        self.link = Link(
            daemon.endpoint, self._origin.session, time.monotonic(), self.dropped, backlog=self.backlog,
            send_bytes=8 << 20,
        )  # fmt: skip
        self.link.introduce(
            lambda seq, first: encode(Hello(self._origin, seq, first, BEGAN_NS, 1, LAYERS)), time.monotonic()
        )
        self.arrive()

    def turn(self) -> bool:
        """Listen to the daemon; return whether all was sent and there is room for more."""
        self.link.turn(time.monotonic())
        return self.link.writable and self.backlog.sent_all

    def arrive(self) -> None:
        """Let everything that must arrive be acknowledged."""

        def arrived() -> bool:
            return self.turn() and self.backlog.acknowledged

        wait_for(arrived, 20.0, f"acknowledgements of {self.run}")

    def step(self, step: int) -> Callable[[int, int], list[Frame]]:
        """Return what makes the message of a step."""
        losses = {name: loss(step) for name, loss in LOSSES.items()}
        time_ns = BEGAN_NS + step * 10_000_000
        return lambda seq, first: encode(Step(self._origin, seq, first, time_ns, step, losses, math.nan))

    def following(self, steps: range) -> Callable[[int, int], list[Frame]]:
        """Return what makes one message of several steps."""
        columns = {name: [loss(step) for step in steps] for name, loss in LOSSES.items()}
        fields = {"losses": columns, "gradient_norm": [math.nan] * len(steps)}
        times = [BEGAN_NS + step * 10_000_000 for step in steps]
        return lambda seq, first: encode_step(self._origin, seq, first, times, list(steps), fields)

    def _codes(self, step: int, data: Frame, seq: int) -> Codes:
        return Codes(self._origin, seq, BEGAN_NS, step, ("0", "1"), Tensor("i16", CODES[step].shape, data))

    def codes(self, step: int, data: Frame) -> Make:
        """Return what makes the message of a step's codes."""
        return lambda seq: unpacked(self._codes(step, data, seq))

    def codes_of(self, steps: range, parts: Sequence[Frame]) -> Make:
        """Return what makes one message of the codes of several steps."""
        return lambda seq: codes_of_steps(
            [self._codes(step, part, seq + at) for at, (step, part) in enumerate(zip(steps, parts, strict=True))]
        )

    def one_by_one(self, steps: range) -> None:
        for step in steps:
            wait_for(self.turn, what="room")
            self.link.must_arrive("step", self.step(step), time.monotonic())
            wait_for(self.turn, what="room")
            assert self.link.best_effort("codes", self.codes(step, CODES[step].data)) == []

    def together(self, steps: range) -> None:
        memory = Memory(CODES[steps.start : steps.stop])
        parts = memory.parts
        arrays = [
            ("codes", self.codes_of(steps[:-1], parts[:-1]), len(steps) - 1),
            ("codes", self.codes(steps[-1], parts[-1]), 1),
        ]
        told = [(self.step(steps[0]), 1), (self.following(steps[1:]), len(steps) - 1)]
        self.link.hold(told)
        self.link.together(arrays, memory, time.monotonic(), len(told))

    def readings(self) -> dict[str, str]:
        """Return the run's samples as Prometheus scrapes them, but those of the moment, without the run's name."""
        label = f'run="{self.run}"'
        return {
            name.replace(label, ""): value
            for name, _, value in (line.rpartition(" ") for line in self._daemon.metrics().splitlines())
            if label in name and not name.startswith(OF_THE_MOMENT)
        }

    def value(self, name: str, **labels: str) -> Any:
        return self._daemon.value(f"vqwatch_{name}", run=self.run, **labels)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, ("--snapshot-seconds", "0.3"), state=True) as started:
        yield started


@pytest.fixture
def tell(daemon: Daemon) -> Iterator[Callable[[str], Telling]]:
    """Begin to tell of a run."""
    with ExitStack() as stack:

        def begin(run: str) -> Telling:
            telling = Telling(daemon, run)
            stack.callback(telling.link.close)
            return telling

        yield begin


def bundles(first: int, last: int) -> list[range]:
    return [range(start, start + TOGETHER) for start in range(first, last, TOGETHER)]


def test_a_bundle_arrives_as_its_steps_and_reads_as_they_do(daemon: Daemon, tell: Callable[[str], Telling]) -> None:
    alone, together = tell("alone"), tell("together")
    for steps in bundles(0, STEPS):
        alone.one_by_one(steps)
        wait_for(together.turn, what="room")
        together.together(steps)
    alone.arrive()
    together.arrive()
    wait_for(lambda: daemon.value("vqwatch_messages_received_total", kind="codes") == 2 * STEPS, 10.0, "all codes")
    wait_for(lambda: together.value("loss_smoothed", component="total") is not None, 10.0, "the losses")
    wait_for(lambda: alone.readings() == together.readings(), 10.0, "the same readings")
    assert together.value("nonfinite_total", source="gradient") == STEPS
    assert together.value("codebook_assignments_total", layer="0") == STEPS * 3 * 40
    assert len(together.readings()) > 60
    assert (alone.dropped, together.dropped) == ({}, {})


def test_of_bundles_no_step_is_lost_or_doubled_by_a_daemon_that_is_killed(
    daemon: Daemon, tell: Callable[[str], Telling]
) -> None:
    killed = tell("killed")
    for count, steps in enumerate(bundles(0, STEPS)):
        if count in (3, 9):
            daemon.kill()  # bundles are in the socket, at the daemon, applied, acknowledged; the next meets nobody
        killed.together(steps)
        if count in (5, 11):
            daemon.__enter__()
            wait_for(killed.turn, what="room")
        killed.turn()
    killed.arrive()
    alone = tell("alone")
    alone.one_by_one(range(STEPS))
    alone.arrive()
    remembered = ("vqwatch_step{", "vqwatch_loss", "vqwatch_nonfinite_total")  # codes may be lost

    def told(telling: Telling) -> dict[str, str]:
        return {name: value for name, value in telling.readings().items() if name.startswith(remembered)}

    wait_for(lambda: alone.value("loss_smoothed", component="total") is not None, 10.0, "the losses")
    wait_for(lambda: told(killed) == told(alone), 10.0, "the same readings")
    assert len(told(killed)) > 8
    assert killed.value("nonfinite_total", source="gradient") == STEPS
    assert killed.value("step") == STEPS - 1
    assert not [key for key in killed.dropped if key.startswith("step:")]
