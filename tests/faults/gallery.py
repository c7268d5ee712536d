"""Plays faults: real training, the real emitter over ipc, the daemon's receiver, hub and rules; time is simulated.

A seed's healthy training is played once up to :data:`WARM_STEPS`; every fault then goes on from there with a copy of
everything, the daemon's memory included, in an emitter session of its own. Between two steps :data:`STEP_SECONDS` pass,
whatever the machine is doing, so that outcomes depend on seeds alone.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import vqwatch
from vqwatch.wire import Message, Step
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.receiver import Receiver
from vqwatch_rules import Engine, Transition, load

EXAMPLES = Path(__file__).parents[2] / "emitter" / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import documents  # noqa: E402  # needs the path above
import faults as examples_faults  # noqa: E402
import train_documents  # noqa: E402

RUN = "gallery"
WARM_STEPS = 700
STEP_SECONDS = 0.05
TICK_SECONDS = 0.2
START = 1_800_000_000.0
ALARMING = ("warning", "critical")


@dataclass(frozen=True)
class Setting:
    """What a gallery run trains: the quantizer's library, documents per batch and frames per document."""

    quantizer: str = "ema"
    batch_size: int = 16
    length: int = 32


@dataclass(frozen=True)
class Fired:
    """An alert that fired: its name, its severity, and the first training step at which it did."""

    name: str
    severity: str
    step: int


class Daemon:
    """The daemon without its process: receiver, hub and engine, with a clock that the gallery moves."""

    def __init__(self, memory: Hub | None = None, now: float = START) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vqg")
        self.endpoint = f"ipc://{self._folder.name}/s"
        self.now = now
        self._ticked = now
        self.hub = _hub() if memory is None else copy.deepcopy(memory)
        self.transitions: list[Transition] = []
        self.hub.observers = [self]
        self._receiver = Receiver([self.endpoint], take=self._take, count=self.hub.count, reject=self.hub.reject)

    def _take(self, route: bytes, message: Message) -> Any:
        if hasattr(message, "time_ns"):
            message = replace(message, time_ns=int(self.now * 1e9))
        if isinstance(message, Step):
            message = replace(message, overhead=None)  # real time, spent without a budget here
        return self.hub.receive(route, message, self.now)

    def readings(self, *_: object) -> None:
        """Readings are looked at through the hub."""

    usage = readings

    def transition(self, transition: Transition) -> None:
        """Remember what an alert did."""
        self.transitions.append(transition)

    @property
    def step(self) -> int:
        """The latest step that arrived."""
        run = self.hub.runs.get(RUN)
        return -1 if run is None else run.ranks.furthest

    def pump(self) -> None:
        """Take what has arrived, and let rules of time see the clock."""
        while self._receiver.drain():
            pass
        if self.now - self._ticked >= TICK_SECONDS:
            self._ticked = self.now
            self._receiver.send(self.hub.tick(self.now))

    def receive(self, seconds: float) -> None:
        """Wait for a message, at most so many real seconds."""
        self._receiver.wait(seconds)
        self.pump()

    def catch_up(self, step: int, patience_seconds: float = 30.0) -> None:
        """Wait until this step has arrived: libzmq's thread needs its turn."""
        deadline = time.monotonic() + patience_seconds
        while self.step < step and time.monotonic() < deadline:
            self.receive(0.01)

    def wait(self, seconds: float) -> None:
        """Let simulated time pass while nobody trains."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            self.pump()

    def fired(self) -> list[Fired]:
        """Return the warnings and criticals of the run that fired, each name and severity once."""
        found: dict[tuple[str, str], Fired] = {}
        for transition in self.transitions:
            alert = transition.alert
            if transition.to == "firing" and alert.severity in ALARMING and alert.run == RUN:
                found.setdefault((alert.name, alert.severity), Fired(alert.name, alert.severity, transition.step))
        return list(found.values())

    def firing(self) -> set[str]:
        """Return the names of the warnings and criticals that fire now."""
        return {a.name for a in self.hub.alerts() if a.state == "firing" and a.severity in ALARMING and a.run == RUN}

    def close(self) -> None:
        """Release the socket."""
        self._receiver.close()
        self._folder.cleanup()


def _hub() -> Hub:
    return Hub(Book("gallery"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))


@cache
def corpus() -> documents.Corpus:
    """Return the training documents, read once."""
    return documents.load()[0]


class Trainer:
    """The example's loop, one step at a time."""

    def __init__(self, setting: Setting, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = train_documents.build_model(setting.quantizer, setting.length)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, train_documents.falling)
        self.batches = documents.batches(corpus(), setting.batch_size, setting.length, seed)
        self.step = 0

    def train(self, watch: vqwatch.Emitter) -> None:
        """Make one step."""
        features, mask = next(self.batches)
        reconstruction, codes, losses = self.model(features, mask)
        self.optimizer.zero_grad()
        losses["total"].backward()
        norm = clip_grad_norm_(self.model.parameters(), 1.0)
        if norm.isfinite():
            self.optimizer.step()
        self.schedule.step()
        watch.step(
            self.step, losses=losses, codes=codes, original=features, reconstructed=reconstruction, mask=mask,
            grad_norm=norm,
        )  # fmt: skip
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return {**states, "step": self.step, "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        for _ in islice(self.batches, state["step"]):
            pass
        self.step = state["step"]
        torch.set_rng_state(state["random"])


@dataclass(frozen=True)
class Warm:
    """A healthy training so far: the trainer's state, the daemon's memory and clock, and false alarms on the way."""

    setting: Setting
    seed: int
    trainer: dict[str, Any]
    memory: Hub
    now: float
    fired: list[Fired]
    readings: dict[str, Any]


@dataclass
class Outcome:
    """What a fault led to: what fired with steps counted from its begin, what still fires, some readings."""

    fault: str
    setting: Setting
    seed: int
    fired: list[Fired] = field(default_factory=list)
    unresolved: set[str] = field(default_factory=set)


def attach(trainer: Trainer, daemon: Daemon) -> vqwatch.Emitter:
    """Return an emitter that looks as often as the example's, whatever it costs on this machine."""
    return vqwatch.attach(
        trainer.model, trainer.optimizer, run=RUN, rank=0, world_size=1, endpoint=daemon.endpoint,
        every=train_documents.LOOK_EVERY, budget=float("inf"),
    )  # fmt: skip


def play(trainer: Trainer, watch: vqwatch.Emitter, daemon: Daemon, steps: int) -> None:
    """Train for so many steps while the daemon listens."""
    for _ in range(steps):
        trainer.train(watch)
        daemon.now += STEP_SECONDS
        daemon.pump()
        if trainer.step % 10 == 0:
            daemon.catch_up(trainer.step - 5)


def leave(trainer: Trainer, watch: vqwatch.Emitter, daemon: Daemon) -> None:
    """Let everything arrive, then end the session."""
    watch.close(timeout=0.05)
    daemon.catch_up(trainer.step - 1, 1.0)


def warm_up(setting: Setting, seed: int, steps: int = WARM_STEPS) -> Warm:
    """Train healthily from the first step."""
    trainer = Trainer(setting, seed)
    daemon = Daemon()
    try:
        watch = attach(trainer, daemon)
        daemon.pump()
        play(trainer, watch, daemon, steps)
        readings = copy.deepcopy(daemon.hub.runs[RUN].readings)
        leave(trainer, watch, daemon)
        daemon.hub.observers = []
        return Warm(setting, seed, trainer.state(), daemon.hub, daemon.now, daemon.fired(), readings)
    finally:
        daemon.close()


@contextmanager
def _resumed(warm: Warm) -> Iterator[tuple[Trainer, Daemon]]:
    trainer = Trainer(warm.setting, warm.seed)
    trainer.restore(warm.trainer)
    daemon = Daemon(warm.memory, warm.now)
    try:
        yield trainer, daemon
    finally:
        daemon.close()


SETTLE_STEPS = 10
"""Steps between the resumption and the fault, so that the new session has been heard."""


def perform(warm: Warm, fault: str, lasts: int, recovers: int = 0, *, from_start: bool = False) -> Outcome:
    """Put a fault in for ``lasts`` steps after the warm-up, then train on for ``recovers`` steps without it.

    A fault ``from_start`` is there when the emitter attaches: a setting that the resumed run has wrong.
    """
    outcome = Outcome(fault, warm.setting, warm.seed)
    with _resumed(warm) as (trainer, daemon):
        site = examples_faults.Site(trainer.model, trainer.optimizer)
        fault_context = nullcontext() if fault == "none" else examples_faults.CATALOGUE[fault](site)
        with ExitStack() as stack:
            if from_start:
                stack.enter_context(fault_context)
            watch = attach(trainer, daemon)
            if not from_start:
                play(trainer, watch, daemon, SETTLE_STEPS)
                stack.enter_context(fault_context)
            began = trainer.step
            play(trainer, watch, daemon, lasts)
        play(trainer, watch, daemon, recovers)
        daemon.catch_up(trainer.step - 2)
        outcome.fired = [replace(one, step=one.step - began) for one in daemon.fired()]
        outcome.unresolved = daemon.firing()
        leave(trainer, watch, daemon)
    return outcome


def stand_still(warm: Warm, seconds: float) -> Outcome:
    """Let the loop hang for so many simulated seconds, then train on."""
    outcome = Outcome("stall", warm.setting, warm.seed)
    with _resumed(warm) as (trainer, daemon):
        watch = attach(trainer, daemon)
        play(trainer, watch, daemon, 30)
        daemon.catch_up(trainer.step - 2)
        daemon.wait(seconds)
        outcome.fired = [replace(one, step=0) for one in daemon.fired()]
        play(trainer, watch, daemon, 60)
        outcome.unresolved = daemon.firing()
        leave(trainer, watch, daemon)
    return outcome
