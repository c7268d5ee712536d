from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vqwatch.backlog import Backlog


def message(seq: int, first: int) -> list[bytes]:
    return [b"%d/%d" % (seq, first)]


def filled(count: int, messages: int = 100, size_bytes: int = 10_000) -> Backlog:
    backlog = Backlog(messages, size_bytes)
    for _ in range(count):
        backlog.add(message)
    return backlog


def handed_over(backlog: Backlog) -> list[bytes]:
    frames = []
    while (held := backlog.upcoming()) is not None:
        frames.append(held.frames[0])
        backlog.sent()
    return frames


def test_messages_are_handed_over_in_order_and_once() -> None:
    backlog = filled(3)
    assert handed_over(backlog) == [b"1/1", b"2/1", b"3/1"]
    assert handed_over(backlog) == []


def test_a_full_backlog_pushes_out_the_oldest_and_says_how_many() -> None:
    backlog = filled(4, messages=3)
    assert (backlog.first, len(backlog)) == (2, 3)
    assert backlog.add(message) == 1


def test_the_bytes_are_bounded_whatever_the_sizes() -> None:
    backlog = Backlog(messages=100, size_bytes=100)
    pushed_out = [backlog.add(lambda *_: [b"x", b"y" * 39]) for _ in range(5)]
    assert pushed_out == [0, 0, 1, 1, 1]
    assert backlog.size_bytes == 80


def test_one_message_larger_than_the_bound_is_still_held() -> None:
    backlog = Backlog(messages=10, size_bytes=10)
    backlog.add(lambda *_: [b"x" * 100])
    assert len(backlog) == 1


def test_a_replay_tells_truly_what_is_still_held() -> None:
    backlog = filled(3, messages=3)
    handed_over(backlog)
    backlog.add(message)
    backlog.add(message)
    backlog.rewind(1)
    assert handed_over(backlog) == [b"3/3", b"4/3", b"5/3"]


def test_a_rewind_begins_where_the_daemon_asks() -> None:
    backlog = filled(5)
    handed_over(backlog)
    backlog.rewind(4)
    assert handed_over(backlog) == [b"4/1", b"5/1"]


def test_an_acknowledgement_covers_everything_before_it() -> None:
    backlog = filled(5)
    assert backlog.acknowledge(3) == 3
    assert (backlog.first, backlog.acknowledge(3), backlog.acknowledged) == (4, 0, False)
    backlog.acknowledge(99)
    assert (backlog.first, backlog.size_bytes, backlog.acknowledged) == (6, 0, True)


def test_a_rewind_beyond_either_end_does_no_harm() -> None:
    backlog = filled(3)
    backlog.rewind(77)
    assert handed_over(backlog) == []
    backlog.rewind(-5)
    assert handed_over(backlog) == [b"1/1", b"2/1", b"3/1"]


def test_frames_that_stand_for_several_messages_come_and_go_together() -> None:
    backlog = Backlog(messages=100, size_bytes=10_000)
    assert [backlog.add(message, count) for count in (1, 4, 2)] == [0, 0, 0]
    assert (len(backlog), backlog.following) == (7, 8)
    assert handed_over(backlog) == [b"1/1", b"2/1", b"6/1"]
    assert backlog.acknowledge(4) == 1, "of four only three are known"
    assert (backlog.first, len(backlog)) == (2, 6)
    for asked, sent in ((3, [b"2/1", b"6/1"]), (5, [b"2/1", b"6/1"]), (6, [b"6/1"]), (7, [b"6/1"]), (8, [])):
        backlog.rewind(asked)
        assert handed_over(backlog) == sent
    assert backlog.acknowledge(5) == 4
    assert (backlog.first, len(backlog), backlog.sent_all) == (6, 2, True)


def test_frames_that_stand_for_several_messages_are_pushed_out_as_such() -> None:
    backlog = Backlog(messages=5, size_bytes=10_000)
    assert [backlog.add(message, 4), backlog.add(message, 2)] == [0, 4]
    assert (backlog.first, len(backlog), backlog.room_for(1)) == (5, 2, True)
    assert backlog.add(message, 8) == 2
    assert (backlog.first, len(backlog), backlog.room_for(1)) == (7, 8, False)
    backlog.rewind(0)
    assert handed_over(backlog) == [b"7/7"]


@given(st.lists(st.sampled_from(["add", "send", "ack", "rewind"]), max_size=200), st.data())
def test_whatever_happens_the_next_message_follows_the_last_or_a_rewind(
    actions: list[str], data: st.DataObject
) -> None:
    backlog = Backlog(messages=7, size_bytes=10_000)
    expected: int | None = None
    for action in actions:
        if action == "add":
            backlog.add(message, data.draw(st.integers(1, 3)))
        elif action == "ack":
            backlog.acknowledge(data.draw(st.integers(0, backlog.following - 1)))
        elif action == "rewind":
            backlog.rewind(data.draw(st.integers(0, backlog.following)))
            expected = None
        elif (held := backlog.upcoming()) is not None:
            assert held.seq == max(expected or held.seq, backlog.first)
            expected = held.seq + held.count
            backlog.sent()
        assert len(backlog) <= 7
        assert backlog.following - backlog.first == len(backlog)
