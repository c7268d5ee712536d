"""Tells every Alertmanager what fires and what ended.

    alertmanagers = Alertmanagers(["http://127.0.0.1:9093"], generator_url="http://node7:9815/")
    alertmanagers.update(engine.alerts(), now)      # on every transition, and once a second
    ...
    alertmanagers.close(timeout=5.0)

All Alertmanagers get everything, each through its own queue and thread, so that a slow or dead one delays nobody else;
between themselves they see to it that people are told once. `notices` decides what is due, `alertmanager_http` talks.

Does not know how alerts come about, nor whether anybody was paged.
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vqwatch_daemon.alertmanager_http import Address, AlertmanagerError, Answer, Connection, parse
from vqwatch_daemon.notices import RESEND_SECONDS, Alert, Notice, Outbox, Schedule

BATCH: Final = 256
CAPACITY: Final = 10_000
POST_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What one Alertmanager was sent since the daemon started, in alerts, and how it is doing.

    ``failures`` counts each alert of each send that did not arrive or was refused, ``dropped`` those that a full queue
    pushed out unsent. ``error`` is empty while the latest send went well.
    """

    sent: int
    failures: int
    dropped: int
    queued: int
    error: str


class Alertmanagers:
    """The Alertmanagers that the daemon reports to; with no URL, nothing happens.

    ``generator_url`` is where a person who reads the alert finds its origin. ``tls`` and ``headers`` apply to all;
    basic authentication is written into the URL. Raises AlertmanagerError on a malformed URL. Starts one thread each.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        generator_url: str = "",
        resend_seconds: float = RESEND_SECONDS,
        post_seconds: float = POST_SECONDS,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        addresses = {address.name: address for address in map(parse, urls)}
        self._senders = {
            name: _Sender(
                address,
                Connection(address, timeout=post_seconds, tls=tls, headers=headers or {}),
                Schedule(resend_seconds),
                Outbox(capacity),
                render=lambda notices, now: _render(notices, now, resend_seconds, generator_url),
                clock=clock,
            )
            for name, address in addresses.items()
        }
        for sender in self._senders.values():
            sender.start()

    def update(self, alerts: Sequence[Alert], now: float) -> None:
        """Take note of all alerts as they are at ``now`` and have sent what is due. Never waits for the network."""
        for sender in self._senders.values():
            sender.update(alerts, now)

    def counts(self) -> dict[str, Counts]:
        """Return the counts by Alertmanager, named by its URL without credentials."""
        return {name: sender.counts() for name, sender in self._senders.items()}

    def state(self) -> dict[str, Any]:
        """Return what each Alertmanager has been told, ready for JSON, for `restore` in the next process."""
        return {name: sender.state() for name, sender in self._senders.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier process' `state`, before the first `update`.

        The rule engine's own state has to be restored by then: what was firing and is not in the first `update` is
        told to have ended. An Alertmanager that is new is told everything. Raises ValueError on what `state` never
        wrote; each Alertmanager has then either taken over its part or knows nothing, and both are safe.
        """
        try:
            for name, sender in self._senders.items():
                sender.restore(state.get(name, []))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"saved state of the Alertmanagers is unreadable: {error!r}") from error

    def close(self, timeout: float) -> None:
        """Send what is queued, for at most ``timeout`` seconds in all, and stop. What still fires is left firing."""
        deadline = time.monotonic() + timeout
        for sender in self._senders.values():
            sender.finish()
        for sender in self._senders.values():
            sender.join(max(0.0, deadline - time.monotonic()))
        for sender in self._senders.values():
            sender.abandon()


class _Sender(threading.Thread):
    """One Alertmanager's queue and the thread that empties it. The lock is never held while the network is used."""

    def __init__(
        self,
        address: Address,
        connection: Connection,
        schedule: Schedule,
        outbox: Outbox,
        *,
        render: Callable[[Sequence[Notice], float], bytes],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(name=f"alertmanager {address.name}", daemon=True)
        self._address = address
        self._connection = connection
        self._schedule = schedule
        self._outbox = outbox
        self._render = render
        self._clock = clock
        self._wake = threading.Condition()
        self._finishing = self._abandoned = False
        self._sent = self._failures = self._dropped = 0
        self._error = ""

    def update(self, alerts: Sequence[Alert], now: float) -> None:
        with self._wake:
            if self._finishing:
                return
            for notice in self._schedule.due(alerts, now):
                dropped = self._outbox.put(notice, alone=self._schedule.travels_alone(notice))
                if dropped is not None:
                    self._dropped += 1
                    self._schedule.failed([dropped], now)
            if len(self._outbox):
                self._wake.notify()

    def counts(self) -> Counts:
        with self._wake:
            return Counts(self._sent, self._failures, self._dropped, len(self._outbox), self._error)

    def state(self) -> list[dict[str, Any]]:
        with self._wake:
            return self._schedule.state()

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        with self._wake:
            self._schedule.restore(state)

    def finish(self) -> None:
        with self._wake:
            self._finishing = True
            self._wake.notify()

    def abandon(self) -> None:
        with self._wake:
            self._abandoned = True
            left = len(self._outbox)
        if left:
            _log.warning("%s: %d alerts were not sent before the end", self._address.name, left)
        if self.is_alive():
            self._connection.abort()

    def run(self) -> None:
        """Send batch by batch until `finish` and an empty queue, or `abandon`."""
        while batch := self._next_batch():
            try:
                self._deliver(batch)
            except Exception as error:  # one batch must not end the thread that all later alerts need
                _log.exception("%s: a batch of %d alerts was given up", self._address.name, len(batch))
                self._settle_failed(batch, repr(error))
        self._connection.close()

    def _next_batch(self) -> list[Notice]:
        with self._wake:
            self._wake.wait_for(lambda: len(self._outbox) or self._finishing)
            return [] if self._abandoned else self._outbox.take(BATCH)

    def _deliver(self, notices: list[Notice]) -> None:
        """Send notices; halve what is refused until the malformed one is alone.

        An Alertmanager takes the good alerts of a request that it answers with 400 and dedupes what it has, so that
        sending them again in smaller company does no harm.
        """
        if self._abandoned:
            self._settle_failed(notices, f"{self._address.name}: the daemon ends")
            return
        try:
            answer = self._connection.post(self._render(notices, self._clock()))
        except AlertmanagerError as error:
            self._settle_failed(notices, str(error))
            return
        if answer.accepted:
            self._settle_delivered(notices)
        elif answer.blames_an_alert and len(notices) > 1:
            middle = len(notices) // 2
            self._deliver(notices[:middle])
            self._deliver(notices[middle:])
        elif answer.blames_an_alert:
            self._settle_refused(notices[0], answer)
        else:
            self._settle_failed(notices, f"{self._address.name}: HTTP {answer.status}: {answer.text[:200]}")

    def _settle_delivered(self, notices: Sequence[Notice]) -> None:
        with self._wake:
            self._schedule.delivered(notices, self._clock())
            self._sent += len(notices)
            recovered, self._error = self._error, ""
        if recovered:
            _log.info("%s: takes alerts again", self._address.name)

    def _settle_failed(self, notices: Sequence[Notice], error: str) -> None:
        with self._wake:
            self._schedule.failed(notices, self._clock())
            self._failures += len(notices)
            known, self._error = self._error, error
        if not known:
            _log.warning("alerts were not delivered, and will be sent again: %s", error)

    def _settle_refused(self, notice: Notice, answer: Answer) -> None:
        with self._wake:
            known = self._schedule.travels_alone(notice)
            self._schedule.refused(notice, self._clock())
            self._failures += 1
        if not known:
            _log.error("%s: refuses alert %s: %s", self._address.name, dict(notice.labels), answer.text[:300])


def _render(notices: Sequence[Notice], now: float, resend_seconds: float, generator_url: str) -> bytes:
    return json.dumps([notice.body(now, resend_seconds, generator_url) for notice in notices]).encode()
