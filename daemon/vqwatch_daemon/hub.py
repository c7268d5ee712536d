"""All runs together: judges what arrives, hands it to its run, and shows rules and observers what changed.

Knows no socket and no clock; one thread at a time may be inside (app.py holds the lock).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from vqwatch.wire import Ack, Hello, Layer, Stop, Welcome
from vqwatch.wire import Message as AnyMessage
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.exposition import Snapshot
from vqwatch_daemon.readings import Labels, Readings, copy
from vqwatch_daemon.run import Run, Update
from vqwatch_daemon.sections.refused import Refused
from vqwatch_rules import Alert, Engine, LayerFacts, RunFacts, Transition

_log = logging.getLogger(__name__)

Reply = tuple[bytes, Welcome | Ack | Stop]

DAEMON: Final = ""
"""The run under which the daemon's own readings meet the rules."""

USAGE_EVERY_SECONDS: Final = 10.0


class Observer(Protocol):
    """Somebody who is shown everything that happens, and must never wait: history, exports."""

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        """Readings of one step changed together."""
        ...

    def usage(self, run: str, step: int, now: float, counts: Mapping[str, NDArray[Any]]) -> None:
        """How often each code was used, by layer; every few seconds."""
        ...

    def transition(self, transition: Transition) -> None:
        """An alert changed its state."""
        ...


class Hub:
    """The daemon's memory. ``window`` is the usage window in steps, ``runs`` at most this many at once."""

    def __init__(
        self,
        book: Book,
        engine: Engine,
        *,
        window: int = 100,
        most_runs: int = 64,
        retention_seconds: float = 3600.0,
        allow_stop: bool = False,
        build: Mapping[Labels, float] | None = None,
    ) -> None:
        self.book = book
        self.engine = engine
        self.observers: list[Observer] = []
        self.transitions = 0
        self.alert_counts: Callable[[], Readings] = dict
        self._window = window
        self._most_runs = most_runs
        self._retention = retention_seconds
        self._allow_stop = allow_stop
        self._build = dict(build or {})
        self._runs: dict[str, Run] = {}
        self._received: dict[str, tuple[int, float]] = {}
        self._rejected: dict[str, int] = {}
        self._dropped_runs = 0
        self._usage_at: dict[str, float] = {}
        self._logged: set[tuple[str, str]] = set()

    # --- messages in ---------------------------------------------------------------------------------------------

    def receive(self, route: bytes, message: AnyMessage, now: float) -> list[Reply]:
        """Take one readable message; return what to answer, and to whom."""
        verdict = self.book.receive(route, message)
        replies: list[Reply] = [(route, reply) for reply in verdict.replies]
        if isinstance(message, (Welcome, Ack, Stop)):
            self.reject(verdict.refused)
            return replies
        run = self._runs.get(message.origin.run)
        if run is not None:
            run.heard(message.origin.rank, now, verdict.lost)
        if not verdict.apply:
            self.reject(verdict.refused)
            return replies
        if run is None:
            run = self._open(message, now)
            if run is None:
                return replies
        return replies + self._apply(run, message, now)

    def _apply(self, run: Run, message: AnyMessage, now: float) -> list[Reply]:
        try:
            updates = run.apply(message, now)
        except Refused as refusal:
            self.reject(refusal.reason, run.name, str(refusal))
            return []
        except Exception:  # one message must not end the daemon; it is counted, logged and left out
            _log.exception("run %s: a %s message could not be applied", run.name, message.kind)
            self.reject("internal_error")
            return []
        if isinstance(message, Hello):
            self._describe(run)
        return self._tell(run, updates, now)

    def _open(self, message: AnyMessage, now: float) -> Run | None:
        assert isinstance(message, Hello)  # the book lets nothing else through for a session it does not know
        name = message.origin.run
        if len(self._runs) >= self._most_runs and not self._make_room(now):
            self._dropped_runs += 1
            self.reject("too_many_runs", name, f"run {name!r} is not watched: {self._most_runs} runs are")
            return None
        run = self._runs[name] = Run(name, self._window, now)
        return run

    def _make_room(self, now: float) -> bool:
        ended = [run for run in self._runs.values() if run.ranks.state_name(now) != "live"]
        if not ended:
            return False
        self.forget(min(ended, key=lambda run: run.ranks.seen_at).name)
        return True

    def _describe(self, run: Run) -> None:
        layers = {layer.name: _facts(layer) for layer in run.layers}
        for problem in self.engine.describe(run.name, RunFacts(run.ranks.world_size, layers)):
            _log.warning("run %s: %s", run.name, problem)

    def reject(self, reason: str, run: str = "", detail: str = "") -> None:
        """Count something that was not taken; say it once for each run."""
        self._rejected[reason] = self._rejected.get(reason, 0) + 1
        if detail and (run, reason) not in self._logged:
            self._logged.add((run, reason))
            _log.warning("run %s: %s (further ones are counted, not logged)", run, detail)

    def count(self, kind: str, seconds: float) -> None:
        """Note that a message of a kind was worked on for so long."""
        count, total = self._received.get(kind, (0, 0.0))
        self._received[kind] = (count + 1, total + seconds)

    # --- changes out ---------------------------------------------------------------------------------------------

    def _tell(self, run: Run, updates: Sequence[Update], now: float) -> list[Reply]:
        replies: list[Reply] = []
        for update in updates:
            for observer in self.observers:
                observer.readings(run.name, update.step, now, update.readings)
            transitions = self.engine.observe(run.name, update.step, now, update.readings)
            replies += self._announce(transitions)
        if updates and now - self._usage_at.get(run.name, 0.0) >= USAGE_EVERY_SECONDS:
            self._usage_at[run.name] = now
            usage = run.usage()
            if usage:
                for observer in self.observers:
                    observer.usage(run.name, updates[-1].step, now, usage)
        return replies

    def _announce(self, transitions: Sequence[Transition]) -> list[Reply]:
        replies: list[Reply] = []
        self.transitions += len(transitions)
        for transition in transitions:
            alert = transition.alert
            level = logging.WARNING if transition.to == "firing" and alert.severity != "info" else logging.INFO
            if transition.to in ("firing", "resolved"):
                labels = {key: value for key, value in alert.labels.items() if key not in ("alertname", "severity")}
                _log.log(level, "%s %s %s at step %d: %s", alert.severity, alert.name, transition.to, transition.step,
                         alert.annotations.get("summary", ""), extra={"labels": labels})  # fmt: skip
            for observer in self.observers:
                observer.transition(transition)
            if transition.to == "firing" and alert.action == "stop" and self._allow_stop:
                replies += [
                    (route, Stop(session, f"{alert.name}: {alert.annotations.get('summary', '')}"[:512]))
                    for route, session in self.book.routes(alert.run)
                ]
        return replies

    def tick(self, now: float) -> list[Reply]:
        """Let time pass: silence, overdue steps, rules of time, and the end of runs nobody hears of any more."""
        replies: list[Reply] = [*self.book.due()]
        self.book.ask_again()
        for run in list(self._runs.values()):
            replies += self._tell(run, run.tick(now), now)
            if run.ranks.state_name(now) != "live" and now - run.ranks.seen_at > self._retention:
                self.forget(run.name)
        replies += self._announce(self.engine.observe(DAEMON, 0, now, self.own_readings()))
        replies += self._announce(self.engine.tick(now))
        return replies

    def forget(self, name: str) -> None:
        """Release a run: its series, its memory, its alerts (those that fire are resolved)."""
        self._runs.pop(name, None)
        self._usage_at.pop(name, None)
        self._logged = {key for key in self._logged if key[0] != name}
        self.book.forget(name)
        self._announce(self.engine.forget(name))

    # --- what is seen from outside ----------------------------------------------------------------------------------

    @property
    def runs(self) -> Mapping[str, Run]:
        """The runs held, by name."""
        return self._runs

    def own_readings(self) -> Readings:
        """Return what the daemon says of itself."""
        readings: Readings = {
            "build_info": dict(self._build),
            "runs": {(): float(len(self._runs))},
            "dropped_runs_total": {(): float(self._dropped_runs)},
            "messages_received_total": {(kind,): float(count) for kind, (count, _) in self._received.items()},
            "messages_rejected_total": {(reason,): float(count) for reason, count in self._rejected.items()},
            "rule_errors_total": {(rule,): float(count) for rule, count in self.engine.rule_errors.items()},
        }
        readings.update(self.alert_counts())
        return readings

    def snapshot(self) -> Snapshot:
        """Return everything that is exported, as it is now."""
        runs = {name: copy(run.readings) for name, run in self._runs.items()}
        for alert in self.engine.alerts():
            if alert.state == "firing" and alert.run in runs:
                series = runs[alert.run].setdefault("alerts_firing", {})
                key = (alert.name, alert.severity)
                series[key] = series.get(key, 0.0) + 1
        summaries = {"message_processing_seconds": {(kind,): value for kind, value in self._received.items()}}
        return Snapshot(runs, self.own_readings(), summaries)

    def alerts(self) -> list[Alert]:
        """Return the alerts that are pending, firing or were resolved lately."""
        return list(self.engine.alerts())


def _facts(layer: Layer) -> LayerFacts:
    return LayerFacts(layer.kind, layer.size, layer.dim, layer.decay, layer.threshold, layer.threshold_ratio)
