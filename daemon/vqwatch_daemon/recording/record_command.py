"""``vqwatch record``: listens like a daemon, acknowledges, and only writes down."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path
from uuid import uuid4

from vqwatch.wire import Ack, Message, Stop, Welcome, default_endpoint
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.receiver import Receiver, ReceiverError
from vqwatch_daemon.recording.files import Recorder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vqwatch record``."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="for example run.vqrec")
    parser.add_argument("--listen", action="append", metavar="ENDPOINT", help="as for the daemon")
    parser.add_argument("--run", default="*", metavar="PATTERN", help="only runs of this name [all]")
    parser.add_argument("--max-megabytes", type=int, default=4096, help="per file, before compression [4096]")
    parser.add_argument("--max-files", type=int, default=8, help="files kept, the oldest goes [8]")


def run(arguments: argparse.Namespace) -> int:
    """Record until SIGTERM or SIGINT; 2 when that cannot be done as asked."""
    stopping = threading.Event()
    book = Book(uuid4().hex)
    rejected: dict[str, int] = {}
    try:
        recorder = Recorder(
            arguments.output, max_bytes=arguments.max_megabytes << 20, max_files=max(1, arguments.max_files)
        )
    except OSError as error:
        sys.stderr.write(f"vqwatch record: {error}\n")
        return 2

    def take(route: bytes, message: Message) -> list[tuple[bytes, Welcome | Ack | Stop]]:
        verdict = book.receive(route, message)
        wanted = not isinstance(message, (Welcome, Ack, Stop)) and fnmatchcase(message.origin.run, arguments.run)
        if verdict.apply and wanted:
            recorder.add(message, time.time())
        return [(route, reply) for reply in verdict.replies]

    def reject(reason: str) -> None:
        rejected[reason] = rejected.get(reason, 0) + 1

    try:
        receiver = Receiver(
            arguments.listen or [default_endpoint(os.environ)], take=take, count=lambda *_: None, reject=reject
        )
    except (ReceiverError, OSError) as error:
        recorder.close()
        sys.stderr.write(f"vqwatch record: {error}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    sys.stderr.write(f"recording {', '.join(receiver.endpoints)} to {arguments.output}\n")
    flushed = time.monotonic()
    while not stopping.is_set():
        if receiver.wait(0.1):
            receiver.drain()
        if time.monotonic() - flushed > 1.0:
            flushed = time.monotonic()
            recorder.flush()
            receiver.send(book.due())
            book.ask_again()
    receiver.close()
    recorder.close()
    sys.stderr.write(f"{recorder.messages} messages recorded, {sum(rejected.values())} unreadable\n")
    return 0
