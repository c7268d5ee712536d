"""One sink as the daemon sees it: a bounded queue, a thread, and a process that can be given up.

The thread hands the process batches over a socket and waits for their acknowledgement, for a bounded time. A sink that
fails, hangs or dies is killed with everything it started and begun again after a back-off; the batch is sent again, so
a record may be written twice and is lost only where that is counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgpack

from vqwatch_daemon.sinks.records import LARGEST_FRAME_BYTES, Record, pack, size

_log = logging.getLogger(__name__)

MOST_VALUES: Final = 400_000
"""Values that wait in one queue: about 40 MB, and a quarter of an hour of a run with 8 layers."""
BATCH_RECORDS: Final = 64
START_SECONDS: Final = 120.0
"""How long a sink may take to begin: wandb asks its server, and imports are slow on a busy machine."""
PATIENCE_SECONDS: Final = 60.0
BACK_OFF_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
MOST_TRIES: Final = 5
"""How often a sink may refuse one record, by an error of its own, before the record is left out."""

_LENGTH: Final = struct.Struct("<I")


class SinkFailed(RuntimeError):
    """A sink did not do what it should; ``written`` records of the batch were written before that."""

    def __init__(self, text: str, *, written: int = 0, refused: bool = False) -> None:
        super().__init__(text)
        self.written = written
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Counts:
    """What an outlet has done: records written and dropped (queue full, refused, left at the end), failures."""

    written: int = 0
    full: int = 0
    refused: int = 0
    closed: int = 0
    failures: int = 0
    queued: int = 0
    up: bool = False


class Outlet:
    """A sink named ``kind``, which writes to ``target``. :meth:`put` never waits; every failure stays in here."""

    def __init__(
        self,
        kind: str,
        target: str,
        *,
        most_values: int = MOST_VALUES,
        patience: float = PATIENCE_SECONDS,
        back_off: tuple[float, ...] = BACK_OFF_SECONDS,
    ) -> None:
        self.kind = kind
        self._target = target
        self._most = most_values
        self._waiting_values = 0
        self._patience = patience
        self._back_off = back_off
        self._queue: deque[Record] = deque()
        self._wake = threading.Condition()
        self._counts = Counts()
        self._ending: float | None = None
        self._process: Process | None = None
        self._tries = 0
        self._thread = threading.Thread(target=self._work, name=f"sink-{kind}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record; when the queue is full the oldest ones go, counted."""
        with self._wake:
            if self._ending is not None:
                return
            self._waiting_values += size(record)
            self._queue.append(record)
            while self._waiting_values > self._most and len(self._queue) > 1:
                self._take_first()
                self._counts = replace(self._counts, full=self._counts.full + 1)
            self._wake.notify()

    def _take_first(self) -> None:
        self._waiting_values -= size(self._queue.popleft())

    def counts(self) -> Counts:
        """Return what was done so far."""
        with self._wake:
            return replace(self._counts, queued=len(self._queue), up=self._process is not None)

    @property
    def pid(self) -> int | None:
        """The sink's process, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def finish(self, deadline: float) -> None:
        """Begin to end: write what is queued until ``deadline`` (monotonic), then give up. Does not wait."""
        with self._wake:
            self._ending = deadline
            self._wake.notify()

    def join(self, deadline: float) -> None:
        """Wait for the end until ``deadline``; then the process is killed and what is queued counts as dropped."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        process = self._process
        if process is not None:
            process.kill()
        with self._wake:
            self._counts = replace(self._counts, closed=self._counts.closed + len(self._queue))
            self._queue.clear()
            self._waiting_values = 0

    # --- on the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        failed = 0
        while True:
            batch = self._next_batch()
            if not batch:
                break
            try:
                self._write(batch)
                failed = 0
            except Exception as error:  # this thread must live: a sink's failure, or a record that cannot be packed
                failure = error if isinstance(error, SinkFailed) else SinkFailed(repr(error), refused=True)
                self._settle(batch, failure, first=failed == 0)
                failed += 1
                if not self._pause(self._back_off[min(failed, len(self._back_off)) - 1]):
                    break
        self._end_process()

    def _next_batch(self) -> list[Record]:
        """Wait for records and return the oldest ones, still queued; none when it is time to end."""
        with self._wake:
            while not self._queue and self._ending is None:
                self._wake.wait()
            if self._ending is not None and time.monotonic() >= self._ending:
                return []
            return list(islice(self._queue, BATCH_RECORDS))

    def _write(self, batch: list[Record]) -> None:
        if self._process is None:
            self._process = Process(self.kind, self._target)
            self._process.start(self._within(START_SECONDS))
        written = self._process.write([pack(record) for record in batch], self._within(self._patience))
        self._done(batch, written)
        self._tries = 0

    def _within(self, seconds: float) -> float:
        deadline = time.monotonic() + seconds
        ending = self._ending
        return deadline if ending is None else min(deadline, ending)

    def _done(self, batch: list[Record], written: int) -> None:
        with self._wake:
            for record in batch[:written]:
                if self._queue and self._queue[0] is record:  # else it went when the queue was full, and was counted
                    self._take_first()
            self._counts = replace(self._counts, written=self._counts.written + written)

    def _settle(self, batch: list[Record], failure: SinkFailed, first: bool) -> None:
        if first:
            _log.warning("sink %s: %s; it is begun again, and what is queued waits", self.kind, failure)
        self._discard()
        self._done(batch, failure.written)
        self._tries = 1 if failure.written else self._tries + failure.refused
        refused = 0
        with self._wake:
            if self._tries >= MOST_TRIES and self._queue and self._queue[0] is batch[failure.written]:
                self._take_first()
                self._tries, refused = 0, 1
            counts = self._counts
            self._counts = replace(counts, refused=counts.refused + refused, failures=counts.failures + 1)

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.close_socket()
            self._process = None

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; return False when it is time to end instead."""
        deadline = time.monotonic() + seconds
        with self._wake:
            while (left := self._left(deadline)) > 0:
                self._wake.wait(left)
            return self._ending is None or time.monotonic() < self._ending

    def _left(self, deadline: float) -> float:
        return (deadline if self._ending is None else min(deadline, self._ending)) - time.monotonic()

    def _end_process(self) -> None:
        if self._process is not None:
            with contextlib.suppress(SinkFailed):
                self._process.close(self._within(START_SECONDS))
            self._discard()


class Process:
    """A sink's process and the socket to it. Every wait has a deadline (monotonic seconds)."""

    def __init__(self, kind: str, target: str) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [sys.executable, "-m", "vqwatch_daemon.sinks.child", kind, target, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise SinkFailed(f"its process cannot be started: {error}") from error
        finally:
            theirs.close()
        self.pid = self._process.pid

    def start(self, deadline: float) -> None:
        """Wait until the sink says that it is ready."""
        try:
            self._answer(deadline)
        except SinkFailed as failure:
            raise SinkFailed(f"cannot begin: {failure}") from failure

    def write(self, records: list[bytes], deadline: float) -> int:
        """Have records written; return how many, which is all of them. Raises :class:`SinkFailed`."""
        self._send(["write", records], deadline)
        return int(self._answer(deadline))

    def close(self, deadline: float) -> None:
        """Have the sink finish what it does at the end."""
        self._send(["close", []], deadline)
        self._answer(deadline)

    def _send(self, message: list[Any], deadline: float) -> None:
        data = msgpack.packb(message)
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except TimeoutError as error:
            raise SinkFailed("does not read what it is sent") from error
        except OSError as error:
            raise SinkFailed(f"its process is gone: {error}") from error

    def _answer(self, deadline: float) -> int:
        try:
            message = receive(self._socket, deadline)
        except TimeoutError as error:
            raise SinkFailed("hangs: no answer in time") from error
        except OSError as error:
            raise SinkFailed(f"its process is gone: {error}") from error
        written, error_text = message
        if error_text:
            raise SinkFailed(str(error_text), written=int(written), refused=True)
        return int(written)

    def kill(self) -> None:
        """End the process and everything that it started, at once."""
        for pid in [*_descendants(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)

    def close_socket(self) -> None:
        """Let go of the socket; by the thread that uses it."""
        self._socket.close()


def receive(connection: socket.socket, deadline: float | None = None) -> list[Any]:
    """Return the next message of the other side. Raises TimeoutError, and OSError when the other side is gone."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if size > LARGEST_FRAME_BYTES:
        raise OSError(f"a message of {size} bytes")
    message: list[Any] = msgpack.unpackb(_exactly(connection, size, deadline))
    return message


def send(connection: socket.socket, message: list[Any]) -> None:
    """Send a message to the other side, waiting for as long as that takes."""
    data = msgpack.packb(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the other side closed")
        parts += part
    return bytes(parts)


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did; wandb's service has its own session."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
