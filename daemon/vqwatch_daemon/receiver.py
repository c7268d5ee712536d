"""The ROUTER socket: frames in, readable messages on, answers back. Never blocks on a peer."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
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
    Message,
    Stop,
    Welcome,
    WireError,
    decode,
    encode,
)  # fmt: skip

_log = logging.getLogger(__name__)

RECEIVE_HIGH_WATER_MARK: Final = 1000
"""Messages per peer that wait in memory. Large enough that input is hardly ever stopped: over ipc, what a peer sent
before it closed is lost while input is stopped (libzmq issue 4660)."""

MESSAGES_AT_ONCE: Final = 200
"""Messages taken before time-driven work gets its turn."""

LOOPBACK: Final = ("127.", "localhost", "[::1]", "::1")


class ReceiverError(RuntimeError):
    """The socket cannot be opened as asked; the message says why and what would do."""


class Receiver:
    """Listens on ``endpoints`` and gives each message to ``take(route, message)``, which returns the answers.

    ``count(kind, seconds)`` is told how long a message took, ``reject(reason)`` of what could not be read.
    Raises :class:`ReceiverError` when an endpoint is refused, in use or not reachable.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        take: Callable[[bytes, Message], list[tuple[bytes, Welcome | Ack | Stop]]],
        count: Callable[[str, float], None],
        reject: Callable[[str], None],
        insecure_tcp: bool = False,
    ) -> None:
        self._take, self._count, self._reject = take, count, reject
        self._resources = ExitStack()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._resources.callback(self._context.destroy, linger=0)
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
            self.endpoints = [self._bind(endpoint, insecure_tcp) for endpoint in endpoints]
        except BaseException:
            self._resources.close()
            raise

    def _bind(self, endpoint: str, insecure_tcp: bool) -> str:
        if endpoint.startswith("ipc://"):
            self._guard(Path(endpoint.removeprefix("ipc://")))
        elif not insecure_tcp and not _is_loopback(endpoint):
            raise ReceiverError(
                f"{endpoint} can be reached from other machines and there are no keys; listen on 127.0.0.1, "
                "or pass --insecure-tcp if the network is yours alone"
            )
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ReceiverError(f"cannot listen on {endpoint}: {error}") from error
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        return bound.decode().rstrip("\0") if isinstance(bound, bytes) else endpoint

    def _guard(self, path: Path) -> None:
        """Own the socket's directory and lock it: a second bind to an ipc path would silently steal it."""
        if len(str(path)) > 107:
            raise ReceiverError(f"ipc path of {len(str(path))} characters, the system allows 107: {path}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = path.parent.stat()
        except OSError as error:
            raise ReceiverError(f"cannot use {path.parent}: {error.strerror}") from error
        if owner.st_uid != os.getuid() and stat.S_IMODE(owner.st_mode) & 0o022:
            raise ReceiverError(f"{path.parent} belongs to user {owner.st_uid} and others may write to it")
        try:
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ReceiverError(f"cannot lock {path}: {error.strerror}") from error
        self._resources.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ReceiverError(f"another daemon listens on {path}") from error

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives, at most so long; return whether something did."""
        return bool(self._socket.poll(int(seconds * 1000), zmq.POLLIN))

    def drain(self) -> int:
        """Take what has arrived, up to :data:`MESSAGES_AT_ONCE` messages; return how many it was."""
        for taken in range(MESSAGES_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return taken
            self._one(frames)
        return MESSAGES_AT_ONCE

    def _one(self, frames: Sequence[zmq.Frame]) -> None:
        started = time.perf_counter()
        if len(frames) > MAX_TENSORS + 2:
            self._reject("frames")
            return
        route = frames[0].bytes
        try:
            message = decode([frame.buffer for frame in frames[1:]])
        except WireError as error:
            self._reject(error.reason)
            _log.debug("unreadable message: %s", error)
            return
        self.send(self._take(route, message))
        self._count(message.kind, time.perf_counter() - started)

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


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).netloc.rpartition(":")[0]
    return host.startswith(LOOPBACK)
