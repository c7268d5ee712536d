"""The daemon without its process: receiver, hub and engine, with a clock that the gallery moves."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vqwatch.wire import Message, Step
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.receiver import Receiver
from vqwatch_rules import Alert, Engine, Transition, load

RUN = "gallery"
TICK_SECONDS = 0.2
START = 1_800_000_000.0
ALARMING = ("warning", "critical")


class Teller(Protocol):
    """Who passes on what fires."""

    def fires(self, alert: Alert, said_at: float) -> None:
        """An alert begins to fire by what was said at ``said_at``, real Unix time."""
        ...

    def update(self, alerts: Sequence[Alert]) -> None:
        """All alerts as they are now: something about them has changed."""
        ...


class Nobody:
    """Passes nothing on."""

    def fires(self, alert: Alert, said_at: float) -> None:
        """Do nothing."""

    def update(self, alerts: Sequence[Alert]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Fired:
    """An alert that fired: its name, its severity, the first training step at which it did, and when (simulated)."""

    name: str
    severity: str
    step: int
    now: float = 0.0


class Daemon:
    """Takes messages over ipc and judges them; whoever is the ``teller`` learns of alerts as Alertmanagers do.

    Steps happened when :attr:`times` says, by their numbers, and else when they arrive: a busy machine delays messages,
    and must not make a training look slow.
    """

    def __init__(self, memory: Hub | None = None, now: float = START, teller: Teller | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vqg")
        self.endpoint = f"ipc://{self._folder.name}/s"
        self.now = now
        self.times: dict[int, float] = {}
        self._ticked = now
        self._said_at = 0.0
        self._teller = teller or Nobody()
        self._told = 0
        self.hub = _hub() if memory is None else copy.deepcopy(memory)
        self.transitions: list[Transition] = []
        self.hub.observers = [self]
        self._receiver = Receiver([self.endpoint], take=self._take, count=self.hub.count, reject=self.hub.reject)

    def _take(self, route: bytes, message: Message) -> Any:
        if hasattr(message, "time_ns"):
            self._said_at = message.time_ns / 1e9
            happened = self.times.get(getattr(message, "step", -1), self.now)
            message = replace(message, time_ns=int(happened * 1e9))
        if isinstance(message, Step):
            message = replace(message, overhead=None)  # real time, spent without a budget here
        return self.hub.receive(route, message, self.now)

    def readings(self, *_: object) -> None:
        """Readings are looked at through the hub."""

    usage = readings

    def transition(self, transition: Transition) -> None:
        """Remember what an alert did."""
        self.transitions.append(transition)
        if transition.to == "firing":
            self._teller.fires(transition.alert, self._said_at)

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
            self._said_at = time.time()
            self._receiver.send(self.hub.tick(self.now))
        if self._told != self.hub.transitions:
            self._told = self.hub.transitions
            self._teller.update(self.hub.alerts())

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
        """Return the warnings and criticals that fired, the run's and the daemon's, each name and severity once."""
        found: dict[tuple[str, str], Fired] = {}
        for transition in self.transitions:
            alert = transition.alert
            if transition.to == "firing" and alert.severity in ALARMING:
                one = Fired(alert.name, alert.severity, transition.step, transition.now)
                found.setdefault((alert.name, alert.severity), one)
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
