"""What the checks of ``gpu_checks.py`` share: a daemon's side of the wire in this process, and how to attach to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import zmq
from workload import Training

import vqwatch
from vqwatch.wire import Ack, Hello, Welcome, decode_each, encode, unbundle

CUDA = torch.device("cuda")


class Peer:
    """A daemon in this process: keeps every message, acknowledges what must arrive."""

    def __init__(self, folder: str) -> None:
        self.endpoint = f"ipc://{folder}/peer.sock"
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.bind(self.endpoint)
        self.messages: list[Any] = []

    def take(self, milliseconds: int = 0) -> None:
        """Take what has come, waiting for the first message at most so long."""
        while self.socket.poll(milliseconds):
            identity, *received = self.socket.recv_multipart()
            for frames in unbundle(received):
                for message in decode_each(frames):
                    self.messages.append(message)
                    if isinstance(message, Hello):
                        self.socket.send_multipart([identity, *encode(Welcome(message.origin.session, "peer", 2))])
                    if hasattr(message, "first"):
                        self.socket.send_multipart([identity, *encode(Ack(message.origin.session, message.seq))])

    def of(self, kind: type) -> list[Any]:
        """Return the messages of one kind."""
        return [message for message in self.messages if isinstance(message, kind)]


def watched(peer: Peer, training: Training, optimizers: Any = None, **options: Any) -> vqwatch.Emitter:
    """Attach and wait for the connection."""
    optimizers = optimizers or training.optimizer
    watch = vqwatch.attach(training.model, optimizers, endpoint=peer.endpoint, run="gpu", **options)
    peer.take(1000)
    return watch


def array(tensor: Any, dtype: str) -> np.ndarray:
    """Return a wire tensor as an array."""
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


EVERYTHING = dict.fromkeys(("codes", "clusters", "codebooks", "reconstruction", "gradients", "energies"), 1)
