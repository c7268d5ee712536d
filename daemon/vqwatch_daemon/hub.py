"""All runs together: judges what arrives, hands it to its run, and shows rules and observers what changed.

Knows no socket and no clock; one thread at a time may be inside (app.py holds the lock).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from vqwatch.wire import (
    MUST_ARRIVE,
    Ack,
    Codebooks,
    Codes,
    Hello,
    Layer,
    Reconstruction,
    Stop,
    Welcome,
    WireError,
    decode,
)  # fmt: skip
from vqwatch.wire import Message as AnyMessage
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.exposition import Snapshot
from vqwatch_daemon.journal import Record
from vqwatch_daemon.per_code import PerCode
from vqwatch_daemon.readings import Labels, Readings, copy
from vqwatch_daemon.run import Run, Update
from vqwatch_daemon.sections.refused import Refused
from vqwatch_daemon.shedding import Shedder
from vqwatch_rules import Alert, Engine, LayerFacts, RunFacts, Transition

_log = logging.getLogger(__name__)

Reply = tuple[bytes, Welcome | Ack | Stop]
BestEffort = (Codes, Codebooks, Reconstruction)

DAEMON: Final = ""
"""The run under which the daemon's own readings meet the rules."""

USAGE_EVERY_SECONDS: Final = 10.0
MOST_RANKS: Final = 8192
"""Ranks of one run that are told apart."""

LAST_WORDS_SECONDS: Final = 5.0
"""How long after the goodbyes the last steps are still judged as they come together."""

TOLD_SECONDS: Final = 360.0
"""How long after the goodbyes the alerts of a run go on. Longer than Alertmanager's default ``group_interval`` of five
minutes: what ends before a group is notified is never told to anybody, and a NaN often ends the run itself."""

MOST_LOGGED: Final = 1000
"""Different complaints about runs that are logged; more are counted only."""


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


class Keeping(Protocol):
    """Somebody who writes down what happens, before it happens, so that it outlives the daemon."""

    @property
    def safe(self) -> bool:
        """Whether everything noted so far outlives the daemon; nothing is acknowledged while it does not."""
        ...

    def note(self, message: AnyMessage, now: float) -> None:
        """A must-arrive message is about to be applied."""
        ...

    def tick(self, now: float) -> None:
        """Time is about to pass."""
        ...

    def absent(self, now: float, seconds: float) -> None:
        """No daemon was there for so long."""
        ...


class Forgetful:
    """Keeps nothing: an acknowledgement then means that a message was applied."""

    safe = True

    def note(self, message: AnyMessage, now: float) -> None:
        """Do nothing."""

    def tick(self, now: float) -> None:
        """Do nothing."""

    def absent(self, now: float, seconds: float) -> None:
        """Do nothing."""


class Hub:
    """The daemon's memory. ``window`` is the usage window in steps, ``most_runs`` are held at once.

    Codes have series of their own as far as ``per_code_series`` goes. ``shedder`` is told of backlogs from outside.
    """

    def __init__(
        self,
        book: Book,
        engine: Engine,
        *,
        window: int = 100,
        most_runs: int = 64,
        retention_seconds: float = 3600.0,
        allow_stop: bool = False,
        per_code_series: int = 0,
        build: Mapping[Labels, float] | None = None,
    ) -> None:
        self.book = book
        self.engine = engine
        self.observers: list[Observer] = []
        self.keeper: Keeping = Forgetful()
        self._was_safe = True
        self._replaying = False
        self.transitions = 0
        self.outside: Callable[[], Readings] = dict
        self._window = window
        self._most_runs = most_runs
        self._retention = retention_seconds
        self._allow_stop = allow_stop
        self._build = dict(build or {})
        self._per_code = PerCode(per_code_series)
        self.shedder = Shedder()
        self._runs: dict[str, Run] = {}
        self._received: dict[str, tuple[int, float]] = {}
        self._rejected: dict[str, int] = {}
        self._dropped_runs = 0
        self._usage_at: dict[str, float] = {}
        self._logged: set[tuple[str, str]] = set()

    # --- messages in ---------------------------------------------------------------------------------------------

    def receive(self, route: bytes, message: AnyMessage, now: float) -> list[Reply]:
        """Take one readable message; return what to answer, and to whom."""
        if isinstance(message, (Welcome, Ack, Stop)):
            self.reject("direction")
            return []
        run = self._runs.get(message.origin.run)
        if run is None and len(self._runs) >= self._most_runs and not self._make_room(now):
            self._refuse_run(message)
            return []
        if run is not None and message.origin.rank not in run.ranks and len(run.ranks.numbers) >= MOST_RANKS:
            self.reject("too_many_ranks", run.name, f"rank {message.origin.rank} is not watched: {MOST_RANKS} are")
            return []
        verdict = self.book.receive(route, message)
        if verdict.apply and message.kind in MUST_ARRIVE:
            self.keeper.note(message, now)
        safe = self.keeper.safe
        replies: list[Reply] = [(route, reply) for reply in verdict.replies if safe or not isinstance(reply, Ack)]
        if run is not None:
            run.heard(message.origin.rank, now, verdict.lost)
        if not verdict.apply:
            self.reject(verdict.refused)
            return replies
        if run is not None and isinstance(message, BestEffort) and not self.shedder.takes(message.step):
            run.ranks.shed(message.origin.rank)
            return replies
        if run is None:  # the book lets nothing but a hello through for a session it does not know
            run = self._runs[message.origin.run] = Run(message.origin.run, self._window, now)
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

    def _refuse_run(self, message: Any) -> None:
        name = message.origin.run
        self._dropped_runs += isinstance(message, Hello)
        self.reject("too_many_runs", name, f"run {name!r} is not watched: {self._most_runs} runs are")

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
        if detail and (run, reason) not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add((run, reason))
            _log.warning("run %s: %s (further ones are counted, not logged)", run, detail)

    def count(self, kind: str, seconds: float) -> None:
        """Note that a message of a kind was worked on for so long."""
        count, total = self._received.get(kind, (0, 0.0))
        self._received[kind] = (count + 1, total + seconds)

    # --- changes out ---------------------------------------------------------------------------------------------

    def _tell(self, run: Run, updates: Sequence[Update], now: float, *, judged: bool = True) -> list[Reply]:
        replies: list[Reply] = []
        for update in updates:
            for observer in self.observers:
                observer.readings(run.name, update.step, now, update.readings)
            if judged:
                replies += self._announce(self.engine.observe(run.name, update.step, now, update.readings))
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
            if transition.to in ("firing", "resolved") and not self._replaying:
                labels = {key: value for key, value in alert.labels.items() if key not in ("alertname", "severity")}
                why = f" ({transition.reason})" if transition.reason else ""
                summary = alert.annotations.get("summary", "")
                _log.log(level, "%s %s %s at step %d%s: %s", alert.severity, alert.name, transition.to,
                         transition.step, why, summary, extra={"labels": labels})  # fmt: skip
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
        self.keeper.tick(now)
        replies = self._owed()
        self.book.ask_again()
        for run in list(self._runs.values()):
            ended = run.ranks.ended_for(now)
            over = ended is not None and ended > LAST_WORDS_SECONDS
            replies += self._tell(run, run.tick(now), now, judged=not over)
            self.engine.presence(run.name, "finished" if over else "gone" if run.ranks.are_gone(now) else "live")
            if ended is not None and ended > TOLD_SECONDS:
                replies += self._announce(
                    self.engine.finish(run.name, now - ended + LAST_WORDS_SECONDS, "the run has ended")
                )
            if run.ranks.state_name(now) != "live" and now - run.ranks.seen_at > self._retention:
                self.forget(run.name)
        replies += self._announce(self.engine.observe(DAEMON, 0, now, self.own_readings()))
        replies += self._announce(self.engine.tick(now))
        return replies

    def _owed(self) -> list[Reply]:
        """Return the acknowledgements that wait, none while what they would promise is not written down."""
        safe = self.keeper.safe
        if safe and not self._was_safe:
            self.book.owe_all()
        self._was_safe = safe
        return [*self.book.due()] if safe else []

    def forget(self, name: str) -> None:
        """Release a run: its series, its memory, its alerts (those that fire are resolved)."""
        self._runs.pop(name, None)
        self._usage_at.pop(name, None)
        self._logged = {key for key in self._logged if key[0] != name}
        self.book.forget(name)
        self._announce(self.engine.forget(name, "nothing is heard of the run any more"))

    # --- outliving the daemon -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that a restarted daemon needs to go on exactly here, numbers, texts and arrays.

        It is written down by a thread while the hub goes on, so nothing in it is what the hub itself changes later.
        """
        return {
            "runs": {name: run.state() for name, run in self._runs.items()},
            "book": self.book.state(),
            "engine": self.engine.state(),
            "received": dict(self._received),
            "rejected": dict(self._rejected),
            "dropped_runs": self._dropped_runs,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned, before the first message.

        Raises KeyError, TypeError, ValueError or IndexError on what :meth:`state` never wrote; nothing is changed then.
        """
        runs = {}
        for name, raw in state["runs"].items():
            runs[name] = Run(name, self._window, 0.0)
            runs[name].restore(raw)
        received = {kind: (int(count), float(total)) for kind, (count, total) in state["received"].items()}
        rejected = {reason: int(count) for reason, count in state["rejected"].items()}
        dropped_runs = int(state["dropped_runs"])
        self.book.restore(state["book"])
        self._runs, self._received, self._rejected, self._dropped_runs = runs, received, rejected, dropped_runs
        for run in runs.values():
            self._describe(run)
        try:
            self.engine.restore(state["engine"])
        except ValueError:
            _log.exception("the alerts of the daemon before this one are forgotten; they will be judged anew")

    def replay(self, record: Record) -> None:
        """Let happen again what an earlier daemon wrote down; nobody is told."""
        self._replaying = True
        try:
            if record.kind == "tick":
                self.tick(record.now)
            elif record.kind == "absent":
                self.absent(record.now, record.seconds)
            else:
                started = time.perf_counter()
                message = decode(record.frames)
                self.receive(b"", message, record.now)
                self.count(message.kind, time.perf_counter() - started)
        except WireError as error:
            self.reject(error.reason, detail=f"a message in the journal: {error}")
        finally:
            self._replaying = False

    def absent(self, now: float, seconds: float) -> None:
        """Note that no daemon was there for so long, until now."""
        self.keeper.absent(now, seconds)
        for run in self._runs.values():
            run.absent(now, seconds)

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
            "kept_steps_ratio": {(): self.shedder.kept_ratio},
            "series_capped_total": {(): float(self._per_code.capped)},
            "messages_received_total": {(kind,): float(count) for kind, (count, _) in self._received.items()},
            "messages_rejected_total": {(reason,): float(count) for reason, count in self._rejected.items()},
            "rule_errors_total": {(rule,): float(count) for rule, count in self.engine.rule_errors.items()},
        }
        readings.update(self.outside())
        return readings

    def snapshot(self) -> Snapshot:
        """Return everything that is exported, as it is now."""
        runs = {name: copy(run.readings) for name, run in self._runs.items()}
        for alert in self.engine.alerts():
            if alert.state == "firing" and alert.run in runs:
                series = runs[alert.run].setdefault("alerts_firing", {})
                key = (alert.name, alert.severity)
                series[key] = series.get(key, 0.0) + 1
        summaries: dict[str, dict[Labels, tuple[int, float]]] = {
            "message_processing_seconds": {(kind,): value for kind, value in self._received.items()}
        }
        codes = self._codes()
        return Snapshot(runs, self.own_readings(), summaries, codes)

    def _codes(self) -> dict[tuple[str, str], NDArray[Any]]:
        """Return how often each code was assigned since its run began, by run and layer, as far as the cap goes."""
        if not self._per_code.most:
            return {}
        sizes = {(name, layer.name): layer.size for name, run in self._runs.items() for layer in run.layers}
        return {(run, layer): self._runs[run].use.since_start(layer) for run, layer in self._per_code.choose(sizes)}

    def alerts(self) -> list[Alert]:
        """Return the alerts that are pending, firing or were resolved lately."""
        return list(self.engine.alerts())


def _facts(layer: Layer) -> LayerFacts:
    return LayerFacts(layer.kind, layer.size, layer.dim, layer.decay, layer.threshold, layer.threshold_ratio)
