"""The ROUTER socket: frames in, readable messages on, answers back. Never blocks on a peer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import zmq

from vqwatch.wire import (
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    Ack,
    Frame,
    Message,
    Stop,
    Welcome,
    WireError,
    decode_each,
    encode,
    unbundle,
)  # fmt: skip
from vqwatch_daemon.curve import Gate, Insecure, Pair, prove, secure
from vqwatch_daemon.keys import Keys
from vqwatch_daemon.limits import Offences, Rates
from vqwatch_daemon.peers import ReceiverError, disconnect, guard
from vqwatch_daemon.versions import too_old

__all__ = ["Receiver", "ReceiverError"]

_log = logging.getLogger(__name__)

RECEIVE_HIGH_WATER_MARK: Final = 1000
"""Messages per peer that wait in memory. Large enough that input is hardly ever stopped: over ipc, what a peer sent
before it closed is lost while input is stopped (libzmq issue 4660)."""

SESSION_BYTES_PER_SECOND: Final = 64.0 * 1024 * 1024
RUN_BYTES_PER_SECOND: Final = 1024.0 * 1024 * 1024

SHUT_OUT_SECONDS: Final = 60.0
"""For how long the key of a peer that was cut off opens no new connection."""

MESSAGES_AT_ONCE: Final = 200
"""Messages taken before time-driven work gets its turn."""

LOOPBACK: Final = ("127.", "localhost", "[::1]", "::1")


class Receiver:
    """Listens on ``endpoints`` and gives each message to ``take(route, message)``, which returns the answers.

    ``count(kind, seconds)`` is told how long a message took, ``reject(reason)`` of what could not be read or was not
    allowed. With ``keys`` every peer must have one of them, on every endpoint. A session may send
    ``session_bytes_per_second``, a run ``run_bytes_per_second``; beyond that, messages are rejected. A peer that is
    rejected again and again is disconnected; :attr:`cut_off` counts that.
    Raises :class:`ReceiverError` when an endpoint is refused, in use or not reachable, keys do not keep others out, or
    a library has known vulnerabilities.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        take: Callable[[bytes, Message], list[tuple[bytes, Welcome | Ack | Stop]]],
        count: Callable[[str, float], None],
        reject: Callable[[str], None],
        insecure_tcp: bool = False,
        keys: Keys | None = None,
        session_bytes_per_second: float = SESSION_BYTES_PER_SECOND,
        run_bytes_per_second: float = RUN_BYTES_PER_SECOND,
    ) -> None:
        if problem := too_old():
            raise ReceiverError(problem)
        self._take, self._count, self._reject = take, count, reject
        self._keys = keys
        self._of_peer = Rates(session_bytes_per_second)
        self._of_run = Rates(run_bytes_per_second)
        self._offences = Offences()
        self._shut_out: dict[str, float] = {}
        self.cut_off = 0
        self._resources = ExitStack()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._resources.callback(self._context.destroy, linger=0)
        self._poller = zmq.Poller()
        try:
            self._socket = self._context.socket(zmq.ROUTER)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
            self._socket.setsockopt(zmq.SNDHWM, RECEIVE_HIGH_WATER_MARK)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_TENSOR_BYTES)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
            self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
            self._poller.register(self._socket, zmq.POLLIN)
            self._gate = None if keys is None else self._close_to_strangers(keys)
            self.endpoints = [self._bind(endpoint, insecure_tcp) for endpoint in endpoints]
        except BaseException:
            self._resources.close()
            raise

    def _close_to_strangers(self, keys: Keys) -> Gate:
        """Ask every peer for a key, and try out that this works before there is an endpoint that others can reach."""
        probe = Pair(*zmq.curve_keypair())
        proving = True

        def admit(public: bytes) -> str | None:
            if proving:
                return "probe" if public == probe.public else None
            client = keys.of(public)
            if client is None or self._shut_out.get(client.name, 0.0) > time.monotonic():
                return None
            return client.name

        gate = Gate(self._context, admit)
        self._resources.callback(gate.close)
        secure(self._socket, keys.secret)
        try:
            prove(self._socket, gate.answer, keys.public, probe)
        except Insecure as error:
            raise ReceiverError(f"the keys do not keep strangers out: {error}") from error
        proving, gate.refused = False, 0
        self._poller.register(gate.socket, zmq.POLLIN)
        return gate

    def _bind(self, endpoint: str, insecure_tcp: bool) -> str:
        if endpoint.startswith("ipc://"):
            path = Path(endpoint.removeprefix("ipc://"))
            self._resources.callback(os.close, guard(path))
        elif self._keys is None and not insecure_tcp and not _is_loopback(endpoint):
            raise ReceiverError(
                f"{endpoint} can be reached from other machines and there are no keys; make some with "
                "`vqwatch keys make` and pass --keys, listen on 127.0.0.1, or pass --insecure-tcp if the network is "
                "yours alone"
            )
        try:
            self._socket.bind(endpoint)
            if endpoint.startswith("ipc://"):
                path.chmod(0o660 if path.parent.stat().st_mode & 0o020 else 0o600)
        except (zmq.ZMQError, OSError) as error:
            raise ReceiverError(f"cannot listen on {endpoint}: {error}") from error
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        return bound.decode().rstrip("\0") if isinstance(bound, bytes) else endpoint

    @property
    def refused(self) -> int:
        """Connections refused because of their key, or for want of one."""
        return 0 if self._gate is None else self._gate.refused

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives, at most so long; return whether a message did. Lets in who may come in."""
        ready = dict(self._poller.poll(int(seconds * 1000)))
        if self._gate is not None and self._gate.socket in ready:
            self._gate.answer()
        return self._socket in ready

    def look_at_keys(self) -> None:
        """Take up clients' keys that were added or removed; call it now and then."""
        if self._keys is not None and self._keys.refresh():
            for problem in self._keys.problems:
                _log.warning("keys: %s; nobody comes in with it", problem)

    def drain(self) -> int:
        """Take what has arrived, until it was :data:`MESSAGES_AT_ONCE` messages or more; return how many it was."""
        taken = 0
        while taken < MESSAGES_AT_ONCE:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            taken += self._received(frames)
        return taken

    def _received(self, frames: Sequence[zmq.Frame]) -> int:
        """Take what a peer sent as one, which can be several messages; return how many."""
        started = time.perf_counter()
        route = frames[0].bytes
        if len(frames) > MAX_TENSORS + 2:
            self._offended("frames", route, frames[-1])
            return 1
        if not self._of_peer.admit(route, sum(len(frame) for frame in frames), started):
            self._offended("session_rate", route, frames[-1])
            return 1
        try:
            messages = unbundle([frame.buffer for frame in frames[1:]])
        except WireError as error:
            _log.debug("unreadable bundle: %s", error)
            self._offended(error.reason, route, frames[-1])
            return 1
        return max(1, sum(self._read(route, parts, frames[-1]) for parts in messages))

    def _read(self, route: bytes, parts: Sequence[Frame], frame: zmq.Frame) -> int:
        """Take a message, or the steps that are told as one; return how many."""
        started = time.perf_counter()
        try:
            messages = decode_each(parts)
        except WireError as error:
            _log.debug("unreadable message: %s", error)
            self._offended(error.reason, route, frame)
            return 1
        reason = self._forbidden(messages[0], sum(memoryview(part).nbytes for part in parts), frame, started)
        if reason:
            self._offended(reason, route, frame)
            return 1
        for message in messages:
            self.send(self._take(route, message))
            self._count(message.kind, time.perf_counter() - started)
            started = time.perf_counter()
        return len(messages)

    def _forbidden(self, message: Message, size: int, frame: zmq.Frame, now: float) -> str:
        if isinstance(message, (Welcome, Ack, Stop)):
            return "direction"
        if self._keys is not None:
            client = self._keys.named(_user(frame))
            if client is None:
                return "key_removed"
            if not client.may(message.origin.run):
                return "run_not_allowed"
        return "" if self._of_run.admit(message.origin.run, size, now) else "run_rate"

    def _offended(self, reason: str, route: bytes, frame: zmq.Frame) -> None:
        self._reject(reason)
        now = time.monotonic()
        if not self._offences.add(route, now):
            return
        self.cut_off += 1
        _log.warning("a peer is disconnected: too many of its messages were refused, the latest for %r", reason)
        if self._keys is not None:
            self._shut_out[_user(frame)] = now + SHUT_OUT_SECONDS
        disconnect(frame, self.endpoints)

    def send(self, replies: Sequence[tuple[bytes, Welcome | Ack | Stop]]) -> None:
        """Answer peers; an answer to one that is gone, or that does not read, is given up: it will ask again."""
        for route, reply in replies:
            try:
                self._socket.send_multipart([route, *encode(reply)], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                _log.debug("%s not delivered: %s", reply.kind, error)

    def close(self) -> None:
        """Stop listening and release the locks."""
        self._socket.close(linger=0)
        self._resources.close()


def _user(frame: zmq.Frame) -> str:
    """Return the name that the gate gave to the peer that sent this frame."""
    return str(frame.get("User-Id"))


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).netloc.rpartition(":")[0]
    return host.startswith(LOOPBACK)
