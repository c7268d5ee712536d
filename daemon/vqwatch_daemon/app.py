"""The daemon put together: the one file that knows socket, clock, registry and threads.

    daemon = Daemon(settings)
    daemon.run()        # until stop() is called, from a signal handler or another thread

The calling thread takes messages, computes and evaluates rules; HTTP, each Alertmanager and the history have threads of
their own and see the hub under one lock, for as long as a copy takes.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector
from starlette.middleware import Middleware

from vqwatch.wire import Ack, Message, Stop, Welcome
from vqwatch_daemon import resume, web_config
from vqwatch_daemon.alertmanager import Alertmanagers
from vqwatch_daemon.authentication import Authentication
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.clock import Clock
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.exposition import Snapshot, exposition
from vqwatch_daemon.history import History
from vqwatch_daemon.history.entries import entry
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.keeper import Keeper
from vqwatch_daemon.keys import Keys
from vqwatch_daemon.readings import Readings, copy
from vqwatch_daemon.receiver import MESSAGES_AT_ONCE, Receiver
from vqwatch_daemon.settings import Settings, split_address
from vqwatch_daemon.sinks import Sinks
from vqwatch_daemon.web import RunView, Server, create_app
from vqwatch_daemon.web_config import WebConfig
from vqwatch_rules import Alert, Engine, Transition, load, runbooks

_log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
IDLE_WAIT_SECONDS: Final = 0.1
CLOSE_SECONDS: Final = 5.0
SINKS_CLOSE_SECONDS: Final = 5.0


class Daemon:
    """Everything that ``vqwatch daemon`` is made of.

    Raises RuleError, ReceiverError or OSError when it cannot start as asked; nothing is left behind then.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._wall = clock  # what other programs are told of
        self._clock = Clock(clock)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._resources = ExitStack()
        try:
            self._start(settings)
        except BaseException:
            self._resources.close()
            raise

    def _start(self, settings: Settings) -> None:
        self.instance = uuid4().hex
        metrics = {name: metric.labels for name, metric in CATALOGUE.items()}
        self._serve(settings)
        rules = load(settings.rules, metrics)
        if rules.runbook_base.startswith("/"):  # who reads the alert elsewhere needs the whole address
            rules = dataclasses.replace(rules, runbook_base=self.url.rstrip("/") + rules.runbook_base)
        engine = Engine(rules)
        self.hub = Hub(
            Book(self.instance),
            engine,
            window=settings.window,
            most_runs=settings.max_runs,
            retention_seconds=settings.run_retention_seconds,
            allow_stop=settings.allow_stop,
            per_code_series=settings.per_code_series,
            build={(version("vqwatch"), platform.python_version()): 1.0},
        )
        self.keeper = None if settings.state is None else self._keep(settings.state, settings.snapshot_seconds)
        self.history = None if settings.state is None else self._open_history(settings.state)
        self.alertmanagers = Alertmanagers(settings.alertmanager, generator_url=f"{self.url.rstrip('/')}/")
        self._resources.callback(self.alertmanagers.close, CLOSE_SECONDS)
        if self.keeper is not None:
            resume.resume(self.keeper, self.hub, self.alertmanagers, self._clock)
            self._resources.callback(self._snapshot, self.keeper, wait=True)
        self.sinks = Sinks.of(settings)
        self._resources.callback(self.sinks.close, SINKS_CLOSE_SECONDS)
        if self.sinks.outlets:
            self.hub.observers.append(self.sinks)
        self.hub.outside = self._outside
        self.receiver = Receiver(
            settings.listen,
            take=self._take,
            count=self.hub.count,
            reject=self.hub.reject,
            insecure_tcp=settings.insecure_tcp,
            keys=None if settings.keys is None else Keys(settings.keys),
            session_bytes_per_second=settings.session_bytes_per_second,
            run_bytes_per_second=settings.run_bytes_per_second,
        )
        self._resources.callback(self.receiver.close)
        self._told = -1
        self.server.start()

    def _serve(self, settings: Settings) -> None:
        """Take the HTTP port; requests are answered once everything else is there."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        host, port = split_address(settings.http)
        web = WebConfig() if settings.web_config is None else web_config.load(settings.web_config)
        app = create_app(View(self), metrics=exposition(self.snapshot, registry))
        if web.asks:
            app.user_middleware.append(Middleware(Authentication, web))  # within the headers that every answer carries
        try:
            self.server = Server(app, host, port, **web.server_options())
        except OSError as error:
            raise OSError(error.errno, f"cannot serve on {settings.http}: {error.strerror}") from error
        self._resources.callback(self.server.close)
        scheme = "http" if web.tls is None else "https"
        name = f"[{host}]" if ":" in host else host
        self.url = settings.external_url or f"{scheme}://{name}:{self.server.port}"

    def _keep(self, state: Path, snapshot_seconds: float) -> Keeper:
        """Take the state directory, before anything is written to it: another daemon may have it."""
        keeper = Keeper(state, snapshot_seconds=snapshot_seconds)
        self._resources.callback(keeper.close)
        return keeper

    def _open_history(self, state: Path) -> History:
        try:
            history = History(state / "history.sqlite")
        except sqlite3.Error as error:
            raise OSError(f"cannot keep a history in {state}: {error}") from error
        self._resources.callback(history.close, CLOSE_SECONDS)
        self.hub.observers.append(_Recorder(history))
        return history

    def _snapshot(self, keeper: Keeper, *, wait: bool = False) -> None:
        with self._lock:
            now = self._clock()
            keeper.snapshot(resume.state(self.hub, self.alertmanagers, now), now, time.monotonic(), wait=wait)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take messages until :meth:`stop`; then tell Alertmanager what is queued, and release everything."""
        _log.info("listening on %s; page and metrics on %s", ", ".join(self.receiver.endpoints), self.url)
        try:
            next_tick = time.monotonic()
            while not self._stopping.is_set():
                wait = min(IDLE_WAIT_SECONDS, max(0.0, next_tick - time.monotonic()))
                taken = self.receiver.drain() if self.receiver.wait(wait) else 0
                self.hub.shedder.observe(taken == MESSAGES_AT_ONCE, time.monotonic())
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_SECONDS
                    self._tick()
                self._send_alerts()
        finally:
            self._resources.close()

    def stop(self) -> None:
        """End :meth:`run` soon; may be called from anywhere."""
        self._stopping.set()

    def _take(self, route: bytes, message: Message) -> list[tuple[bytes, Welcome | Ack | Stop]]:
        with self._lock:
            return self.hub.receive(route, message, self._clock())

    def _tick(self) -> None:
        self.receiver.look_at_keys()
        with self._lock:
            now = self._clock()
            if skipped := self._clock.skipped():
                _log.warning("the clock went forward by %.0f s: nobody counts as silent for that", skipped)
                self.hub.absent(now, skipped)
            replies = self.hub.tick(now)
        self.receiver.send(replies)
        self._told = -1  # re-sends are due by time
        if self.keeper is not None and self.keeper.due(time.monotonic()):
            self._snapshot(self.keeper)

    def _send_alerts(self) -> None:
        if self._told != self.hub.transitions:
            self._told = self.hub.transitions
            self.alertmanagers.update(self.hub.alerts(), self._wall())

    def _outside(self) -> Readings:
        """Return what those around the hub count."""
        counts = self.alertmanagers.counts()
        keeper = self.keeper
        state: Readings = {} if keeper is None else keeper.readings()
        return {
            **state,
            "peers_cut_off_total": {(): float(self.receiver.cut_off)},
            "peers_refused_total": {(): float(self.receiver.refused)},
            **self.sinks.own_readings(),
            "alerts_sent_total": {(name,): float(count.sent) for name, count in counts.items()},
            "alert_delivery_failures_total": {(name,): float(count.failures) for name, count in counts.items()},
        }

    # --- for other threads ------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return everything that is exported, of one moment."""
        with self._lock:
            return self.hub.snapshot()

    def now(self) -> float:
        """Return the time that everything in the hub is dated by; hold the lock."""
        return self._clock()

    def locked(self) -> threading.Lock:
        """Return the lock that guards the hub."""
        return self._lock


class View:
    """The daemon as the page and the API see it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def _hub(self) -> Hub:
        return self._daemon.hub

    def ready(self) -> bool:
        """Return whether the daemon listens and has its rules, which it has once it exists."""
        return True

    def runs(self) -> list[RunView]:
        """Return the runs held, the one heard of last first."""
        with self._daemon.locked():
            now = self._daemon.now()
            views = [
                RunView(
                    name=run.name,
                    step=max(run.ranks.furthest, 0),
                    ranks=len(run.ranks.numbers),
                    world_size=run.ranks.world_size,
                    started_at=run.started_at,
                    last_seen=run.ranks.seen_at,
                    state=run.ranks.state_name(now),
                    layers=[dataclasses.asdict(layer) for layer in run.layers],
                )
                for run in self._hub.runs.values()
            ]
        return sorted(views, key=lambda view: -view.last_seen)

    def readings(self, run: str) -> Readings | None:
        """Return a run's current readings."""
        with self._daemon.locked():
            known = self._hub.runs.get(run)
            return None if known is None else copy(known.readings)

    def usage(self, run: str) -> Mapping[str, Sequence[int]] | None:
        """Return how often each code was used over the window, by layer."""
        with self._daemon.locked():
            known = self._hub.runs.get(run)
            counts: Mapping[str, NDArray[Any]] = {} if known is None else known.usage()
        return None if known is None else {layer: values.tolist() for layer, values in counts.items()}

    def alerts(self) -> Sequence[Alert]:
        """Return the alerts that are pending, firing or were resolved lately."""
        with self._daemon.locked():
            return self._hub.alerts()

    def history(self) -> History | None:
        """Return the store, None without ``--state``."""
        return self._daemon.history

    def runbook(self, alert_name: str) -> str | None:
        """Return the runbook of a shipped alert, as Markdown."""
        if not re.fullmatch(r"[A-Za-z0-9]+", alert_name):
            return None
        path = runbooks() / f"{alert_name}.md"
        return path.read_text(encoding="utf-8") if path.is_file() else None


class _Recorder:
    """Keeps a history of everything."""

    def __init__(self, history: History) -> None:
        self._history = history

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        self._history.record(run, step, now, readings)

    def usage(self, run: str, step: int, now: float, counts: Mapping[str, NDArray[Any]]) -> None:
        self._history.record_usage(run, step, now, counts)

    def transition(self, transition: Transition) -> None:
        self._history.record_alert(entry(transition))
