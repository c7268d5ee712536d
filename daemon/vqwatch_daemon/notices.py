"""What an Alertmanager has to be told, and when: decisions only.

A `Schedule` turns the alerts of the moment into the notices that are due; an `Outbox` holds them, bounded, until they
are sent. One of each per Alertmanager, because each has its own past. The contract is Alertmanager's (its
``docs/alerts_api.md``) and Prometheus' way of keeping it (``rules/alerting.go``): what fires is told at once and again
every ``resend_seconds``, what ended is told again for 15 minutes, and an Alertmanager that hears nothing for four
intervals takes the alert for ended.

No clock, no thread, no network: time is an argument, in Unix seconds.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

RESEND_SECONDS: Final = 60.0
RETENTION_SECONDS: Final = 15 * 60.0
RETRY_SECONDS: Final = 5.0
LIFETIMES: Final = 4

_RANKS: Final = {"critical": 0, "warning": 1}
_OTHER_RANK: Final = 2
_REFUSED_RANK: Final = 3

Key = tuple[tuple[str, str], ...]


class Alert(Protocol):
    """What a notice needs to know of a rule engine's alert; times are Unix seconds."""

    @property
    def state(self) -> str:
        """ "pending", "firing" or "resolved"."""

    @property
    def labels(self) -> Mapping[str, str]:
        """The alert's identity: the same for as long as it lives."""

    @property
    def annotations(self) -> Mapping[str, str]:
        """Text for people; may change."""

    @property
    def fired_at(self) -> float | None:
        """When it began to fire; None while it has not."""

    @property
    def resolved_at(self) -> float | None:
        """When it ended; None while it has not."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell: this alert fires (``ended_at`` is None), or it ended then."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    started_at: float
    ended_at: float | None = None

    @property
    def key(self) -> Key:
        """The identity that Alertmanager gives the alert: its whole label set."""
        return tuple(sorted(self.labels.items()))

    @property
    def rank(self) -> int:
        """0 is told first: a critical alert has to be there before the warning that it mutes."""
        return _RANKS.get(self.labels.get("severity", ""), _OTHER_RANK)

    def says_the_same_as(self, other: Notice) -> bool:
        """Whether both tell of one stretch of firing and of the same end, whatever their texts."""
        return (self.started_at, self.ended_at) == (other.started_at, other.ended_at)

    def body(self, now: float, resend_seconds: float, generator_url: str) -> dict[str, Any]:
        """Return the object for ``/api/v2/alerts``.

        What fires ends ``4 * resend_seconds`` after now unless told again, so that three sends may go astray. Nothing
        began or ended after now: where the clock was set back, an alert that has ended would otherwise go on there.
        """
        started_at = min(self.started_at, now)
        ends_at = (
            now + LIFETIMES * resend_seconds if self.ended_at is None else min(max(self.ended_at, started_at), now)
        )
        body: dict[str, Any] = {
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "startsAt": rfc3339(started_at),
            "endsAt": rfc3339(ends_at),
        }
        if generator_url:
            body["generatorURL"] = generator_url
        return body


def notice_of(alert: Alert) -> Notice | None:
    """Return what there is to tell of an alert; None while it is pending, or when it ended without ever firing.

    Labels and annotations without a value are left out, as Alertmanager does.
    """
    if alert.state == "pending" or alert.fired_at is None:
        return None
    ended_at = alert.resolved_at if alert.state == "resolved" else None
    return Notice(_filled(alert.labels), _filled(alert.annotations), alert.fired_at, ended_at)


@dataclass(slots=True)
class _Entry:
    """What is known of one alert at one Alertmanager."""

    notice: Notice
    due_at: float
    failures: int = 0
    refused: bool = False
    outstanding: Notice | None = field(default=None)


class Schedule:
    """Which notices are due to one Alertmanager, given what it has already been told.

    A notice that was handed out is not due again before `delivered`, `failed` or `refused` has said what became of it.
    An alert that fired and is gone from the alerts counts as ended at that moment: nobody else would say so.
    """

    def __init__(self, resend_seconds: float = RESEND_SECONDS) -> None:
        self._resend = resend_seconds
        self._entries: dict[Key, _Entry] = {}

    def __len__(self) -> int:
        """Return how many alerts are remembered, firing or recently ended."""
        return len(self._entries)

    def due(self, alerts: Iterable[Alert], now: float) -> list[Notice]:
        """Take note of the alerts as they are now and return what has to be told now, the most severe first."""
        self._learn(alerts, now)
        due = []
        for entry in self._entries.values():
            waiting = entry.outstanding is not None and entry.outstanding.says_the_same_as(entry.notice)
            clock_went_back = entry.due_at > now + self._resend
            if not waiting and (entry.due_at <= now or clock_went_back):
                entry.outstanding = entry.notice
                due.append(entry.notice)
        return sorted(due, key=lambda notice: notice.rank)

    def delivered(self, notices: Iterable[Notice], now: float) -> None:
        """Note that these arrived: the next word is due an interval later."""
        for entry in self._settled(notices):
            entry.failures, entry.refused, entry.due_at = 0, False, now + self._resend

    def failed(self, notices: Iterable[Notice], now: float) -> None:
        """Note that these did not arrive: due again after 5 s, then twice as long, at most the usual interval.

        What is sent then is what holds then, so that a failed send is never repeated blindly.
        """
        for entry in self._settled(notices):
            entry.due_at = now + min(self._resend, RETRY_SECONDS * 2 ** min(entry.failures, 16))
            entry.failures += 1

    def refused(self, notice: Notice, now: float) -> None:
        """Note that the Alertmanager took this one for malformed: from now on it travels alone."""
        for entry in self._settled([notice]):
            entry.refused, entry.due_at = True, now + self._resend

    def travels_alone(self, notice: Notice) -> bool:
        """Whether an earlier refusal makes this notice unfit company for others."""
        entry = self._entries.get(notice.key)
        return entry is not None and entry.refused

    def state(self) -> list[dict[str, Any]]:
        """Return what `restore` needs, ready for JSON. What was handed out and is unsettled will be due again."""
        return [
            {
                "labels": dict(entry.notice.labels),
                "annotations": dict(entry.notice.annotations),
                "started_at": entry.notice.started_at,
                "ended_at": entry.notice.ended_at,
                "due_at": entry.due_at,
                "refused": entry.refused,
            }
            for entry in self._entries.values()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what an earlier process had told: all of it, or nothing.

        Raises KeyError, TypeError, ValueError or AttributeError on what `state` never wrote.
        """
        entries = {}
        for saved in state:
            ended_at = saved["ended_at"]
            notice = Notice(
                _filled(saved["labels"]),
                _filled(saved["annotations"]),
                _finite(saved["started_at"]),
                None if ended_at is None else _finite(ended_at),
            )
            entries[notice.key] = _Entry(notice, _finite(saved["due_at"]), refused=bool(saved["refused"]))
        self._entries = entries

    def _learn(self, alerts: Iterable[Alert], now: float) -> None:
        present = set()
        for notice in filter(None, map(notice_of, alerts)):
            present.add(notice.key)
            entry = self._entries.get(notice.key)
            if entry is None:
                self._entries[notice.key] = _Entry(notice, due_at=now)
            else:
                if not entry.notice.says_the_same_as(notice):
                    entry.due_at = now
                    entry.failures = 0
                entry.notice = notice
        for key, entry in self._entries.items():
            if key not in present and entry.notice.ended_at is None:
                entry.notice = replace(entry.notice, ended_at=now)
                entry.due_at = now
        self._entries = {key: entry for key, entry in self._entries.items() if not _is_history(entry.notice, now)}

    def _settled(self, notices: Iterable[Notice]) -> Iterable[_Entry]:
        """Yield the entries whose latest word was one of these, not those that newer word has overtaken."""
        for notice in notices:
            entry = self._entries.get(notice.key)
            if entry is not None and entry.outstanding is notice:
                entry.outstanding = None
                yield entry


class Outbox:
    """Notices waiting to be sent, bounded: the most severe go first, and in each severity the oldest.

    The order of one alert's notices is kept, since its severity is one of its labels.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lanes: dict[int, deque[Notice]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def put(self, notice: Notice, *, alone: bool = False) -> Notice | None:
        """Add a notice; return the one dropped for it when full: the oldest of the least severe.

        A notice that goes ``alone`` is sent in a batch of one, after the others.
        """
        self._lanes.setdefault(_REFUSED_RANK if alone else notice.rank, deque()).append(notice)
        if len(self) <= self._capacity:
            return None
        return self._pop(max(rank for rank, lane in self._lanes.items() if lane))

    def take(self, limit: int) -> list[Notice]:
        """Remove and return the next batch: up to ``limit`` notices of one severity; empty when nothing waits."""
        waiting = [rank for rank, lane in self._lanes.items() if lane]
        if not waiting:
            return []
        rank = min(waiting)
        size = 1 if rank == _REFUSED_RANK else min(limit, len(self._lanes[rank]))
        return [self._pop(rank) for _ in range(size)]

    def _pop(self, rank: int) -> Notice:
        return self._lanes[rank].popleft()


def rfc3339(seconds: float) -> str:
    """Return a Unix time as Alertmanager reads it, in milliseconds.

    >>> rfc3339(1.5)
    '1970-01-01T00:00:01.500Z'
    """
    when = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _filled(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: str(text) for name, text in texts.items() if str(text)}


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"not a time: {value!r}")
    return number


def _is_history(notice: Notice, now: float) -> bool:
    return notice.ended_at is not None and notice.ended_at + RETENTION_SECONDS < now
