"""In order, once, gaps asked for, losses counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.messages import Trainer

from vqwatch.wire import Ack, Goodbye, Hello, Origin, Step, Welcome
from vqwatch_daemon.delivery import ACKNOWLEDGE_EVERY, Book

ROUTE = b"peer"


def step(seq: int, first: int = 1, session: str = "s", rank: int = 0) -> Step:
    return Step(Origin("r", rank, session), seq, first, 0, seq)


def greeted(book: Book) -> Trainer:
    trainer = Trainer()
    assert book.receive(ROUTE, trainer.hello()).apply
    return trainer


def test_a_hello_is_welcomed_and_acknowledged() -> None:
    verdict = Book("d").receive(ROUTE, Trainer().hello())
    assert verdict.apply
    assert verdict.replies == (Welcome("s", "d", 2), Ack("s", 1))


def test_messages_of_an_unknown_session_are_asked_to_introduce_themselves() -> None:
    verdict = Book("d").receive(ROUTE, step(5))
    assert not verdict.apply
    assert verdict.replies == (Welcome("s", "d", 0),)
    assert verdict.refused == "unknown_session"


def test_a_message_that_comes_twice_is_applied_once_and_acknowledged_twice() -> None:
    book = Book("d")
    greeted(book)
    assert book.receive(ROUTE, step(2)).apply
    again = book.receive(ROUTE, step(2))
    assert not again.apply
    assert again.refused == "duplicate"
    assert again.replies == (Ack("s", 2),)


def test_a_gap_is_asked_for_once_and_not_applied() -> None:
    book = Book("d")
    greeted(book)
    verdict = book.receive(ROUTE, step(4))
    assert not verdict.apply
    assert verdict.replies == (Welcome("s", "d", 2),)
    assert book.receive(ROUTE, step(5)).replies == ()
    book.ask_again()
    assert book.receive(ROUTE, step(6)).replies == (Welcome("s", "d", 2),)


def test_what_the_emitter_no_longer_holds_is_counted_as_lost_and_the_rest_goes_on() -> None:
    book = Book("d")
    greeted(book)
    verdict = book.receive(ROUTE, step(7, first=7))
    assert verdict.apply
    assert verdict.lost == 5


def test_a_session_that_introduces_itself_to_a_new_daemon_lost_nothing() -> None:
    book = Book("d")
    again = Hello(Origin("r", 0, "s"), seq=1, first=40, time_ns=0, world_size=1, layers=())
    assert book.receive(ROUTE, again).apply
    verdict = book.receive(ROUTE, step(40, first=40))
    assert verdict.apply
    assert verdict.lost == 0


def test_steps_are_acknowledged_together_and_the_rest_on_request() -> None:
    book = Book("d")
    greeted(book)
    acknowledged = [seq for seq in range(2, 200) if book.receive(ROUTE, step(seq)).replies]
    assert acknowledged == [seq for seq in range(2, 200) if seq % ACKNOWLEDGE_EVERY == 1]
    assert book.due() == [(ROUTE, Ack("s", 199))]
    assert book.due() == []


def test_best_effort_gaps_are_losses_and_repeats_are_duplicates() -> None:
    book = Book("d")
    trainer = greeted(book)
    first, _, third = (trainer.codes(step, [[1]]) for step in (1, 2, 3))
    assert book.receive(ROUTE, first).apply
    assert book.receive(ROUTE, third).lost == 1
    assert book.receive(ROUTE, first).refused == "duplicate"


def test_a_goodbye_closes_the_session_and_its_room_is_given_to_a_newcomer() -> None:
    book = Book("d", most=1)
    trainer = greeted(book)
    assert book.receive(b"other", Trainer(session="t").hello()).refused == "too_many_sessions"
    assert book.receive(ROUTE, trainer.goodbye()).apply
    assert book.receive(b"other", Trainer(session="t").hello()).apply
    assert len(book) == 1


def test_strangers_are_asked_once_until_it_is_time_to_ask_again() -> None:
    book = Book("d")
    assert book.receive(ROUTE, step(5)).replies == (Welcome("s", "d", 0),)
    assert book.receive(ROUTE, step(6)).replies == ()
    book.ask_again()
    assert book.receive(ROUTE, step(6)).replies == (Welcome("s", "d", 0),)


def test_a_stranger_is_not_asked_for_a_hello_that_would_be_refused() -> None:
    book = Book("d", most=1)
    greeted(book)
    assert book.receive(ROUTE, step(5, session="t")).replies == ()


def test_sessions_that_crashed_make_room_for_those_that_followed_them() -> None:
    book = Book("d", most=3)
    for life in range(10):
        assert book.receive(ROUTE, Trainer(session=f"s{life}").hello()).apply
    assert book.receive(ROUTE, Trainer(session="other", rank=1).hello()).apply
    assert len(book) == 3


def test_a_goodbye_tells_how_many_of_the_last_tensors_are_lost() -> None:
    book = Book("d")
    trainer = greeted(book)
    book.receive(ROUTE, trainer.codes(1, [[1]]))
    goodbye = Goodbye(trainer.origin, 2, 1, 0, 5, "close", {"codes": 4})
    assert book.receive(ROUTE, goodbye).lost == 3


def test_a_session_cannot_change_its_rank() -> None:
    book = Book("d")
    greeted(book)
    assert book.receive(ROUTE, step(2, rank=1)).refused == "rank_changed"


def test_the_state_of_a_book_is_taken_up_by_another() -> None:
    book, successor = Book("d"), Book("e")
    greeted(book)
    book.receive(ROUTE, step(2))
    successor.restore(book.state())
    assert successor.receive(ROUTE, step(2)).refused == "duplicate"
    assert successor.receive(ROUTE, step(3)).apply


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 30))
def test_whatever_is_replayed_in_whatever_order_is_applied_once_and_in_order(tries: list[int], last: int) -> None:
    book = Book("d")
    applied: list[int] = []
    messages = [
        Trainer().hello(),
        *(step(seq) for seq in range(2, last)),
        Goodbye(Origin("r", 0, "s"), last + 1, 1, 0, 0, ""),
    ]
    for index in [*tries, *range(len(messages))]:
        message = messages[index % len(messages)]
        if book.receive(ROUTE, message).apply:
            applied.append(message.seq)
    assert applied == sorted(set(applied))
