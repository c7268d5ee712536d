"""A TCP proxy on loopback that can be slow, swallow everything, or cut its connections: a network that fails."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Self


class Proxy:
    """Forwards to ``port``; a context manager. Set ``frozen`` for a black hole, ``bytes_per_second`` to be slow."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.frozen = False
        self.bytes_per_second: float | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join(5.0)
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Close every connection."""
        for one in list(self._peers):
            one.close()
        self._peers.clear()

    def _run(self) -> None:
        self._listener.settimeout(0.0)
        while not self._stopping:
            self._accept()
            with selectors.DefaultSelector() as ready:
                ready.register(self._listener, selectors.EVENT_READ)
                if not self.frozen:
                    for one in self._peers:
                        ready.register(one, selectors.EVENT_READ)
                for key, _ in ready.select(0.02):
                    if key.fileobj is not self._listener:
                        self._forward(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        try:
            inside, _ = self._listener.accept()
        except OSError:
            return
        try:
            outside = socket.create_connection(("127.0.0.1", self._target), timeout=1.0)
        except OSError:
            inside.close()
            return
        self._peers[inside], self._peers[outside] = outside, inside

    def _forward(self, source: socket.socket) -> None:
        target = self._peers.get(source)
        if target is None:
            return
        size = 65536 if self.bytes_per_second is None else max(1, int(self.bytes_per_second * 0.02))
        try:
            data = source.recv(size)
            if data:
                target.settimeout(1.0)
                target.sendall(data)
        except OSError:
            data = b""
        if self.bytes_per_second is not None:
            time.sleep(len(data) / self.bytes_per_second)
        if not data:
            for one in (source, target):
                self._peers.pop(one, None)
                one.close()
