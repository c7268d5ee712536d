"""Runs the application under uvicorn, in a thread of its own, with limits that bad clients meet.

uvicorn limits neither how long a client may take over its first request nor how many clients may sit idle. Here a
connection that has not brought a whole request within :data:`FIRST_REQUEST_SECONDS` is closed, and beyond
:data:`MOST_CONNECTIONS` the longest idle one makes room, so that slow, idle and many clients do not stop a scrape.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

FIRST_REQUEST_SECONDS: Final = 10.0
KEEP_ALIVE_SECONDS: Final = 20
MOST_CONNECTIONS: Final = 512
SHUTDOWN_SECONDS: Final = 2


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which never ask, and the longest idle one when there are too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_unasked)
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._patience.cancel()
        super().connection_lost(exc)

    def _close_unasked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        idle = (
            item for item in self.connections if isinstance(item, PatientProtocol) and item is not self and item._idle()
        )
        oldest = min(idle, key=lambda item: item._patience.when(), default=None)
        if oldest is not None:
            oldest.transport.close()


class Server:
    """An HTTP server in a thread of its own.

    >>> async def hello(scope, receive, send):
    ...     await send({"type": "http.response.start", "status": 204})
    ...     await send({"type": "http.response.body"})
    >>> with Server(hello, port=0) as server:
    ...     server.port > 0
    True
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 9815, **options: Any) -> None:
        """Bind at once, so that a port in use raises OSError here and not in a thread.

        ``options`` go to :class:`uvicorn.Config` (``ssl_certfile`` and the like).
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(_config(app, options))
        self._stopping: threading.Event | None = getattr(getattr(app, "state", None), "stopping", None)
        self._thread = threading.Thread(target=self._run, name="vqwatch-http", daemon=True)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self, timeout: float = 10.0) -> None:
        """Start serving, if not done yet; raises RuntimeError when not up after ``timeout`` seconds."""
        if self._thread.is_alive():
            return
        self._thread.start()
        deadline = time.monotonic() + timeout
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the HTTP server on {self.host}:{self.port} did not start")
            time.sleep(0.01)

    def close(self, timeout: float = 5.0) -> None:
        """Stop serving and let the thread end; open event streams are cut after :data:`SHUTDOWN_SECONDS`."""
        if self._stopping is not None:
            self._stopping.set()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve(app: ASGIApp, host: str = "127.0.0.1", port: int = 9815, **options: Any) -> Server:
    """Return a started :class:`Server`; ``port`` 0 picks a free one, found in ``.port``."""
    server = Server(app, host, port, **options)
    server.start()
    return server


def _config(app: ASGIApp, options: dict[str, Any]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=1024,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
        **options,
    )
