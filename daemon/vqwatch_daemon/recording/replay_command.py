"""``vqwatch replay``: plays a recording into a daemon, as fast as it happened or at another speed.

Messages bear the time at which they are played: by their own, every recording of yesterday would be of a training that
has stood still since.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import zmq

from vqwatch.wire import MUST_ARRIVE, Ack, WireError, decode, default_endpoint, encode
from vqwatch_daemon.recording.files import RecordingError, Renumber, Said, read

WAIT_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vqwatch replay``."""
    parser.add_argument("recording", type=Path)
    parser.add_argument("--to", default=None, metavar="ENDPOINT", help="the daemon's endpoint")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as it happened; 0: as fast as it goes")
    parser.add_argument("--run", default=None, help="under another run's name")


def run(arguments: argparse.Namespace) -> int:
    """Play it; 0 when the daemon has acknowledged everything, 1 when it did not answer, 2 for a bad file."""
    endpoint = arguments.to or default_endpoint(os.environ)
    renumber = Renumber(arguments.run, suffix=f"-{uuid4().hex[:8]}")
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 64)
    socket.connect(endpoint)
    sent = 0
    owed: dict[str, int] = {}
    began = None
    started = time.monotonic()
    try:
        for now, message in read(arguments.recording):
            changed = renumber(message)
            if changed is None:
                continue
            began = now if began is None else began
            if arguments.speed > 0:
                time.sleep(max(0.0, (now - began) / arguments.speed - (time.monotonic() - started)))
            if not socket.poll(int(WAIT_SECONDS * 1000), zmq.POLLOUT):
                sys.stderr.write(f"vqwatch replay: no daemon takes messages at {endpoint}\n")
                return 1
            socket.send_multipart(encode(_dated(changed, now, arguments.speed)))
            sent += 1
            if changed.kind in MUST_ARRIVE:
                owed[changed.origin.session] = changed.seq
            _hear(socket, owed, 0)
    except RecordingError as error:
        sys.stderr.write(f"vqwatch replay: {error}\n")
        return 2
    deadline = time.monotonic() + WAIT_SECONDS
    while owed and time.monotonic() < deadline:
        _hear(socket, owed, 100)
    sys.stderr.write(f"{sent} messages played in {time.monotonic() - started:.1f} s\n")
    if owed:
        sys.stderr.write(f"vqwatch replay: no acknowledgement of the last messages from {endpoint}\n")
    return 1 if owed else 0


def _dated(message: Said, arrived: float, speed: float) -> Said:
    """Return the message as if it were said now; how long it took to arrive is kept, in the replay's time."""
    underway = arrived * 1e9 - message.time_ns if message.time_ns and speed > 0 else 0.0
    return replace(message, time_ns=max(0, time.time_ns() - int(underway / (speed or 1.0))))


def _hear(socket: zmq.Socket[bytes], owed: dict[str, int], milliseconds: int) -> None:
    """Take the daemon's acknowledgements; a session is settled when its last message is acknowledged."""
    while socket.poll(milliseconds, zmq.POLLIN):
        try:
            answer = decode(socket.recv_multipart())
        except WireError:
            continue
        if isinstance(answer, Ack) and owed.get(answer.session, -1) <= answer.seq:
            owed.pop(answer.session, None)
        milliseconds = 0
