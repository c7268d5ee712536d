from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from tests.emitter.core.hand import Peer, array, until

from vqwatch.backlog import Backlog
from vqwatch.errands import LISTEN_SECONDS, MOST_UNHEARD_CALLS
from vqwatch.link import PATIENCE_SECONDS, Link
from vqwatch.schedule import SLOW_STEP_SECONDS
from vqwatch.settings import Keys
from vqwatch.wire import (
    Ack,
    Codes,
    Goodbye,
    Hello,
    Origin,
    Stop,
    Tensor,
    Unpacked,
    Welcome,
    decode,
    encode,
    unpacked,
)
from vqwatch_daemon.app import TICK_SECONDS
from vqwatch_daemon.delivery import Book

ORIGIN = Origin("test", 0, "s1")


def hello(seq: int, first: int) -> list[Any]:
    return encode(Hello(ORIGIN, seq, first, 0, 1, ()))


def numbered(step: int, padding: int = 0) -> Callable[[int, int], list[Any]]:
    """Return a message that must arrive, told from others by its step."""
    return lambda seq, first: encode(Goodbye(ORIGIN, seq, first, 0, step, "x" * padding))


def codes(nbytes: int, value: int = 0) -> Callable[[int], Unpacked]:
    data = np.full((1, nbytes // 2), value, np.int16)
    return lambda seq: unpacked(Codes(ORIGIN, seq, 0, 0, ("0",), Tensor("i16", data.shape, data.data)))


class Line:
    """A link and what it counts."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        self.dropped: Counter[str] = Counter()
        self.backlog = options.pop("backlog") if "backlog" in options else Backlog(1000, 1 << 20)
        send_bytes = options.pop("send_bytes", 8 << 20)
        self.link = Link(
            endpoint, "s1", time.monotonic(), self.dropped, backlog=self.backlog, send_bytes=send_bytes, **options
        )

    def turn(self, at_most: int = 1000) -> None:
        self.link.turn(time.monotonic(), at_most)

    def must_arrive(self, *steps: int) -> None:
        for step in steps:
            self.link.must_arrive("goodbye", numbered(step), time.monotonic())

    def acknowledged(self) -> bool:
        return self.backlog.acknowledged


@pytest.fixture
def lines() -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(endpoint: str, **options: Any) -> Line:
        made.append(Line(endpoint, **options))
        return made[-1]

    yield make
    for line in made:
        line.link.close()


@pytest.fixture
def line(lines: Callable[..., Line], peer: Peer) -> Line:
    """A link that has introduced itself to the peer."""
    made = lines(peer.endpoint)
    made.link.introduce(hello, time.monotonic())
    until(made.acknowledged, lambda: (made.turn(), peer.take(1)))
    peer.applied.clear()
    peer.seen.clear()
    return made


def steps(messages: list[Any]) -> list[int]:
    return [message.step for message in messages]


def test_what_must_arrive_arrives_in_order(line: Line, peer: Peer) -> None:
    line.must_arrive(*range(50))
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    assert steps(peer.applied) == list(range(50))


def test_nothing_is_sent_before_a_daemon_is_there_and_all_of_it_after(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    line = lines(endpoint)
    line.link.introduce(hello, time.monotonic())
    line.must_arrive(*range(30))
    line.turn()
    late = peers(endpoint)
    until(line.acknowledged, lambda: (line.turn(), late.take(1)))
    assert steps(late.of("goodbye")) == list(range(30))
    assert line.dropped == {}


def test_a_restarted_daemon_without_memory_gets_what_is_held_once_and_in_order(
    line: Line, peer: Peer, peers: Callable[..., Peer]
) -> None:
    line.must_arrive(*range(10))
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    peer.close()
    line.must_arrive(*range(10, 20))
    line.turn()
    again = peers(peer.endpoint)
    until(line.acknowledged, lambda: (line.turn(), again.take(1)))
    assert steps(again.of("goodbye")) == list(range(10, 20))
    assert [message.first for message in again.of("hello")] == [12]
    assert again.lost == 0


def test_a_restarted_daemon_with_memory_applies_nothing_twice(
    line: Line, peer: Peer, peers: Callable[..., Peer]
) -> None:
    line.must_arrive(*range(5))
    line.turn()
    until(lambda: len(peer.applied) == 5, lambda: peer.take(1))  # acknowledged, but nobody read the answers yet
    applied, expected = peer.applied, dict(peer.expected)
    peer.close()
    again = peers(peer.endpoint)
    again.expected, again.applied = expected, applied
    line.must_arrive(5, 6)
    until(line.acknowledged, lambda: (line.turn(), again.take(1)))
    assert steps(again.of("goodbye")) == [0, 1, 2, 3, 4, 5, 6]


def test_the_daemons_own_book_keeps_applies_each_message_once_over_restarts(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    line = lines(endpoint)
    line.link.introduce(hello, time.monotonic())
    book = Book("daemon")
    applied: list[int] = []

    def serve(peer: Peer) -> None:
        while peer.socket.poll(1):
            route, *frames = peer.socket.recv_multipart()
            message = decode(frames)
            verdict = book.receive(route, message)
            if verdict.apply and isinstance(message, Goodbye):
                applied.append(message.step)
                book.session(ORIGIN).closed = False  # type: ignore[union-attr]
            for reply in verdict.replies:
                peer.socket.send_multipart([route, *encode(reply)])
        book.ask_again()

    for life in range(6):
        peer = peers(endpoint)
        line.must_arrive(*range(20 * life, 20 * life + 20))
        deadline = time.monotonic() + 0.15 * life
        while time.monotonic() < deadline:
            line.turn()
            serve(peer)
        peer.close()
    last = peers(endpoint)
    until(line.acknowledged, lambda: (line.turn(), serve(last)))
    assert applied == list(range(120))


def test_a_silent_daemon_is_asked_again_by_the_oldest_message_ever_more_seldom(line: Line, peer: Peer) -> None:
    peer.answers = False
    started = time.monotonic()
    line.must_arrive(0, 1)
    line.turn()
    for tick in range(1, 160):
        line.link.turn(started + 0.1 * tick * PATIENCE_SECONDS)
    until(lambda: len(peer.seen) >= 6, lambda: peer.take(1))
    assert steps(peer.take(20).seen) == [0, 1, 0, 0, 0, 0]  # after 1, 2, 4 and 8 times the patience


def test_the_patience_outlasts_a_turn_of_the_daemon_and_one_of_the_training() -> None:
    assert PATIENCE_SECONDS > TICK_SECONDS + LISTEN_SECONDS + MOST_UNHEARD_CALLS * SLOW_STEP_SECONDS


def test_an_answer_to_an_introduction_makes_nothing_come_again(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    line, peer = lines(endpoint), peers(endpoint)
    line.link.introduce(hello, time.monotonic())
    line.must_arrive(*range(5))
    until(lambda: line.backlog.sent_all, line.turn)  # before anybody answers
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    assert [message.kind for message in peer.seen] == ["hello", *["goodbye"] * 5]


def test_an_answer_that_was_lost_is_asked_for_and_nothing_is_applied_twice(line: Line, peer: Peer) -> None:
    peer.answers = False
    line.must_arrive(0, 1, 2)
    until(lambda: len(peer.applied) == 3, lambda: (line.turn(), peer.take(1)))
    peer.answers = True
    line.link.turn(time.monotonic() + PATIENCE_SECONDS + 0.1)
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    assert steps(peer.applied) == [0, 1, 2]


def test_messages_that_were_pushed_out_are_known_to_be_lost(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    line = lines(endpoint, backlog=Backlog(10, 1 << 20))
    line.link.introduce(hello, time.monotonic())
    line.must_arrive(*range(25))
    peer = peers(endpoint)
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    assert steps(peer.of("goodbye")) == list(range(15, 25))
    assert line.dropped["goodbye:backlog"] == 16  # hello, and fifteen


def test_without_a_daemon_the_best_effort_is_none(lines: Callable[..., Line], endpoint: str) -> None:
    line = lines(endpoint)
    line.turn()
    assert line.link.best_effort("codes", codes(100)) is None
    assert line.dropped == {"codes:no_peer": 1}


def test_best_effort_messages_are_numbered_only_when_they_are_sent(line: Line, peer: Peer) -> None:
    line.turn()
    for value in range(5):
        assert line.link.best_effort("codes", codes(64, value)) is not None
    until(lambda: len(peer.applied) == 5, lambda: peer.take(1))
    assert [message.seq for message in peer.of("codes")] == [1, 2, 3, 4, 5]


def test_a_frozen_daemon_cannot_make_the_trainer_hold_more_than_the_budget(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    peer = peers(endpoint, receive_at_most=1)
    line = lines(endpoint, send_bytes=4 << 20)
    line.link.introduce(hello, time.monotonic())
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    held_at_most = accepted = 0
    for _ in range(200):
        line.turn()
        accepted += line.link.best_effort("codes", codes(1 << 20)) is not None
        held_at_most = max(held_at_most, line.link._dealer.held_bytes())
    assert held_at_most <= 4 << 20
    assert 0 < accepted < 20
    assert sum(line.dropped.values()) == 200 - accepted


def test_small_messages_to_a_frozen_daemon_are_bounded_too(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    peer = peers(endpoint, receive_at_most=1)
    line = lines(endpoint, send_bytes=1 << 20)
    line.link.introduce(hello, time.monotonic())
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    accepted = 0
    for _ in range(300):
        line.turn()
        accepted += line.link.best_effort("codes", codes(100_000)) is not None
    assert accepted * 100_000 < 3 << 20  # the budget, and what the kernel buffers
    assert line.dropped["codes:send_bytes"] + line.dropped["codes:busy_peer"] == 300 - accepted


def test_a_large_buffer_arrives_unchanged_when_it_is_used_again_after_its_loan(line: Line, peer: Peer) -> None:
    buffer = np.zeros((1, 1 << 20), np.int16)
    for value in range(6):
        buffer[:] = value
        line.turn()
        loans = line.link.best_effort(
            "codes",
            lambda seq: unpacked(Codes(ORIGIN, seq, 0, 0, ("0",), Tensor("i16", buffer.shape, buffer.data))),
        )
        assert loans
        until(lambda loans=loans: all(loan() is None for loan in loans), lambda: peer.take(1))
    until(lambda: len(peer.applied) == 6, lambda: peer.take(1))
    for value, message in enumerate(peer.of("codes")):
        assert (array(message.indices) == value).all()


def test_a_daemon_that_dies_with_half_a_message_on_the_wire_does_not_take_the_trainer_along(
    lines: Callable[..., Line], peers: Callable[..., Peer], endpoint: str
) -> None:
    for _ in range(20):
        peer = peers(endpoint, receive_at_most=1)
        line = lines(endpoint)
        line.link.introduce(hello, time.monotonic())
        until(line.acknowledged, lambda line=line, peer=peer: (line.turn(), peer.take(1)))
        while line.link.best_effort("codes", codes(1 << 20)) is not None:
            line.turn()
        line.must_arrive(1)
        line.link.close()
        peer.close()


def test_a_stop_request_is_heard(line: Line, peer: Peer) -> None:
    line.must_arrive(1)
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    peer.stop("CodebookCollapse")
    until(lambda: line.link.stop_reason is not None, line.turn)
    assert line.link.stop_reason == "CodebookCollapse"


def test_garbage_from_the_daemon_is_counted(line: Line, peer: Peer) -> None:
    line.must_arrive(1)
    until(line.acknowledged, lambda: (line.turn(), peer.take(1)))
    peer.socket.send_multipart([peer.routes["s1"], b"\xc1 garbage"])
    until(lambda: bool(line.dropped), line.turn)
    assert line.dropped == {"answer:header_format": 1}


def test_answers_for_another_session_change_nothing(line: Line, peer: Peer) -> None:
    peer.answers = False
    line.must_arrive(1)
    until(lambda: bool(peer.seen), lambda: (line.turn(), peer.take(1)))
    for answer in (Ack("other", 99), Welcome("other", "impostor", 0), Stop("other", "x")):
        peer.socket.send_multipart([peer.routes["s1"], *encode(answer)])
    for _ in range(20):
        line.turn()
        time.sleep(0.001)
    assert (line.acknowledged(), line.link.stop_reason, line.link.daemon) == (False, None, "peer")


def test_where_the_daemon_asks_for_a_message_the_replay_begins_at_once(line: Line, peer: Peer) -> None:
    peer.answers = False
    line.must_arrive(*range(5))  # numbers 2 to 6, after hello
    until(lambda: len(peer.seen) == 5, lambda: (line.turn(), peer.take(1)))
    peer.answers = True
    peer.say(Welcome("s1", "peer", 4))
    peer.answers = False
    now = time.monotonic()  # stands still: what comes again comes because it was asked for
    until(lambda: len(peer.seen) == 8, lambda: (line.link.turn(now), peer.take(1)))
    assert steps(peer.seen) == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.alone
def test_waiting_ends_at_once_where_no_daemon_ever_was(lines: Callable[..., Line], endpoint: str) -> None:
    line = lines(endpoint)
    line.must_arrive(1)
    started = time.monotonic()
    assert line.link.wait(time.monotonic, started + 10.0) is False
    assert time.monotonic() - started < 1.0


def test_a_daemon_with_the_right_keys_is_reached_and_one_with_wrong_keys_is_not(peers: Callable[..., Peer]) -> None:
    public, secret = zmq.curve_keypair()
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.curve_secretkey, router.curve_publickey, router.curve_server = secret, public, True
    port = router.bind_to_random_port("tcp://127.0.0.1")
    heard = []
    for key in (public, zmq.curve_keypair()[0]):
        line = Line(f"tcp://127.0.0.1:{port}", keys=Keys(key))
        line.link.introduce(hello, time.monotonic())
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not router.poll(5):
            line.turn()
        heard.append(bool(router.poll(0)))
        while router.poll(0):
            router.recv_multipart()
        line.link.close()
    router.close(0)
    context.term()
    assert heard == [True, False]
