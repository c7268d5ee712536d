"""Steps and arrays that a link sends as one message: they arrive in order, whatever becomes of one of the arrays."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.emitter.core.hand import Peer, array, until
from tests.messages import Memory, codes_of_steps

from vqwatch.backlog import Backlog
from vqwatch.link import Link, Make
from vqwatch.wire import (
    Codes,
    Hello,
    Origin,
    Step,
    Tensor,
    Unpacked,
    encode,
    encode_step,
    unpacked,
)

ORIGIN = Origin("test", 0, "s1")


class Slot(Memory):
    """Memory that holds the codes of some steps."""

    def __init__(self, steps: int, spare: int = 4096) -> None:
        super().__init__(np.arange(steps * 64, dtype=np.int16).reshape(steps, 1, 64), spare)

    def _codes(self, step: int, at: int, seq: int) -> Codes:
        return Codes(ORIGIN, seq, 0, step, ("0",), Tensor("i16", (1, 64), self.parts[at]))

    def make(self, step: int, at: int) -> Make:
        return lambda seq: unpacked(self._codes(step, at, seq))

    def make_each(self, steps: range) -> Make:
        """Return what makes one message of the codes of steps that begin with this slot."""
        return lambda seq: codes_of_steps([self._codes(step, at, seq + at) for at, step in enumerate(steps)])


def step(number: int) -> Callable[[int, int], list[Any]]:
    return lambda seq, first: encode(Step(ORIGIN, seq, first, 0, number, {"total": float(number)}))


def as_one(*numbers: int) -> Callable[[int, int], list[Any]]:
    losses = {"losses": {"total": [float(number) for number in numbers]}}
    return lambda seq, first: encode_step(ORIGIN, seq, first, [0] * len(numbers), numbers, losses)


def cannot_be_made(_seq: int) -> Unpacked:
    raise ValueError("no such array")


def was_left_out(_seq: int) -> Unpacked:
    raise KeyError("codebooks")


class Line:
    """A link that has introduced itself to the peer."""

    def __init__(self, peer: Peer, send_bytes: int) -> None:
        self.dropped: Counter[str] = Counter()
        self.backlog = Backlog(1000, 1 << 20)
        self.peer = peer
        self.link = Link(
            peer.endpoint, "s1", time.monotonic(), self.dropped, backlog=self.backlog, send_bytes=send_bytes
        )
        self.link.introduce(lambda seq, first: encode(Hello(ORIGIN, seq, first, 0, 1, ())), time.monotonic())
        self.arrive()
        peer.applied.clear()

    def arrive(self) -> None:
        until(lambda: self.backlog.acknowledged, lambda: (self.link.turn(time.monotonic()), self.peer.take(1)))
        self.peer.take(20)

    def together(self, steps: list[int], arrays: list[tuple[str, Any]], slot: Slot) -> None:
        self.send([(step(number), 1) for number in steps], [(kind, make, 1) for kind, make in arrays], slot)

    def send(self, messages: list[tuple[Any, int]], arrays: list[tuple[str, Any, int]], slot: Slot) -> None:
        self.link.hold(messages)
        self.link.together(arrays, slot, time.monotonic(), len(messages))


@pytest.fixture(params=[8 << 20, 0], ids=["as one message", "one by one"])
def line(peer: Peer, request: pytest.FixtureRequest) -> Iterator[Line]:
    """A link with room for bundles, and one that has none and sends what must arrive alone."""
    made = Line(peer, request.param)
    yield made
    made.link.close()


def told(peer: Peer, kind: str) -> list[int]:
    return [message.step for message in peer.of(kind)]


@pytest.mark.parametrize("spare", [0, 4096], ids=["index before the data", "index behind it"])
def test_steps_sent_as_one_message_arrive_as_steps(peer: Peer, spare: int) -> None:
    line, slot = Line(peer, 8 << 20), Slot(3, spare)
    line.together([5, 6, 7], [("codes", slot.make(number, number - 5)) for number in (5, 6, 7)], slot)
    until(lambda: peer.socket.poll(100) > 0, lambda: None)
    peer.take(0, at_most=1)
    assert (told(peer, "step"), told(peer, "codes")) == ([5, 6, 7], [5, 6, 7])
    assert [array(message.indices)[0, 0] for message in peer.of("codes")] == [0, 64, 128]
    assert (line.link.sent, line.dropped) == (Counter(codes=3), {})
    line.link.close()


def test_steps_told_as_one_have_a_number_each(line: Line, peer: Peer) -> None:
    slot = Slot(4)
    line.send([(as_one(0, 1, 2), 3), (step(3), 1)], [("codes", slot.make_each(range(4)), 4)], slot)
    assert (line.backlog.following, len(line.backlog)) == (6, 4), "the introduction was the first"
    line.arrive()
    assert [(message.seq, message.losses["total"]) for message in peer.of("step")] == [
        (2, 0.0), (3, 1.0), (4, 2.0), (5, 3.0),
    ]  # fmt: skip
    came = peer.of("codes")
    if not line.link.sent:
        assert (came, line.dropped) == ([], {"codes:send_bytes": 4})
        return
    assert [(message.seq, message.step, array(message.indices)[0, 0]) for message in came] == [
        (1, 0, 0), (2, 1, 64), (3, 2, 128), (4, 3, 192),
    ]  # fmt: skip
    assert (line.link.sent, line.dropped) == (Counter(codes=4), {})


@pytest.mark.parametrize("between", ["nothing", "sent", "waits"])
def test_steps_made_before_go_with_their_arrays(peer: Peer, between: str) -> None:
    line, slot = Line(peer, 8 << 20), Slot(3)
    if between == "waits":
        line.backlog.add(step(7))
    line.link.hold([(as_one(0, 1), 2), (step(2), 1)])
    assert not peer.socket.poll(100), "nothing is sent yet"
    if between == "sent":
        line.link._send_backlog(time.monotonic(), at_most=9)  # as when the daemon is listened to
    line.link.together([("codes", slot.make_each(range(3)), 3)], slot, time.monotonic(), held=2)
    parts = 0
    while peer.socket.poll(200):
        peer.take(0, at_most=1)
        parts += 1
    assert parts == {"nothing": 1, "sent": 3, "waits": 4}[between]
    assert told(peer, "step") == ([7] if between == "waits" else []) + [0, 1, 2]
    assert (told(peer, "codes"), line.link.sent, line.dropped) == ([0, 1, 2], Counter(codes=3), {})
    line.arrive()
    assert told(peer, "step")[-3:] == [0, 1, 2], "none is sent twice"
    line.link.close()


def test_codes_of_several_steps_go_alone_where_something_waits_before_their_steps(peer: Peer) -> None:
    line, slot = Line(peer, 8 << 20), Slot(3)
    line.backlog.add(step(7))
    line.send([(as_one(0, 1, 2), 3)], [("codes", slot.make_each(range(3)), 3)], slot)
    line.arrive()
    until(lambda: len(peer.of("codes")) == 3, lambda: peer.take(1))
    assert (told(peer, "step"), told(peer, "codes"), line.link.sent) == ([7, 0, 1, 2], [0, 1, 2], Counter(codes=3))
    line.link.close()


def test_of_codes_of_several_steps_that_cannot_be_made_each_is_counted(line: Line, peer: Peer) -> None:
    line.send([(as_one(0, 1), 2)], [("codes", cannot_be_made, 2)], Slot(2))
    line.arrive()
    assert (told(peer, "step"), line.link.sent, line.dropped["codes:ValueError"]) == ([0, 1], Counter(), 2)


def test_steps_told_as_one_are_told_again_from_any_of_them(peer: Peer) -> None:
    line, slot = Line(peer, 8 << 20), Slot(1)
    line.send([(as_one(0, 1, 2), 3)], [], slot)
    until(lambda: peer.socket.poll(100) > 0, lambda: None)
    peer.socket.recv_multipart()  # lost, but for the first
    peer.expected[line.link.session] = 3
    line.together([3], [], slot)
    line.arrive()
    assert told(peer, "step") == [1, 2, 3]
    line.link.close()


def test_an_array_that_cannot_be_made_holds_up_no_step(line: Line, peer: Peer) -> None:
    slot = Slot(2)
    line.together([0, 1], [("codes", cannot_be_made), ("codebooks", was_left_out), ("codes", slot.make(1, 1))], slot)
    assert line.backlog.sent_all
    line.arrive()
    assert told(peer, "step") == [0, 1]
    room = line.link.sent["codes"]
    assert told(peer, "codes") == [1] * room
    assert line.dropped == Counter({"codes:ValueError": 1, "codes:send_bytes": 1 - room}) + Counter()


def test_where_no_array_can_be_made_nothing_is_sent(line: Line, peer: Peer) -> None:
    slot = Slot(1)
    line.together([], [("codes", cannot_be_made)], slot)
    line.together([0], [("codes", cannot_be_made)], slot)
    line.arrive()
    assert (told(peer, "step"), told(peer, "codes")) == ([0], [])
    assert (line.link.sent, line.dropped) == (Counter(), {"codes:ValueError": 2})
