"""Which alerts a set of rules would have raised on a recording. Deterministic: time is the recording's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vqwatch.wire import Message
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.readings import Readings
from vqwatch_daemon.recording.files import Renumber
from vqwatch_rules import Engine, RuleSet, Transition


@dataclass(frozen=True, slots=True)
class Event:
    """An alert that would have fired: when, and when it would have ended (None: it still fired at the end)."""

    alert: str
    severity: str
    run: str
    labels: tuple[tuple[str, str], ...]
    step: int
    seconds: float
    resolved_step: int | None = None


class _Listener:
    """Collects what fires and when it ends."""

    def __init__(self) -> None:
        self.began = 0.0
        self.events: dict[tuple[tuple[str, str], ...], Event] = {}
        self.ended: list[Event] = []

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        """Do nothing: only alerts are of interest."""

    def usage(self, run: str, step: int, now: float, counts: Mapping[str, NDArray[Any]]) -> None:
        """Do nothing: only alerts are of interest."""

    def transition(self, transition: Transition) -> None:
        alert = transition.alert
        key = tuple(sorted(alert.labels.items()))
        if transition.to == "firing":
            labels = tuple(item for item in key if item[0] not in ("alertname", "severity", "run"))
            seconds = round(transition.now - self.began, 3)
            self.events[key] = Event(alert.name, alert.severity, alert.run, labels, transition.step, seconds)
        elif transition.to == "resolved" and key in self.events:
            event = self.events.pop(key)
            self.ended.append(
                Event(event.alert, event.severity, event.run, event.labels, event.step, event.seconds, transition.step)
            )


def backtest(messages: Iterable[tuple[float, Message]], rules: RuleSet, *, window: int = 100) -> list[Event]:
    """Return what these rules would have raised, in the order in which it would have fired.

    The clock stands still between messages but for one tick a second, as in the daemon.
    """
    hub = Hub(Book("backtest"), Engine(rules), window=window, most_runs=10_000)
    listener = _Listener()
    hub.observers.append(listener)
    renumber = Renumber()
    ticked: float | None = None
    for now, message in messages:
        if ticked is None:
            listener.began = ticked = now
        while now - ticked >= 1.0:
            ticked += 1.0
            hub.tick(ticked)
        changed = renumber(message)
        if changed is not None:
            hub.receive(b"", changed, now)
    if ticked is not None:
        hub.tick(ticked + 1.0)
    events = [*listener.ended, *listener.events.values()]
    return sorted(events, key=lambda event: (event.seconds, event.alert, event.severity, event.labels))
