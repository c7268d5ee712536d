"""A stand-in for the daemon in benchmarks: takes every message, acknowledges, counts. Run as its own process.

``python sink.py ENDPOINT`` prints "ready", and at the end of its standard input one JSON line: messages and bytes by
kind, and gaps in the numbering of must-arrive messages.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence

import zmq

from vqwatch.wire import MUST_ARRIVE, Ack, Frame, Origin, Welcome, WireError, decode, encode, unbundle


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
    owed: dict[str, bytes] = {}

    def take(identity: bytes, frames: Sequence[Frame]) -> None:
        nonlocal gaps, unreadable
        try:
            message = decode(frames)
        except WireError:
            unreadable += 1
            return
        counts[message.kind] += 1
        sizes[message.kind] += sum(map(len, frames))
        origin: Origin | None = getattr(message, "origin", None)
        if message.kind not in MUST_ARRIVE or origin is None:
            return
        seq = message.seq  # type: ignore[union-attr]
        wanted = expected.setdefault(origin.session, 1)
        if message.kind == "hello":
            router.send_multipart([identity, *encode(Welcome(origin.session, "sink", 2))])
        if seq == wanted:
            expected[origin.session] = seq + 1
        elif seq > wanted:
            gaps += 1
            router.send_multipart([identity, *encode(Welcome(origin.session, "sink", wanted))])
            return
        owed[origin.session] = identity
        if seq % 16 == 0 or seq < wanted or message.kind != "step":
            router.send_multipart([identity, *encode(Ack(origin.session, expected[origin.session] - 1))])
            del owed[origin.session]

    while True:
        events = dict(poller.poll(20 if owed else None))
        if not events:  # a pause: acknowledge what is left over
            for session, route in owed.items():
                router.send_multipart([route, *encode(Ack(session, expected[session] - 1))])
            owed.clear()
        if router in events:
            identity, *received = router.recv_multipart()
            counts["received"] += 1
            for frames in unbundle(received):
                take(identity, frames)
        elif events and not os.read(sys.stdin.fileno(), 1):
            break
    print(json.dumps({"messages": counts, "bytes": sizes, "gaps": gaps, "unreadable": unreadable}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
