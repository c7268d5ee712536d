"""The daemon's side of the wire, without the daemon: a ROUTER that acknowledges and keeps what it could decode."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from vqwatch import wire


class Receiver:
    """Listens on an ipc socket while it is open; ``messages`` are complete once the emitter was flushed and closed."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/receiver.sock"
        self.messages: list[Any] = []
        self.stop: str | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.endpoint)
        self._ends, self._end = (self._context.socket(zmq.PAIR) for _ in range(2))
        self._ends.bind("inproc://end")
        self._end.connect("inproc://end")
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.send(b"")
        self._thread.join(10)
        self._context.destroy(linger=0)

    def _listen(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._ends, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._socket in ready:
                peer, *frames = self._socket.recv_multipart()
                for parts in wire.unbundle(frames):
                    for message in wire.decode_each(parts):
                        self._take(peer, message)
            elif self._ends in ready:
                return

    def _take(self, peer: bytes, message: Any) -> None:
        self.messages.append(message)
        if message.kind not in wire.MUST_ARRIVE:
            return
        session = message.origin.session
        if message.kind == "hello":
            self._send(peer, wire.Welcome(session, "test", message.seq + 1))
        self._send(peer, wire.Ack(session, message.seq))
        if self.stop is not None and message.kind == "step":
            self._send(peer, wire.Stop(session, self.stop))

    def _send(self, peer: bytes, message: Any) -> None:
        self._socket.send_multipart([peer, *wire.encode(message)])

    # --- what arrived -------------------------------------------------------------------------------------------------

    def of(self, kind: str, step: int | None = None) -> list[Any]:
        """Return the messages of a kind, of one step if it is given."""
        return [m for m in self.messages if m.kind == kind and (step is None or m.step == step)]

    def codes(self, step: int) -> dict[str, list[NDArray[Any]]]:
        """Return what was assigned in a step: for each layer one array per forward pass."""
        found: dict[str, list[NDArray[Any]]] = {}
        for message in self.of("codes", step):
            for layer, row in zip(message.layers, array(message.indices), strict=True):
                found.setdefault(layer, []).append(row)
        return found

    def codebooks(self, step: int) -> dict[tuple[str, str], NDArray[Any]]:
        """Return the snapshot of a step by layer and field."""
        return {key: array(t) for message in self.of("codebooks", step) for key, t in message.tensors.items()}


_NUMPY = {"u8": "u1", "i8": "i1", "i16": "<i2", "i32": "<i4", "i64": "<i8", "f16": "<f2", "f32": "<f4", "f64": "<f8"}


def array(tensor: wire.Tensor) -> NDArray[Any]:
    """Return a tensor from the wire as an array."""
    return np.frombuffer(tensor.data, _NUMPY[tensor.dtype]).reshape(tensor.shape)


def meet(watch: Any, seconds: float = 20.0) -> None:
    """Wait until the daemon's end has answered, so that nothing of the first step is left out.

    ``flush()`` alone gives up soon where nobody answers, which on a busy machine may only not have happened yet.
    """
    deadline = time.monotonic() + seconds
    while not watch.flush(seconds):
        assert time.monotonic() < deadline, "nobody answers"
        time.sleep(0.01)
