"""Many ranks in one process: real sockets, real messages of a standard step, no training.

    python -m tests.benchmarks.simulated_ranks ENDPOINT '{"ranks": [0, 2], "world_size": 4, "rate": 10, "seconds": 5}'

All ranks speak at the same moments, as those of a synchronous training do. A scalar message that the socket does not
take waits and goes first later, a codes message is dropped and counted, as the emitter does it. Now and then a rank
repeats its hello behind its latest step: the answer comes when everything before it has been applied, which is how
long a message takes to be seen. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zmq

from vqwatch.wire import Codes, Hello, Layer, Origin, Step, Tensor, Welcome, decode, encode

LAYERS: Final = tuple(Layer(str(index), "ema", 256, 1024, decay=0.99, threshold=2.0) for index in range(8))
NAMES: Final = tuple(layer.name for layer in LAYERS)
SHAPE: Final = (8, 16, 500)
PROBES_PER_SECOND: Final = 20.0
LAST_WORD_SECONDS: Final = 20.0


@dataclass
class Rank:
    """One rank: its socket, its numbers, and what waits for the socket."""

    origin: Origin
    socket: zmq.Socket[bytes]
    hello: list[Any]
    seq: int = 1
    codes: int = 0
    dropped: int = 0
    waiting: deque[list[Any]] = field(default_factory=deque)
    asked_at: float = 0.0

    def send(self, frames: list[Any]) -> bool:
        """Hand a message to the socket; return False when it takes none."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def must_arrive(self, frames: list[Any]) -> None:
        """Send, in order, what waits and then this; what does not go waits on."""
        self.waiting.append(frames)
        while self.waiting and self.send(self.waiting[0]):
            self.waiting.popleft()

    def step(self, step: int, indices: Tensor) -> None:
        """Report a step: scalars, then codes."""
        self.seq += 1
        now = time.time_ns()
        losses = {"total": 1.0 + 0.1 * (step % 7), "recon": 0.8, "vq": 0.2}
        energy = {name: 0.5 ** (row + 1) for row, name in enumerate(NAMES)}
        first = self.seq - len(self.waiting)
        self.must_arrive(encode(Step(self.origin, self.seq, first, now, step, losses, 1.5, {}, {"0": 1e-3}, 1.0, energy,
                                     None, {}, {}, 0.001)))  # fmt: skip
        if self.waiting or not self.send(encode(Codes(self.origin, self.codes + 1, now, step, NAMES, indices))):
            self.dropped += 1
        else:
            self.codes += 1

    def probe(self) -> None:
        """Ask for an answer that comes when everything sent so far was applied."""
        if not self.asked_at and not self.waiting and self.send(self.hello):
            self.asked_at = time.perf_counter()

    def hear(self) -> float | None:
        """Read what came back; return how long the answer to the probe took, if it is here."""
        delay = None
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return delay
            if self.asked_at and isinstance(decode(frames), Welcome):
                delay, self.asked_at = time.perf_counter() - self.asked_at, 0.0


def connect(context: zmq.Context[Any], endpoint: str, run: str, number: int, world_size: int) -> Rank:
    """Return a rank that has said hello and was welcomed."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    origin = Origin(run, number, f"{run}-{number}")
    rank = Rank(origin, socket, encode(Hello(origin, 1, 1, time.time_ns(), world_size, LAYERS)))
    rank.send(rank.hello)
    return rank


def speak(endpoint: str, run: str, numbers: list[int], world_size: int, rate: float, seconds: float) -> dict[str, Any]:
    """Let the ranks train ``rate`` steps a second for so long; return what it took."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    rng = np.random.default_rng(numbers[0])
    batches = [Tensor("i16", SHAPE, rng.integers(0, 256, SHAPE, dtype=np.int16).tobytes()) for _ in range(16)]
    ranks = [connect(context, endpoint, run, number, world_size) for number in numbers]
    for rank in ranks:
        rank.socket.poll(30_000)
        rank.hear()
    began = time.perf_counter()
    delays: list[float] = []
    steps, probes = round(rate * seconds), 0
    for step in range(steps):
        due = began + step / rate
        while (left := due - time.perf_counter()) > 0:
            delays += _heard(ranks)
            time.sleep(min(left, 0.002))
        for rank in ranks:
            rank.step(step, batches[(step + rank.origin.rank) % len(batches)])
            if probes < (time.perf_counter() - began) * PROBES_PER_SECOND:
                rank.probe()
                probes += 1
        delays += _heard(ranks)
    while time.perf_counter() < began + steps / rate:
        delays += _heard(ranks)
        time.sleep(0.002)
    took = time.perf_counter() - began
    for rank in ranks:
        rank.asked_at = 0.0
    deadline = time.perf_counter() + LAST_WORD_SECONDS
    while any(rank.waiting or not rank.asked_at for rank in ranks) and time.perf_counter() < deadline:
        for rank in ranks:
            while rank.waiting and rank.send(rank.waiting[0]):
                rank.waiting.popleft()
            rank.probe()
        time.sleep(0.01)
    while any(rank.asked_at for rank in ranks) and time.perf_counter() < deadline:
        _heard(ranks)
        time.sleep(0.01)
    unheard = sum(bool(rank.asked_at or rank.waiting) for rank in ranks)
    context.destroy(linger=0)
    return {"steps": steps, "seconds": took, "dropped": sum(rank.dropped for rank in ranks), "delays": delays,
            "unheard": unheard}  # fmt: skip


def _heard(ranks: list[Rank]) -> list[float]:
    return [delay for rank in ranks if rank.asked_at for delay in [rank.hear()] if delay is not None]


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    print(json.dumps(speak(sys.argv[1], given["run"], given["ranks"], given["world_size"], given["rate"],
                           given["seconds"])))  # fmt: skip
