"""A stand-in for the daemon in benchmarks: takes every message, acknowledges as it does, counts. Runs by itself.

``python sink.py ENDPOINT`` prints "ready", and at the end of its standard input one JSON line: messages and bytes by
kind, and gaps in the numbering of must-arrive messages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

import zmq

from vqwatch.wire import MUST_ARRIVE, Ack, Frame, Message, Origin, Welcome, WireError, decode_each, encode, unbundle

ACKNOWLEDGE_EVERY = 64
"""Messages that may pass before one acknowledgement covers them all; what is left over gets one every second."""


def main(endpoint: str) -> None:
    """Serve until standard input ends."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    print("ready", flush=True)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    expected: dict[str, int] = {}
    gaps = unreadable = 0
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    acknowledged: dict[str, int] = {}
    routes: dict[str, bytes] = {}

    def acknowledge(session: str) -> None:
        if acknowledged.get(session, 0) < expected[session] - 1:
            acknowledged[session] = expected[session] - 1
            router.send_multipart([routes[session], *encode(Ack(session, acknowledged[session]))])

    def read(identity: bytes, frames: Sequence[Frame]) -> None:
        nonlocal unreadable
        try:
            messages = decode_each(frames)
        except WireError:
            unreadable += 1
            return
        sizes[messages[0].kind] += sum(map(len, frames))
        for message in messages:
            take(identity, message)

    def take(identity: bytes, message: Message) -> None:
        nonlocal gaps
        origin: Origin | None = getattr(message, "origin", None)
        if message.kind not in MUST_ARRIVE or origin is None:
            counts[message.kind] += 1
            return
        seq = message.seq  # type: ignore[union-attr]
        session = origin.session
        routes[session] = identity
        wanted = expected.setdefault(session, 1)
        if message.kind == "hello":
            router.send_multipart([identity, *encode(Welcome(session, "sink", 2))])
        if seq < wanted:
            acknowledged.pop(session, None)
        elif seq == wanted:
            counts[message.kind] += 1
            expected[session] = seq + 1
        else:
            gaps += 1
            router.send_multipart([identity, *encode(Welcome(session, "sink", wanted))])
            return
        if seq < wanted or message.kind != "step" or seq - acknowledged.get(session, 0) >= ACKNOWLEDGE_EVERY:
            acknowledge(session)

    turned = time.monotonic()
    while True:
        events = dict(poller.poll(1000))
        if time.monotonic() - turned >= 1.0:
            turned = time.monotonic()
            for session in expected:
                acknowledge(session)
        if router in events:
            identity, *received = router.recv_multipart()
            counts["received"] += 1
            for frames in unbundle(received):
                read(identity, frames)
        elif events and not os.read(sys.stdin.fileno(), 1):
            break
    print(json.dumps({"messages": counts, "bytes": sizes, "gaps": gaps, "unreadable": unreadable}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
