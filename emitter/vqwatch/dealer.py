"""The ZeroMQ socket to the daemon: it never waits for room, and knows how much libzmq may be holding.

One DEALER, used by one thread at a time, no thread of our own; libzmq's I/O thread does the sending, and resolves
names too, so that a resolver that hangs holds nobody up here. The context is never terminated: with an unsent message
that could hang for ever. Knows no message.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import deque
from typing import Any, Final, TypeAlias

import zmq

from .settings import Keys
from .wire import Frame

Loan: TypeAlias = "weakref.ref[memoryview]"
"""A buffer that libzmq was given without a copy: dead once libzmq has let go of it. A frame with pyzmq's own tracker,
which is an event with a condition and a lock, takes twice as long to make."""

SEND_MESSAGES: Final = 64
"""Messages that libzmq may hold for us; what it holds in bytes is bounded by `send_bytes`."""

ZERO_COPY_BYTES: Final = 256 * 1024
"""Buffers from this size are handed to libzmq without a copy, which costs a wake-up of pyzmq's collector thread."""

FEW_IN_FLIGHT: Final = 4
"""Buffers that libzmq may have let go of without our asking."""

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


class Dealer:
    """A socket that is connected, or will be, to one endpoint. Raises ZMQError where it cannot be one."""

    def __init__(self, endpoint: str, keys: Keys | None, send_bytes: int) -> None:
        self._send_bytes = send_bytes
        self._in_flight: list[tuple[Loan, int]] = []
        self._copied: deque[int] = deque([0] * (SEND_MESSAGES + 8))
        self._copied_bytes = 0
        self._sent_anything = False
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

    def room_for(self, size: int) -> bool:
        """Return whether libzmq may be given so many bytes more."""
        # Whether it let go of buffers costs to ask: only where it matters.
        few = len(self._in_flight) < FEW_IN_FLIGHT
        if few and self._copied_bytes + sum([nbytes for _, nbytes in self._in_flight]) + size <= self._send_bytes:
            return True
        return self.held_bytes() + size <= self._send_bytes

    def crowded(self, size: int) -> bool:
        """Return whether there will be room for so many bytes once libzmq lets go of buffers, and not before."""
        return self.held_bytes() + size > self._send_bytes and len(self._in_flight) > 0

    def held_bytes(self) -> int:
        """Return the most that libzmq can be holding: the last copied messages, and buffers it has not let go."""
        if self._in_flight:
            self._in_flight = [entry for entry in self._in_flight if entry[0]() is not None]
        return self._copied_bytes + sum(size for _, size in self._in_flight)

    def send(self, frames: list[Frame], copied: int, large: int) -> list[Loan] | None:
        """Send a message; return the buffers that are lent, or None, with nothing done, where libzmq has no room.

        ``copied`` is how many bytes of it are copied, and ``large`` how many are not: :data:`ZERO_COPY_BYTES`.
        """
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
            return None
        self._sent_anything = True
        self._copied_bytes += copied - self._copied.popleft()
        self._copied.append(copied)
        return loans

    def look(self) -> tuple[bool, bool]:
        """Return whether there is something to receive, and whether there is somebody to send to, with room."""
        events = int(self._socket.getsockopt(zmq.EVENTS))
        return bool(events & _POLLIN), bool(events & _POLLOUT)

    def receive(self) -> list[bytes] | None:
        """Return the frames of the next message, None where there is none."""
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def wait(self, milliseconds: int) -> None:
        """Wait so long for something to receive."""
        self._socket.poll(milliseconds, zmq.POLLIN)

    def close(self, delivered: bool) -> None:
        """Let go of the socket: closed when all was ``delivered`` or nothing was ever sent, else left to the process.

        libzmq 4.3.5 aborts the process (session_base.cpp, clean_pipes) when the peer disconnects while a socket that
        has half a message on the wire is being closed. A frozen daemon may be killed at any moment, so such a socket
        stays open, and still delivers should the daemon wake up.
        """
        if delivered or not self._sent_anything:
            self._socket.close(0)
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._socket))
