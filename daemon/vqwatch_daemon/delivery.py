"""Decides, message by message, what is applied, what is answered and what was lost. No socket, no clock.

Must-arrive messages are applied in order and once: a repeated one is acknowledged again and not applied, a gap is
answered with ``welcome{next}`` so that the emitter replays from there, and only what the emitter no longer holds counts
as lost. Best-effort messages are numbered per kind: a gap is loss, a number that comes again is a duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from vqwatch.wire import MUST_ARRIVE, Ack, Hello, Origin, Stop, Welcome
from vqwatch.wire import Message as AnyMessage

ACKNOWLEDGE_EVERY: Final = 64
"""Must-arrive messages that may pass before one acknowledgement covers them all."""


@dataclass(slots=True)
class Session:
    """What is known of one emitter process: whom it speaks for and how far it has come.

    ``expected`` is the next must-arrive number, ``received`` counts best-effort messages by kind, ``route`` is the
    socket's name for the peer, new after each reconnect and unknown after a restart of the daemon.
    """

    origin: Origin
    expected: int
    route: bytes = b""
    latest: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    acknowledged: int = 0
    asked: int = -1
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a message: apply it or not, what to answer, what is lost, and why it was refused if it was."""

    apply: bool
    replies: tuple[Welcome | Ack, ...] = ()
    lost: int = 0
    refused: str = ""


class Book:
    """The sessions of all runs; at ``most`` of them, one that is over makes room or the newcomer is refused."""

    def __init__(self, daemon: str, most: int = 16_384) -> None:
        self.daemon = daemon
        self._most = most
        self._sessions: dict[tuple[str, str], Session] = {}
        self._strangers: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def session(self, origin: Origin) -> Session | None:
        """Return the session that this origin belongs to, if it is known."""
        return self._sessions.get((origin.run, origin.session))

    def receive(self, route: bytes, message: AnyMessage) -> Verdict:
        """Judge one message that came from the peer ``route``."""
        if isinstance(message, (Welcome, Ack, Stop)):
            return Verdict(False, refused="direction")
        session = self.session(message.origin)
        if session is None:
            return self._introduce(route, message)
        if session.origin.rank != message.origin.rank:
            return Verdict(False, refused="rank_changed")
        session.route = route
        if message.kind in MUST_ARRIVE:
            return self._in_order(session, message)
        return _best_effort(session, message)

    def _introduce(self, route: bytes, message: Any) -> Verdict:
        full = len(self._sessions) >= self._most
        spare = self._spare() if full else None
        if full and spare is None:
            return Verdict(False, refused="too_many_sessions")
        if not isinstance(message, Hello):
            return Verdict(False, self._ask(message.origin), refused="unknown_session")
        if spare is not None:
            del self._sessions[spare]
        # A session that had to introduce itself again holds nothing below `first`: an earlier daemon has had it.
        session = Session(message.origin, max(message.seq + 1, message.first), route)
        self._sessions[message.origin.run, message.origin.session] = session
        return Verdict(True, (Welcome(message.origin.session, self.daemon, session.expected), self._ack(session)))

    def _ask(self, stranger: Origin) -> tuple[Welcome, ...]:
        """Ask a session to introduce itself, once until :meth:`ask_again`: each answer makes it send everything."""
        key = (stranger.run, stranger.session)
        if key in self._strangers or len(self._strangers) >= self._most:
            return ()
        self._strangers.add(key)
        return (Welcome(stranger.session, self.daemon, 0),)

    def _spare(self) -> tuple[str, str] | None:
        """Return a session that may make room: one that said goodbye, else one whose rank has a newer session."""
        newest = {(session.origin.run, session.origin.rank): key for key, session in self._sessions.items()}
        over = (key for key, session in self._sessions.items() if session.closed)
        replaced = (
            key for key, session in self._sessions.items() if newest[session.origin.run, session.origin.rank] != key
        )
        return next(over, None) or next(replaced, None)

    def _in_order(self, session: Session, message: Any) -> Verdict:
        lost = 0
        if message.seq < session.expected:
            welcome = (
                (Welcome(session.origin.session, self.daemon, session.expected),) if message.kind == "hello" else ()
            )
            return Verdict(False, (*welcome, self._ack(session)), refused="duplicate")
        if message.seq > session.expected and message.first > session.expected:
            lost = min(message.first, message.seq) - session.expected
            session.lost += lost
            session.expected += lost
        if message.seq > session.expected:
            if session.asked == session.expected:  # asked already; a pipe full of later messages needs one answer
                return Verdict(False, (), lost, "gap")
            session.asked = session.expected
            return Verdict(False, (Welcome(session.origin.session, self.daemon, session.expected),), lost, "gap")
        session.expected = message.seq + 1
        session.asked = -1
        if message.kind == "goodbye":
            session.closed = True
            tail = sum(max(0, sent - session.latest.get(kind, 0)) for kind, sent in message.sent.items())
            session.lost += tail  # everything went the same way in order: what is not here by now does not come
            lost += tail
        due = message.kind != "step" or session.expected - session.acknowledged > ACKNOWLEDGE_EVERY
        return Verdict(True, (self._ack(session),) if due else (), lost)

    def _ack(self, session: Session) -> Ack:
        session.acknowledged = session.expected - 1
        return Ack(session.origin.session, session.expected - 1)

    def due(self) -> list[tuple[bytes, Ack]]:
        """Return the acknowledgements that are still owed, with the peers they go to; they count as given."""
        return [
            (session.route, self._ack(session))
            for session in self._sessions.values()
            if session.acknowledged < session.expected - 1 and session.route
        ]

    def owe_all(self) -> None:
        """Forget what was acknowledged: those answers were held back."""
        for session in self._sessions.values():
            session.acknowledged = 0

    def ask_again(self) -> None:
        """Allow questions that were asked already to be asked once more: they may not have arrived."""
        self._strangers.clear()
        for session in self._sessions.values():
            session.asked = -1

    def routes(self, run: str) -> list[tuple[bytes, str]]:
        """Return where the open sessions of a run can be reached, and their names."""
        return [
            (session.route, session.origin.session)
            for session in self._sessions.values()
            if session.origin.run == run and session.route and not session.closed
        ]

    def forget(self, run: str) -> None:
        """Drop every session of a run."""
        self._sessions = {key: session for key, session in self._sessions.items() if key[0] != run}

    def state(self) -> list[dict[str, Any]]:
        """Return what a restarted daemon needs to go on exactly here, fit for JSON."""
        return [
            {
                "run": session.origin.run,
                "rank": session.origin.rank,
                "session": session.origin.session,
                "expected": session.expected,
                "latest": dict(session.latest),
                "lost": session.lost,
                "closed": session.closed,
            }
            for session in self._sessions.values()
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take up what :meth:`state` returned: all of it, or KeyError or TypeError and nothing."""
        sessions = {}
        for item in state:
            origin = Origin(item["run"], item["rank"], item["session"])
            sessions[origin.run, origin.session] = Session(
                origin,
                item["expected"],
                latest=dict(item["latest"]),
                lost=item["lost"],
                acknowledged=0,
                closed=item["closed"],
            )
        self._sessions = sessions


def _best_effort(session: Session, message: Any) -> Verdict:
    latest = session.latest.get(message.kind, 0)
    if message.seq <= latest:
        return Verdict(False, refused="duplicate")
    session.latest[message.kind] = message.seq
    lost = message.seq - latest - 1
    session.lost += lost
    return Verdict(True, lost=lost)
