"""Sends an evaluation to a running daemon, as an emitter would, and waits until the daemon has all of it.

The session says of itself that it is an evaluator, so the daemon does not take it for a rank of the training.
"""

from __future__ import annotations

import os
import socket as hosts
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from uuid import uuid4

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.auth import load_certificate

from vqwatch.wire import (
    MAX_RANKS,
    Ack,
    Evaluation,
    Frame,
    Goodbye,
    Hello,
    Layer,
    Origin,
    Tensor,
    Welcome,
    WireError,
    decode,
    encode,
)
from vqwatch_daemon.evaluate.forward import Sample

RANK: Final = MAX_RANKS - 1
"""A rank that no training has."""
PIECE_BYTES: Final = 8 << 20
WINDOW_BYTES: Final = 32 << 20
"""What may be on its way unacknowledged."""
AGAIN_SECONDS: Final = 1.0
KEY_LENGTH: Final = 40
_DTYPES: Final = {"bool": "bool", "int16": "i16", "int32": "i32", "int64": "i64", "float32": "f32", "float64": "f64"}


class Keys(NamedTuple):
    """CURVE keys: the daemon's public one, and the own pair."""

    server: bytes
    public: bytes
    secret: bytes


class PushError(RuntimeError):
    """The daemon did not take the whole evaluation; nothing of it counts there."""


class Push:
    """One evaluation on its way: ``with Push(...) as push: push.add(sample)``.

    Raises :class:`PushError` when the daemon is silent for ``timeout`` seconds or began anew meanwhile. Leaving the
    block with an exception abandons the evaluation.
    """

    def __init__(
        self,
        endpoint: str,
        run: str,
        step: int,
        sizes: Sequence[int],
        *,
        name: str = "checkpoint",
        timeout: float = 10.0,
        keys: Keys | None = None,
    ) -> None:
        if keys is None and not _stays_here(endpoint):
            raise PushError(f"{endpoint} leaves this machine without CURVE keys: set VQWATCH_SERVER_KEY")
        self._origin = Origin(run, RANK, uuid4().hex[:16])
        self._step, self._name, self._timeout = step, name, timeout
        self._endpoint = endpoint
        self._layers = tuple(Layer(str(number), "ema", int(size), 0) for number, size in enumerate(sizes))
        self._seq = 0
        self._parts = 0
        self._waiting: deque[tuple[int, list[Frame], int]] = deque()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        self._socket.connect(endpoint)

    def __enter__(self) -> Self:
        info = {"role": "evaluator"}
        self._send(
            lambda seq, first: Hello(
                self._origin, seq, first, time.time_ns(), 1, self._layers, host=hosts.gethostname()[:255],
                pid=os.getpid(), info=info,
            )
        )  # fmt: skip
        self._settle(0)
        self._part("begin", 0)
        return self

    def add(self, sample: Sample) -> None:
        """Send one batch, in pieces; its losses go with the first."""
        size = sum(array.nbytes for array in (sample.original, sample.reconstructed))
        count = len(sample.original)
        each = max(1, min(count, count * PIECE_BYTES // max(1, size)))
        scalars = {f"loss_{name}": value for name, value in sample.losses.items()}
        for start in range(0, count, each):
            chosen = slice(start, start + each)
            fields = {"original": sample.original[chosen], "reconstructed": sample.reconstructed[chosen]}
            if sample.mask is not None:
                fields["mask"] = sample.mask[chosen]
            layers: tuple[str, ...] = ()
            if sample.codes is not None:
                fields["codes"] = sample.codes[:, chosen].astype(np.int32)
                layers = tuple(layer.name for layer in self._layers)
            tensors = {name: _tensor(array) for name, array in fields.items()}
            self._part("batch", self._parts, layers=layers, scalars=scalars, **tensors)
            self._parts += 1
            scalars = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._part("end", self._parts)
                self._goodbye()
                self._settle(0)
            elif kind is not PushError:
                self._timeout = min(self._timeout, 2.0)
                self._part("abandon", self._parts)
                self._goodbye()
                self._settle(0)
        except PushError:
            if kind is None:
                raise
        finally:
            self._socket.close()

    def _goodbye(self) -> None:
        self._send(lambda seq, first: Goodbye(self._origin, seq, first, time.time_ns(), self._step, "evaluated"))

    def _part(self, phase: str, batch: int, **more: Any) -> None:
        self._send(
            lambda seq, first: Evaluation(
                self._origin, seq, first, time.time_ns(), self._step, phase, self._name, batch, **more
            )
        )

    def _send(self, make: Callable[[int, int], Hello | Evaluation | Goodbye]) -> None:
        self._seq += 1
        first = self._waiting[0][0] if self._waiting else self._seq
        frames = encode(make(self._seq, first))
        size = sum(memoryview(frame).nbytes for frame in frames)
        self._settle(max(0, WINDOW_BYTES - size))
        self._waiting.append((self._seq, frames, size))
        self._hand_over(frames)

    def _hand_over(self, frames: list[Frame]) -> None:
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(int(left * 1000) + 1, zmq.POLLOUT):
            try:
                self._socket.send_multipart(frames, zmq.DONTWAIT)
                return
            except zmq.Again:  # the daemon went, or refused our key, since we asked
                continue
        raise PushError(f"no daemon takes messages at {self._endpoint}")

    def _settle(self, most_bytes: int) -> None:
        """Wait until at most so many bytes are unacknowledged."""
        heard = asked = time.monotonic()
        while sum(size for _, _, size in self._waiting) > most_bytes:
            now = time.monotonic()
            if now - heard > self._timeout:
                raise PushError(f"the daemon at {self._endpoint} does not answer")
            if self._socket.poll(100, zmq.POLLIN):
                heard = asked = now
                self._hear()
            elif now - asked > AGAIN_SECONDS and self._waiting:
                asked = now
                self._hand_over(self._waiting[0][1])  # answered by what the daemon lacks

    def _hear(self) -> None:
        try:
            answer = decode(self._socket.recv_multipart())
        except WireError:
            return
        if isinstance(answer, Ack):
            while self._waiting and self._waiting[0][0] <= answer.seq:
                self._waiting.popleft()
        elif isinstance(answer, Welcome):
            held = [frames for seq, frames, _ in self._waiting if seq >= answer.next]
            if answer.next == 0 or (self._waiting and answer.next < self._waiting[0][0]):
                raise PushError("the daemon began anew and has lost the first part of this evaluation")
            for frames in held:
                self._hand_over(frames)


def keys(environment: Mapping[str, str]) -> Keys | None:
    """Return the keys that ``VQWATCH_SERVER_KEY`` and ``VQWATCH_KEY_FILE`` name, None without the former.

    Raises :class:`PushError` for keys that cannot be used.
    """
    server, own = environment.get("VQWATCH_SERVER_KEY", ""), environment.get("VQWATCH_KEY_FILE", "")
    if not server:
        return None
    try:
        if own:
            public, secret = load_certificate(own)
        else:
            public, secret = zmq.curve_keypair()
    except (OSError, ValueError) as error:
        raise PushError(f"VQWATCH_KEY_FILE: {error}") from error
    if secret is None or len(server) != KEY_LENGTH:
        raise PushError(
            f"VQWATCH_SERVER_KEY is {KEY_LENGTH} characters of Z85, and VQWATCH_KEY_FILE holds a secret key"
        )
    return Keys(server.encode(), public, secret)


def _stays_here(endpoint: str) -> bool:
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return not endpoint.startswith("tcp://") or host in ("localhost", "::1") or host.startswith("127.")


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype.name not in _DTYPES:
        array = array.astype(np.float32)
    return Tensor(_DTYPES[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes())
