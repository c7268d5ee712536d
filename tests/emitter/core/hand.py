"""A daemon's side of the wire that a test drives by hand (a real ROUTER, no thread), and a small training loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import zmq
from torch import Tensor, nn

import vqwatch
from vqwatch.wire import MUST_ARRIVE, Ack, Stop, Welcome, decode_each, encode, unbundle

DTYPES = {
    "bool": "?",
    "u8": "u1",
    "i16": "<i2",
    "i32": "<i4",
    "i64": "<i8",
    "f16": "<f2",
    "bf16": "<u2",
    "f32": "<f4",
    "f64": "<f8",
}


def array(tensor: Any) -> np.ndarray:
    """Return a wire tensor as an array; bf16 as its bits."""
    return np.frombuffer(tensor.data, DTYPES[tensor.dtype]).reshape(tensor.shape)


class Peer:
    """Receives when told to.

    ``applied`` has what a daemon would have applied: in order, once; ``seen`` has everything.
    """

    def __init__(self, endpoint: str, *, answers: bool = True, receive_at_most: int = 1000) -> None:
        self.endpoint = endpoint
        self.answers = answers
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.RCVHWM, receive_at_most)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.seen: list[Any] = []
        self.applied: list[Any] = []
        self.expected: dict[str, int] = {}
        self.routes: dict[str, bytes] = {}
        self.lost = 0

    def take(self, milliseconds: int = 0, at_most: int = 1 << 30) -> Peer:
        """Take what has come, waiting for each next message at most so long; a bundle counts as one."""
        while at_most and self.socket.poll(milliseconds):
            identity, *frames = self.socket.recv_multipart()
            for parts in unbundle(frames):
                for message in decode_each(parts):
                    self._receive(identity, message)
            at_most -= 1
        return self

    def _receive(self, identity: bytes, message: Any) -> None:
        self.seen.append(message)
        session = message.origin.session
        self.routes[session] = identity
        if message.kind not in MUST_ARRIVE:
            self.applied.append(message)
            return
        if session not in self.expected:
            if message.kind != "hello":
                self.say(Welcome(session, "peer", 0))
                return
            self.expected[session] = max(message.seq, message.first)
            if message.first > message.seq:
                self.applied.append(message)
        expected = self.expected[session]
        if message.seq > expected and message.first > expected:
            self.lost += message.first - expected
            expected = self.expected[session] = message.first
        if message.seq > expected:
            self.say(Welcome(session, "peer", expected))
            return
        if message.seq == expected:
            self.applied.append(message)
            self.expected[session] = expected + 1
        if message.kind == "hello":
            self.say(Welcome(session, "peer", self.expected[session]))
        self.say(Ack(session, self.expected[session] - 1))

    def say(self, message: Any) -> None:
        """Send something to the session that it names."""
        if self.answers:
            self.socket.send_multipart([self.routes[message.session], *encode(message)])

    def stop(self, reason: str) -> None:
        """Ask every session to stop."""
        for session in self.routes:
            self.say(Stop(session, reason))

    def of(self, kind: str) -> list[Any]:
        """Return what was applied of one kind."""
        return [message for message in self.applied if message.kind == kind]

    def kinds(self) -> Counter[str]:
        """Return how many of each kind were applied."""
        return Counter(message.kind for message in self.applied)

    def close(self) -> None:
        """Go away."""
        self.socket.close(0)
        self.context.term()


def until(condition: Callable[[], bool], turn: Callable[[], Any], seconds: float = 10.0) -> None:
    """Take turns until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        turn()
        time.sleep(0.001)


def settle(emitter: vqwatch.Emitter, peer: Peer) -> None:
    """Let everything arrive and be acknowledged."""
    until(lambda: emitter.flush(0.0), lambda: peer.take(1))
    peer.take(20)


class Quantizer(nn.Module):
    """The proposal's codebook, updated by moving averages."""

    embedding: Tensor
    ema_cluster_size: Tensor
    ema_w: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.decay = 0.9
        self.register_buffer("embedding", torch.randn(size, dim))
        self.register_buffer("ema_cluster_size", torch.ones(size))
        self.register_buffer("ema_w", self.embedding.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.cdist(x.detach(), self.embedding).argmin(-1)
        quantized = self.embedding[indices].clone()
        if self.training:
            with torch.no_grad():
                hot = nn.functional.one_hot(indices.flatten(), len(self.embedding)).float()
                self.ema_cluster_size.lerp_(hot.sum(0), 0.1)
                self.ema_w.lerp_(hot.T @ x.detach().flatten(0, -2), 0.1)
                self.embedding.copy_(self.ema_w / self.ema_cluster_size.clamp(min=1e-5)[:, None])
        return quantized, indices


class Model(nn.Module):
    """A residual autoencoder of two layers."""

    def __init__(self, size: int = 16, dim: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Linear(dim, dim)
        self.layers = nn.ModuleList([Quantizer(size, dim), Quantizer(size, dim)])
        self.decoder = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        residual, total, indices = hidden, torch.zeros_like(hidden), []
        for layer in self.layers:
            quantized, chosen = layer(residual)
            total, residual = total + quantized, residual - quantized
            indices.append(chosen)
        return self.decoder(hidden + (total - hidden).detach()), torch.stack(indices, -1), residual


class Loop:
    """A training loop of that model; every ``step`` returns what the emitter may be told."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.random = torch.Generator().manual_seed(seed)

    def step(self) -> dict[str, Any]:
        features = torch.randn(3, 5, 8, generator=self.random)
        mask = torch.rand(3, 5, generator=self.random) > 0.2
        self.optimizer.zero_grad()
        reconstructed, codes, residual = self.model(features)
        recon, vq = (reconstructed - features).square().mean(), residual.square().mean()
        (recon + vq).backward()
        self.optimizer.step()
        return {
            "losses": {"total": recon + vq, "recon": recon, "vq": vq},
            "codes": codes,
            "original": features,
            "reconstructed": reconstructed,
            "mask": mask,
        }
