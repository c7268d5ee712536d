"""The socket to the daemon: it never waits, holds a bounded amount, and tells what it could not send.

One DEALER, used by one thread at a time, no thread of our own; libzmq's I/O thread does the sending, and resolves
names too, so that a resolver that hangs holds nobody up here. Must-arrive messages stay in a :class:`Backlog` until
they are acknowledged and are sent again from where the daemon asks; best-effort ones are refused when there is no
room. The context is never terminated: with an unsent message that could hang for ever.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import zmq

from .backlog import Backlog, Encode
from .settings import Keys
from .wire import (
    HEAD_BYTES,
    Ack,
    Bundled,
    Frame,
    Groups,
    Message,
    Stencil,
    Stop,
    Unpacked,
    Welcome,
    WireError,
    bundle,
    decode,
    fill_in,
    packed,
)

Loan: TypeAlias = "weakref.ref[memoryview]"
"""A buffer that libzmq was given without a copy: dead once libzmq has let go of it. A frame with pyzmq's own tracker,
which is an event with a condition and a lock, takes twice as long to make."""

Make: TypeAlias = Callable[[int], Unpacked]
"""Makes a best-effort message of its number."""

SEND_MESSAGES: Final = 64
"""Messages that libzmq may hold for us; what it holds in bytes is bounded by `send_bytes`."""

ZERO_COPY_BYTES: Final = 256 * 1024
"""Buffers from this size are handed to libzmq without a copy, which costs a wake-up of pyzmq's collector thread."""

PATIENCE_SECONDS: Final = 4.0
"""How long the oldest message waits for its acknowledgement before it is sent again. The daemon acknowledges steps once
a second where they are few, and a training may listen every two seconds: less than a turn of each would send again what
arrived."""

LONGEST_PATIENCE_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 0.25
"""How long after its start a link that never heard of a daemon may still hope for one when it is closed."""

FEW_IN_FLIGHT: Final = 4
"""Buffers that libzmq may have let go of without our asking."""

MOST_ANSWERS: Final = 64
"""Answers that are read in one turn."""

_OPTIONS: Final = {
    zmq.IMMEDIATE: 1,
    zmq.LINGER: 0,
    zmq.SNDHWM: SEND_MESSAGES,
    zmq.RCVHWM: 1024,
    zmq.MAXMSGSIZE: 64 * 1024,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 2000,
    zmq.HANDSHAKE_IVL: 5000,
}
_TCP_OPTIONS: Final = {
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 6000,
    zmq.HEARTBEAT_TTL: 6000,
    zmq.CONNECT_TIMEOUT: 5000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.IPV6: 1,
    zmq.RECONNECT_IVL_MAX: 5000,
}

# Socket.send without its Python, and flags as plain numbers: or-ing two enum members costs more than a small send.
# A message is taken whole or refused at its first frame.
_send_frame: Final = zmq.backend.Socket.send
_DONTWAIT: Final = int(zmq.DONTWAIT)
_SNDMORE: Final = int(zmq.SNDMORE)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context, kept for ever: collecting it would terminate it, and that may hang."""
    pid = os.getpid()
    if pid not in _contexts:
        _contexts[pid] = zmq.Context()
    return _contexts[pid]


class Memory(Protocol):
    """Host memory that holds the buffers of some messages: :data:`HEAD_BYTES`, the buffers, and some bytes to spare."""

    @property
    def data(self) -> memoryview:
        """Return all of it, bytes; the head and the last :attr:`spare` may be written to."""

    @property
    def spare(self) -> int:
        """Return how many bytes at the end hold nothing."""

    def place(self, data: Frame) -> tuple[int, int]:
        """Return where a buffer lies: its offset behind the head, and its size in bytes."""


class Form(NamedTuple):
    """How messages that differ in nothing but numbers are sent as one.

    ``stencil`` is for the index of the bundle, ``steps_bytes`` what the one message of steps takes in it, and ``kinds``
    are those of the other messages, with how many each stands for.
    """

    stencil: Stencil
    steps_bytes: int
    kinds: Sequence[tuple[str, int]]


class Link:
    """One session's connection; ``now`` is always monotonic seconds.

    ``dropped`` counts what was not sent, by "kind:reason". ``writable`` tells whether a daemon was connected and had
    room when it was last looked at.
    """

    def __init__(
        self,
        endpoint: str,
        session: str,
        now: float,
        dropped: Counter[str],
        *,
        keys: Keys | None = None,
        backlog: Backlog,
        send_bytes: int,
    ) -> None:
        self.dropped = dropped
        self.backlog = backlog
        self.stop_reason: str | None = None
        self.daemon = ""
        self.sent: Counter[str] = Counter()
        self.session = session
        self._introduction: Encode | None = None
        self._introduced = False  # and not answered yet
        self._send_bytes = send_bytes
        self._in_flight: list[tuple[Loan, int]] = []
        self._copied: deque[int] = deque([0] * (SEND_MESSAGES + 8))
        self._copied_bytes = 0
        self._started = self._waiting_since = now
        self._patience = PATIENCE_SECONDS
        self._heard: float | None = None
        self._sent_anything = False
        self.writable = False
        self._socket = _context().socket(zmq.DEALER)
        try:
            for option, value in {**_OPTIONS, **(_TCP_OPTIONS if endpoint.startswith("tcp:") else {})}.items():
                self._socket.setsockopt(option, value)
            if keys is not None:
                own = (keys.public, keys.secret) if keys.secret else zmq.curve_keypair()
                self._socket.curve_publickey, self._socket.curve_secretkey = own
                self._socket.curve_serverkey = keys.server
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self._socket.close(0)
            raise
        # Not even the interpreter's end may collect it while half a message is on the wire: see close().
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._socket))

    # --- sending --------------------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Return whether messages that must arrive wait to be sent."""
        return not self.backlog.sent_all

    def heard_within(self, seconds: float, now: float) -> bool:
        """Return whether the daemon said anything in the last ``seconds``."""
        return self._heard is not None and now - self._heard <= seconds

    def introduce(self, introduction: Encode, now: float) -> None:
        """Send the session's first message, and keep it for a daemon that does not know this session any more."""
        self._introduction = introduction
        self.must_arrive("hello", introduction, now)

    def must_arrive(self, kind: str, message: Encode, now: float) -> None:
        """Take a message into the backlog and send what can be sent."""
        pushed_out = self.backlog.add(message)
        if pushed_out:
            self.dropped[f"{kind}:backlog"] += pushed_out
        self._send_backlog(now, at_most=2)

    def best_effort(self, kind: str, make: Make, count: int = 1) -> list[Loan] | None:
        """Send the message that ``make`` gives for its number, or count it as dropped and return None.

        ``count`` is how many it stands for. Buffers of :data:`ZERO_COPY_BYTES` and more must stay as they are until
        every loan returned is dead.
        """
        if not self.writable:
            self.dropped[f"{kind}:no_peer" if not self.daemon else f"{kind}:busy_peer"] += count
            return None
        try:
            header, tensors = make(self.sent[kind] + 1)
            frames: list[Frame] = [packed(header), *(tensor.data for tensor in tensors)]
        except WireError as error:
            self.dropped[f"{kind}:{error.reason}"] += count
            return None
        copied = large = 0
        for frame in frames:
            size = memoryview(frame).nbytes
            if size >= ZERO_COPY_BYTES:
                large += size
            else:
                copied += size
        if not self._room_for(copied + large):
            self.dropped[f"{kind}:send_bytes"] += count
            return None
        loans = self._send(frames, copied, large)
        if loans is None:
            self.dropped[f"{kind}:busy_peer"] += count
            return None
        self.sent[kind] += count
        return loans

    def hold(self, messages: Sequence[tuple[Encode, int]]) -> None:
        """Take must-arrive messages of one kind, "step", into the backlog.

        With each comes how many messages it stands for. They are sent :meth:`together` with arrays, or in their turn.
        """
        for message, steps in messages:
            pushed_out = self.backlog.add(message, steps)
            if pushed_out:
                self.dropped["step:backlog"] += pushed_out

    def together(
        self, arrays: Sequence[tuple[str, Make, int]], memory: Memory, now: float, held: int = 0
    ) -> list[Loan]:
        """Send ``arrays``, and the last ``held`` messages that :meth:`hold` was given, as one where that can be.

        Else one by one. With each array comes how many messages it stands for; their buffers lie in ``memory``, in
        order. What cannot be sent is kept or counted as :meth:`must_arrive` and :meth:`best_effort` do; of arrays that
        cannot be made, the kind and the error are counted.
        """
        backlog = self.backlog
        first = backlog.next
        if self.writable and backlog.unsent <= held and self._room_for(len(memory.data)):
            made: list[Bundled] = []
            numbers: dict[str, int] = {}
            ready: list[tuple[str, Make, int]] = []
            for array in arrays:
                kind, make, count = array
                number = numbers[kind] if kind in numbers else self.sent[kind]
                try:
                    header, tensors = make(number + 1)
                    made.append((header, [memory.place(tensor.data) for tensor in tensors]))
                except Exception as error:  # the steps must arrive all the same
                    self._not_made(kind, error, count)
                    continue
                numbers[kind] = number + count
                ready.append(array)
            arrays = ready
            loans = self._send_bundle(made, memory)
            if loans is not None:
                if first == backlog.first:
                    self._waiting_since = now
                for kind, number in numbers.items():
                    self.sent[kind] = number
                return loans
            backlog.rewind(first)
        self._send_backlog(now, at_most=2 * held)
        loans = []
        for kind, make, count in arrays:
            try:
                loans += self.best_effort(kind, make, count) or ()
            except Exception as error:
                self._not_made(kind, error, count)
        return loans

    def filled(
        self, form: Form, filling: Groups, memory: Memory, steps: tuple[Encode, int], now: float
    ) -> list[Loan] | None:
        """Send what :meth:`together` would, by its form; return None, with nothing done, where that cannot be.

        ``filling`` are the numbers behind the stencil's first: those of the messages themselves. ``steps`` makes the
        steps' message anew, should that be needed, and tells how many it stands for.
        """
        backlog, sent, stencil = self.backlog, self.sent, form.stencil
        message, count = steps
        data = memory.data
        if not (backlog.sent_all and self.writable and self._room_for(len(data))):
            return None
        if not backlog.room_for(form.steps_bytes, count):
            return None
        seq, first = backlog.following, backlog.first
        of_messages = [seq, first, *[sent[kind] + 1 for kind, _ in form.kinds]]
        frame = fill_in(stencil, [of_messages, *filling], data, memory.spare)
        if frame is None:
            return None
        size = len(frame)
        large = size >= ZERO_COPY_BYTES
        loans = self._send([frame], 0 if large else size, size if large else 0)
        if loans is None:
            return None
        backlog.add_sent(form.steps_bytes, message, count)
        if first == seq:
            self._waiting_since = now
        for kind, messages in form.kinds:
            sent[kind] += messages
        return loans

    def _send_bundle(self, made: list[Bundled], memory: Memory) -> list[Loan] | None:
        """Send what is upcoming and what was made of arrays as one message; return None where that cannot be."""
        bundled: list[Bundled] = []
        while (held := self.backlog.upcoming()) is not None:
            bundled.append((held.frames[0], ()))
            self.backlog.sent()
        if not (bundled or made):
            return None
        data, spare = memory.data, memory.spare
        if made:
            frames = bundle([*bundled, *made], data, spare)
        elif spare > HEAD_BYTES:  # what holds nothing is enough
            frames = bundle(bundled, data[len(data) - spare :], spare - HEAD_BYTES)
        else:
            frames = bundle(bundled)
        if frames is None:
            return None
        large = len(frames[-1]) if made and len(frames[-1]) >= ZERO_COPY_BYTES else 0
        copied = sum([len(frame) for frame in frames]) - large
        return self._send(frames, copied, large)

    def _not_made(self, kind: str, error: Exception, count: int) -> None:
        if not isinstance(error, KeyError):  # an array that was left out, and counted
            self.dropped[f"{kind}:{type(error).__name__}"] += count

    def _room_for(self, size: int) -> bool:
        """Return whether libzmq may be given so many bytes more."""
        # Whether it let go of buffers costs to ask: only where it matters.
        few = len(self._in_flight) < FEW_IN_FLIGHT
        if few and self._copied_bytes + sum([nbytes for _, nbytes in self._in_flight]) + size <= self._send_bytes:
            return True
        return self._held_bytes() + size <= self._send_bytes

    def _held_bytes(self) -> int:
        """Return the most that libzmq can be holding: the last copied messages, and buffers it has not let go."""
        if self._in_flight:
            self._in_flight = [entry for entry in self._in_flight if entry[0]() is not None]
        return self._copied_bytes + sum(size for _, size in self._in_flight)

    def _send(self, frames: list[Frame], copied: int, large: int) -> list[Loan] | None:
        loans: list[Loan] = []
        parts: list[Any] = frames
        if large:
            parts = []
            for frame in frames:
                size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes
                if size >= ZERO_COPY_BYTES:
                    view = memoryview(frame)  # one that nobody else has
                    loans.append(weakref.ref(view))
                    self._in_flight.append((loans[-1], size))
                    parts.append(zmq.Frame(view, copy=False))
                    del view
                else:
                    parts.append(frame)
        try:
            send, socket = _send_frame, self._socket
            for part in parts[:-1]:
                send(socket, part, _DONTWAIT | _SNDMORE)
            send(socket, parts[-1], _DONTWAIT)
        except zmq.Again:
            self.writable = False
            return None
        self._sent_anything = True
        self._copied_bytes += copied - self._copied.popleft()
        self._copied.append(copied)
        return loans

    def _send_backlog(self, now: float, at_most: int) -> None:
        while at_most and self.writable:
            held = self.backlog.upcoming()
            if held is None:
                return
            if not self._send_held(held.frames, held.size):
                return
            if held.seq == self.backlog.first:
                self._waiting_since = now
            self._introduced |= held.seq == 1
            self.backlog.sent()
            at_most -= 1

    def _send_held(self, frames: list[Frame], size: int) -> bool:
        if len(frames) == 1:
            return self._send(frames, size, 0) is not None
        large = sum(nbytes for frame in frames[1:] if (nbytes := memoryview(frame).nbytes) >= ZERO_COPY_BYTES)
        if size > ZERO_COPY_BYTES and self._held_bytes() + size > self._send_bytes and self._in_flight:
            return False  # goes out later: it stays in the backlog
        return self._send(frames, size - large, large) is not None

    # --- receiving ------------------------------------------------------------------------------------------------

    def turn(self, now: float, at_most: int = 16) -> None:
        """Take in what the daemon answered and go on with the backlog; call it at every step. Never waits."""
        events = int(self._socket.getsockopt(zmq.EVENTS))
        for _ in range(MOST_ANSWERS):
            if not events & _POLLIN:
                break
            self._receive(now)
            events = int(self._socket.getsockopt(zmq.EVENTS))
        self.writable = bool(events & _POLLOUT)
        if not self.backlog.acknowledged and self.writable:
            if not self.backlog.sent_all:
                self._send_backlog(now, at_most)
            if now - self._waiting_since > self._patience:
                self._probe(now)

    def _probe(self, now: float) -> None:
        """Send the oldest unacknowledged message again: the answer tells where the daemon stands."""
        held = self.backlog.oldest()
        if held is not None:
            self._send_held(held.frames, held.size)
        self._waiting_since = now
        self._patience = min(2 * self._patience, LONGEST_PATIENCE_SECONDS)

    def _receive(self, now: float) -> None:
        try:
            message = decode(self._socket.recv_multipart(zmq.DONTWAIT))
        except zmq.Again:
            return
        except WireError as error:
            self.dropped[f"answer:{error.reason}"] += 1
            return
        self._heard = now
        self._answer(message, now)

    def _answer(self, message: Message, now: float) -> None:
        if isinstance(message, Ack):
            if message.session == self.session and self.backlog.acknowledge(message.seq):
                self._waiting_since = now
                self._patience = PATIENCE_SECONDS
        elif isinstance(message, Welcome):
            if message.session == self.session:
                self._welcome(message, now)
        elif isinstance(message, Stop):
            if message.session == self.session:
                self.stop_reason = message.reason
        else:
            self.dropped["answer:kind"] += 1

    def _welcome(self, message: Welcome, now: float) -> None:
        self.daemon = message.daemon
        self._waiting_since = now
        self._patience = PATIENCE_SECONDS
        if message.next > 0:
            # The answer to an introduction asks for nothing: what follows it is on its way behind it.
            if not self._introduced:
                self.backlog.rewind(message.next)
            self._introduced = False
            return
        if self._introduction is not None and self.backlog.first > 1:  # acknowledged by an earlier daemon
            self._introduced = self._send(self._introduction(1, self.backlog.first), 1024, 0) is not None
        self.backlog.rewind(0)

    # --- ending ---------------------------------------------------------------------------------------------------

    def wait(self, clock: Callable[[], float], deadline: float) -> bool:
        """Wait until everything is acknowledged, or ``deadline``; return whether it is.

        Does not wait for a daemon that was never there.
        """
        self._waiting_since = clock()
        while True:
            now = clock()
            self._patience = min(self._patience, 0.25)
            self.turn(now, at_most=1024)
            if self.backlog.acknowledged:
                return True
            hopeless = not self.daemon and not self.writable and now - self._started > CONNECT_SECONDS
            if now >= deadline or hopeless:
                return False
            self._socket.poll(max(1, min(20, round(1000 * (deadline - now)))), zmq.POLLIN)

    def wait_for_room(self, size: int, clock: Callable[[], float], deadline: float) -> bool:
        """Wait until the backlog can hold a message of this size, or ``deadline``; return whether it can."""
        while not self.backlog.room_for(size):
            now = clock()
            self.turn(now, at_most=64)
            if self.backlog.room_for(size):
                break
            if now >= deadline or not self.daemon:
                return False
            self._socket.poll(max(1, min(20, round(1000 * (deadline - now)))), zmq.POLLIN)
        return True

    def close(self) -> None:
        """Let go of the socket: closed when all was acknowledged or nothing was ever sent, else left to the process.

        libzmq 4.3.5 aborts the process (session_base.cpp, clean_pipes) when the peer disconnects while a socket that
        has half a message on the wire is being closed. A frozen daemon may be killed at any moment, so such a socket
        stays open, and still delivers should the daemon wake up.
        """
        if self.backlog.acknowledged or not self._sent_anything:
            self._socket.close(0)
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._socket))
