"""Several messages sent as one: each comes out as it went in, and no index makes more of the data than there is."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import Trainer, bundled, layers
from tests.wire.test_wire_round_trip import MESSAGES

from vqwatch.wire import (
    HEAD_BYTES,
    MAX_BUNDLED,
    MAX_INDEX_BYTES,
    MAX_TENSORS,
    Frame,
    Message,
    WireError,
    bundle,
    decode,
    encode,
    unbundle,
)

HEADER = b"\x80"  # an empty map
NESTED = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


def nbytes(frames: list[Any]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)


def index(*places: Any, header: Any = HEADER) -> bytes:
    """Return the index of a bundle of one message."""
    packed: bytes = msgpack.packb([[header, list(places)]])
    return packed


def in_one(size: int, at: int) -> bytes:
    """Return the head of a bundle in one frame."""
    return struct.pack("<BBBBIQ", 0xC1, 0, 0, 0, size, at)


@given(st.lists(MESSAGES, max_size=4), st.integers(0, 9), st.sampled_from([0, 300, 64_000]))
def test_messages_come_out_as_they_went_in(messages: list[Message], apart: int, spare: int) -> None:
    found = [decode(parts) for parts in unbundle(bundled(messages, apart, spare))]
    assert [encode(message) for message in found] == [encode(message) for message in messages]


@given(MESSAGES)
def test_a_message_by_itself_is_no_bundle(message: Message) -> None:
    frames = encode(message)
    assert [list(parts) for parts in unbundle(frames)] == [frames]


def test_nothing_is_copied() -> None:
    frames = bundled([Trainer().codes(1, [[1, 2], [3, 0]])])
    (parts,) = unbundle(frames)
    assert memoryview(parts[1]).obj is memoryview(frames[1]).obj


def test_a_bundle_is_one_frame_where_there_is_room() -> None:
    codes = Trainer().codes(1, [[1, 2], [3, 0]])
    index, data = (bytes(frame) for frame in bundled([codes]))
    assert [bytes(frame) for frame in bundled([codes], spare=len(index) - 1)] == [index, data]
    (frame,) = bundled([codes], spare=len(index) + 5)
    assert bytes(frame) == in_one(len(index), HEAD_BYTES + len(data)) + data + index


def test_too_many_messages_and_too_long_headers_are_sent_one_by_one() -> None:
    assert bundle([(HEADER, ())] * MAX_BUNDLED, None) is not None
    assert bundle([(HEADER, ())] * (MAX_BUNDLED + 1), None) is None
    assert bundle([(bytes(MAX_INDEX_BYTES), ())], None) is None


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([index([0, 9]), bytes(8)], "buffer_size"),
        ([index([1, 8]), bytes(8)], "buffer_size"),
        ([index([0, 1])], "buffer_size"),
        ([index([-1, 1]), bytes(8)], "buffer_size"),
        ([index([4, -2]), bytes(8)], "buffer_size"),
        ([index([2**63, 2**63]), bytes(8)], "buffer_size"),
        ([index([0, 8], [0, 8]), bytes(8)], "buffer_size"),
        ([index([0, 5], [3, 5]), bytes(8)], "buffer_size"),
        ([index([8, -8], [0, 8], [0, 8]), bytes(8)], "buffer_size"),
        ([index([0, True]), bytes(8)], "header_format"),
        ([index([0.0, 1]), bytes(8)], "header_format"),
        ([index([0]), bytes(8)], "header_format"),
        ([index(7), bytes(8)], "header_format"),
        ([index([0, 8], header="text"), bytes(8)], "header_format"),
        ([msgpack.packb([[HEADER, 5]]), bytes(8)], "header_format"),
        ([msgpack.packb([HEADER])], "header_format"),
        ([msgpack.packb([[HEADER, [], []]])], "header_format"),
        ([index([0, 8])[:-1], bytes(8)], "header_format"),
        ([index([0, 8]) + b"\x00", bytes(8)], "header_format"),
        ([index([0, 8]), bytes(8), bytes(8)], "frames"),
        ([index(*[[0, 0]] * (MAX_TENSORS + 1)), bytes(8)], "frames"),
        ([msgpack.packb([[HEADER, []]] * (MAX_BUNDLED + 1))], "limit"),
        ([msgpack.packb([[bytes(MAX_INDEX_BYTES), []]])], "header_size"),
        ([msgpack.packb([0, 1])], "header_format"),  # an index of numbers
        ([in_one(0, 16)[:15]], "buffer_size"),
        ([in_one(1, 16)], "buffer_size"),
        ([in_one(1, 15) + index()], "buffer_size"),
        ([in_one(0, 2**63)], "buffer_size"),
        ([in_one(2**32 - 1, 16) + index()], "buffer_size"),
        ([in_one(0, 16)], "header_format"),
        ([in_one(1, 16) + b"\x80"], "header_format"),
        ([in_one(1, 16) + b"\xc1"], "header_format"),
        ([in_one(len(index()), 16) + index(), b""], "frames"),
        ([in_one(2**18 + 1, 16) + bytes(2**18 + 1)], "header_size"),
        ([in_one(len(index([0, 9])), 24) + bytes(8) + index([0, 9])], "buffer_size"),  # a buffer that is partly index
    ],
)
def test_an_index_that_is_wrong_refuses_the_whole(frames: list[Frame], reason: str) -> None:
    with pytest.raises(WireError) as refused:
        unbundle(frames)
    assert refused.value.reason == reason


def taken(frames: list[Frame]) -> None:
    """Only WireError leaves, and what is taken is not more than what came."""
    try:
        messages = unbundle(frames)
    except WireError:
        return
    assert sum(nbytes(list(parts)) for parts in messages) <= nbytes(frames)
    for parts in messages:
        try:
            decode(parts)
        except WireError:
            continue


@given(
    st.lists(st.binary(max_size=64), max_size=3),
    st.sampled_from([b"", b"\x91", b"\x92\x92", b"\xdc\x00\x01", in_one(3, 16)]),
)
def test_arbitrary_bytes_are_refused_or_taken(frames: list[bytes], start: bytes) -> None:
    taken([start + frame for frame in frames])


@given(st.lists(NESTED, max_size=5), st.binary(max_size=32))
def test_an_arbitrary_index_is_refused_or_taken(entries: list[Any], data: bytes) -> None:
    taken([msgpack.packb(entries), data])


@given(
    st.lists(st.tuples(st.integers(-2, 40), st.integers(-2, 40)), max_size=6),
    st.integers(0, 40),
)
def test_places_tell_of_no_byte_that_did_not_come(places: list[tuple[int, int]], size: int) -> None:
    taken([index(*places), bytes(size)])


@given(st.data())
def test_a_bundle_with_a_byte_changed_is_refused_or_taken(data: st.DataObject) -> None:
    trainer = Trainer()
    spare = data.draw(st.sampled_from([0, 4096]))
    frames = bundled([trainer.hello(layers()), trainer.step(1), trainer.codes(1, [[1, 2], [3, 0]])], spare=spare)
    changed = [bytearray(frame) for frame in frames]
    frame = changed[data.draw(st.integers(0, len(changed) - 1))]
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    taken([bytes(frame) for frame in changed])
