"""The process of one sink: ``python -m vqwatch_daemon.sinks.child KIND TARGET FD``.

Reads batches of records from the socket, writes them, and answers each with how many were written and what went wrong.
Ends when it is told to, when the daemon is gone, and in any case soon after either.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, Protocol, cast

from vqwatch_daemon.sinks.outlet import receive, send
from vqwatch_daemon.sinks.records import Record, unpack

LAST_SECONDS: Final = 20.0
"""How long a sink may take to end once the daemon is gone."""

MODULES: Final[Mapping[str, str]] = {
    "wandb": "vqwatch_daemon.sinks.to_wandb",
    "tensorboard": "vqwatch_daemon.sinks.to_tensorboard",
    "mlflow": "vqwatch_daemon.sinks.to_mlflow",
    "jsonl": "vqwatch_daemon.sinks.to_jsonl",
}
"""Each has ``open_sink(target) -> Sink``."""


class Sink(Protocol):
    """Writes records somewhere. May wait and may raise: it has a process of its own."""

    def write(self, record: Record) -> None:
        """Write one record."""
        ...

    def flush(self) -> None:
        """See to it that what was written outlives this process; called after each batch."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


def serve(connection: socket.socket, open_sink: Callable[[str], Sink], target: str) -> None:
    """Answer until told to close, or until the daemon is gone."""
    try:
        sink = open_sink(target)
    except Exception as error:  # whatever a library raises, the daemon is told
        send(connection, [0, _text(error)])
        return
    send(connection, [0, ""])
    while True:
        try:
            command, batch = receive(connection)
        except OSError:
            timer = threading.Timer(LAST_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()
            sink.close()
            return
        if command == "close":
            sink.close()
            send(connection, [0, ""])
            return
        written, error_text = _write(sink, [unpack(data) for data in batch])
        send(connection, [written, error_text])


def _write(sink: Sink, records: list[Record]) -> tuple[int, str]:
    written = 0
    error_text = ""
    try:
        for record in records:
            sink.write(record)
            written += 1
    except Exception as error:  # whatever a library raises, the daemon is told
        error_text = _text(error)
    try:
        sink.flush()
    except Exception as error:  # nothing of this batch is safe then
        return 0, _text(error)
    return written, error_text


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def main(kind: str, target: str, descriptor: str) -> None:
    """Serve one sink."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's; it tells us when to end
    connection = socket.socket(fileno=int(descriptor))
    module: Any = import_module(MODULES[kind])
    serve(connection, cast("Callable[[str], Sink]", module.open_sink), target)
    os._exit(0)  # what libraries do at exit may hang, and the sink is closed


if __name__ == "__main__":
    main(*sys.argv[1:])
