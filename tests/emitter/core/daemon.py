"""The daemon's end of the wire as it is, in the test's own process."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from typing import Any

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.receiver import Receiver
from vqwatch_rules import Engine, load


class Daemon:
    """The daemon's receiver and hub, driven by hand."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vqa")
        self.endpoint = f"ipc://{self._folder.name}/s"
        self.taken: list[Any] = []
        self.received: Counter[str] = Counter()
        self.rejected: list[str] = []
        self.hub = Hub(Book("anything"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
        self.receiver = Receiver([self.endpoint], take=self._take, count=self.hub.count, reject=self.rejected.append)

    def _take(self, route: bytes, message: Any) -> Any:
        self.taken.append(message)
        self.received[message.kind] += 1
        return self.hub.receive(route, message, time.time())

    def of(self, kind: str, step: int) -> list[Any]:
        return [message for message in self.taken if message.kind == kind and message.step == step]

    def turn(self) -> None:
        if self.receiver.wait(0.002):
            while self.receiver.drain():
                pass
        self.receiver.send(self.hub.tick(time.time()))

    def close(self) -> None:
        self.receiver.close()
        self._folder.cleanup()
