"""What is sent of steps that were taken together: by a form or without, whole or in parts, and where it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.emitter.core.alike import CODES, ORIGIN, SIZES, Alike, Slot, plan
from tests.emitter.core.hand import Peer, array, until

from vqwatch.backlog import Backlog
from vqwatch.batch import Regular
from vqwatch.complaints import Complaints
from vqwatch.link import Link
from vqwatch.outbox import Outbox
from vqwatch.telling import Teller
from vqwatch.wire import Hello, Message, Step, encode


class Line:
    """An outbox with a link that has introduced itself to the peer."""

    def __init__(self, peer: Peer, messages: int = 1000, send_bytes: int = 8 << 20) -> None:
        complaints = Complaints()
        self.dropped, self.peer = complaints.dropped, peer
        self.backlog = Backlog(messages, 1 << 20)
        self.link = Link(
            peer.endpoint, ORIGIN.session, time.monotonic(), self.dropped, backlog=self.backlog, send_bytes=send_bytes
        )
        self.outbox = Outbox(ORIGIN, self.link, plan(), complaints)
        self.link.introduce(lambda seq, first: encode(Hello(ORIGIN, seq, first, 0, 1, ())), time.monotonic())
        self.arrive()
        peer.applied.clear()
        self.alike = Alike(["total", "vq"], ["aux"], True, 1)
        self.filled = 0
        fill = self.link.filled

        def noted(*arguments: Any) -> Any:
            loans = fill(*arguments)
            self.filled += loans is not None
            return loans

        self.link.filled = noted  # type: ignore[method-assign]  # notes whether it was of use, and is it

    def arrive(self) -> None:
        until(lambda: self.backlog.acknowledged, lambda: (self.link.turn(time.monotonic()), self.peer.take(1)))
        self.peer.take(20)

    def send_all(self, in_part: bool) -> None:
        while self.outbox.pending:
            self.outbox.send(time.monotonic(), in_part)

    def send(self, first: int, parts: tuple[int, ...] = (0, 1, 2)) -> Regular:
        batch = self.alike.batch(first, 3, list(parts), False, first)
        self.outbox.add(batch)
        self.outbox.send(time.monotonic())
        slot: Any = batch.slot
        assert (slot.released, len(self.outbox.pending)) == (1, 0)
        return batch


@pytest.fixture
def line(peer: Peer) -> Iterator[Line]:
    made = Line(peer)
    yield made
    made.link.close()


def losses_of(batches: list[Regular]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for batch in batches:
        slot: Any = batch.slot
        found += zip(batch._steps, slot.given[::3], strict=True)
    return found


def arrived(peer: Peer) -> list[tuple[int, float]]:
    return [(message.step, message.losses["total"]) for message in peer.of("step")]


def test_batches_alike_arrive_in_order_whether_filled_in_or_not(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3, 6, 9)]
    line.arrive()
    assert (line.filled, line.dropped) == (3, {})
    assert arrived(peer) == losses_of(batches)
    assert [message.seq for message in peer.of("step")] == list(range(2, 14))
    codes = peer.of("codes")
    assert [(message.step, message.seq) for message in codes] == [(step, step + 1) for step in range(12)]
    assert [array(message.indices)[0, 0] for message in codes] == [0, 64, 128] * 4
    assert line.outbox.last_step == 11


def test_what_is_sent_in_parts_arrives_whole(line: Line, peer: Peer) -> None:
    batches = [line.alike.batch(first, 3, [0, 1, 2], False, first) for first in (0, 3, 6)]
    for batch in batches:
        line.outbox.add(batch)
    parts = []
    while line.outbox.pending:
        waiting = len(line.outbox.pending)
        assert line.outbox.send(time.monotonic(), in_part=True) is not None
        parts.append(waiting - len(line.outbox.pending))
    making = len(parts) - 5
    assert making > 6
    assert parts == [0, 0, 1, *[0] * making, 1, 1], "taken apart, made, sent; a form, and what it is for; filled in"
    line.arrive()
    assert (line.filled, arrived(peer), line.dropped) == (2, losses_of(batches), {})
    assert [message.step for message in peer.of("codes")] == list(range(9))


def test_a_batch_whose_steps_differ_is_sent_in_parts(line: Line, peer: Peer) -> None:
    before, batch = line.send(0), line.alike.batch(3, 10, [*range(10)], True, 0)
    apart = batch.apart()
    for odd in apart.steps[1::2]:
        odd._known = {**odd._known, "other": 0.25}
    line.outbox.add(apart)
    calls = 0
    while line.outbox.pending:
        assert (apart.telling is not None and apart.telling.made) == min(3 * max(calls - 1, 0), 10)
        line.outbox.send(time.monotonic(), in_part=True)
        calls += 1
    slot: Any = batch.slot
    assert (calls, slot.released) == (6, 1), "begun, ten messages in three calls of three and one of one, sent"
    line.arrive()
    assert (arrived(peer), line.dropped) == (losses_of([before, batch]), {})
    assert [len(message.losses) for message in peer.of("step")][3:] == [3, 4] * 5
    assert [(message.step, message.seq) for message in peer.of("codes")] == [(step, step + 1) for step in range(13)]
    (sizes,) = peer.of("codebooks")
    assert sizes.step == 12


def test_arrays_that_cannot_be_told_are_counted_and_the_rest_of_the_batch_arrives(line: Line, peer: Peer) -> None:
    def fails(_entry: Any, _seq: int) -> Message:
        raise RuntimeError("on purpose")

    batch = line.alike.batch(0, 3, [0, 1, 2], True, 0)
    apart = batch.apart()
    apart.steps[-1].outgoing = [("codes", CODES), ("samples", fails), ("codebooks", SIZES)]
    line.outbox.add(apart)
    line.send_all(in_part=True)
    line.arrive()
    assert (arrived(peer), line.dropped) == (losses_of([batch]), {"samples:RuntimeError": 1})
    assert [message.step for message in peer.of("codes")] == [0, 1, 2]
    assert len(peer.of("codebooks")) == 1


def test_what_was_filled_in_and_lost_is_told_again(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3)]
    line.arrive()
    lost = line.send(6)
    until(lambda: peer.socket.poll(100) > 0, lambda: None)
    peer.socket.recv_multipart()
    batches += [lost, line.send(9)]
    line.arrive()
    assert line.filled == 3
    assert arrived(peer) == losses_of(batches)


def test_a_daemon_that_forgot_the_session_is_told_again_what_was_filled_in(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    line.arrive()
    batches = [line.send(6), line.send(9)]
    peer.expected.clear()
    line.arrive()
    assert line.filled == 3
    assert arrived(peer)[-6:] == losses_of(batches)
    assert len(peer.of("hello")) == 1, "it was introduced again"


def test_where_the_backlog_is_full_nothing_is_filled_in_and_the_loss_is_counted(peer: Peer) -> None:
    line = Line(peer, messages=8)
    batches = [line.send(first) for first in (0, 3)]
    line.arrive()
    assert line.filled == 1
    batches += [line.send(first) for first in (6, 9, 12)]
    assert (line.filled, line.dropped["step:backlog"]) == (3, 3)
    line.arrive()
    told = [message.step for message in peer.of("step")]
    assert told == sorted(set(told))
    assert told[-3:] == [12, 13, 14]
    line.link.close()


def test_where_something_waits_to_be_sent_nothing_is_filled_in_before_it(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3)]
    line.backlog.add(lambda seq, first: encode(Step(ORIGIN, seq, first, 0, 6, {"total": 0.5})))
    line.send(7)
    line.arrive()
    assert line.filled == 1
    assert [step for step, _ in arrived(peer)] == [*(step for step, _ in losses_of(batches)), 6, 7, 8, 9]


def test_without_a_daemon_codes_are_counted_and_steps_are_kept(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    line.link.writable = False
    batch = line.send(6)
    assert (line.filled, line.dropped) == (1, {"codes:busy_peer": 3})
    line.arrive()
    assert arrived(peer)[-3:] == losses_of([batch])


@pytest.mark.parametrize(
    ("owner", "method", "apart"),
    [(Slot, "place", False), (Slot, "tensors", True), (Slot, "tensors", False), (Teller, "steps", True)],
)
@pytest.mark.parametrize("in_part", [False, True])
def test_an_error_while_a_batch_is_told_costs_that_batch_and_no_slot(
    line: Line, peer: Peer, owner: type, method: str, apart: bool, in_part: bool
) -> None:
    def fails(*_arguments: Any) -> Any:
        raise RuntimeError("on purpose")

    before = line.send(0)
    batch = line.alike.batch(3, 3, [0, 1, 2], False, 3)
    slot: Any = batch.slot
    broken: Any = slot if owner is Slot else line.outbox._teller
    setattr(broken, method, fails)
    line.outbox.add(batch.apart() if apart else batch)
    with pytest.raises(RuntimeError, match="on purpose"):
        line.send_all(in_part)
    assert (slot.released, len(line.outbox.pending)) == (1, 0)
    delattr(broken, method)
    after = [line.send(first) for first in (6, 9)]
    line.arrive()
    assert arrived(peer) == losses_of([before, *after])


def test_numbers_that_a_form_is_not_for_are_told_without_it(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    more = line.alike.batch(6, 3, [0, 1, 2], False, 6)
    more._rates[1] = [0.5, 0.25]
    line.outbox.add(more)
    line.outbox.send(time.monotonic())
    line.arrive()
    assert line.filled == 1
    assert arrived(peer)[6:] == losses_of([more])
    assert [list(message.learning_rates.values()) for message in peer.of("step")][7] == [0.5, 0.25]
