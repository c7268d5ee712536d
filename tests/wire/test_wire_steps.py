"""Several steps told as one message: each comes out as if it had been told by itself, or all are refused."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import codes_of_steps, encoded
from tests.wire.test_wire_round_trip import MESSAGES, counts, maps, names, numbers, origins

from vqwatch.wire import (
    INTEGER_DTYPES,
    ITEM_BYTES,
    MAX_INTEGER,
    MAX_STEPS,
    Codes,
    Message,
    Origin,
    Step,
    Tensor,
    WireError,
    decode,
    decode_each,
    encode,
    encode_step,
)

GOOD: dict[str, Any] = {
    "v": 1,
    "kind": "step",
    "run": "r",
    "rank": 0,
    "session": "s",
    "seq": 5,
    "first": 2,
    "time_ns": [10, 20],
    "step": [7, 8],
    "losses": {"total": [1.0, 2.0]},
}


def read(**changes: Any) -> list[Message]:
    header = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return list(decode_each([msgpack.packb(header)]))


@st.composite
def alike(draw: Any) -> list[Step]:
    """Steps that follow each other and tell numbers of the same names; the last one tells of its emitter too."""
    count = draw(st.integers(2, MAX_STEPS))
    origin, seq, first = draw(origins), draw(counts), draw(counts)
    losses, rates, normed = draw(maps), draw(maps), draw(st.booleans())
    steps = [
        Step(
            origin,
            seq + index,
            first,
            draw(counts),
            draw(counts),
            losses={name: draw(numbers) for name in losses},
            gradient_norm=draw(numbers) if normed else None,
            learning_rates={name: draw(numbers) for name in rates},
        )
        for index in range(count - 1)
    ]
    news = {"dropped": draw(st.dictionaries(names, counts, max_size=2)), "every": {}, "overhead": draw(numbers)}
    return [
        *steps,
        Step(
            origin,
            seq + count - 1,
            first,
            0,
            draw(counts),
            losses={name: draw(numbers) for name in losses},
            gradient_norm=draw(numbers) if normed else None,
            learning_rates={name: draw(numbers) for name in rates},
            **news,
        ),
    ]


@given(alike())
def test_each_step_comes_back_as_it_was_told(steps: list[Step]) -> None:
    head, last = steps[0], steps[-1]
    fields: dict[str, Any] = {
        "losses": {name: [step.losses[name] for step in steps] for name in head.losses},
        "learning_rates": {name: [step.learning_rates[name] for step in steps] for name in head.learning_rates},
        "dropped": last.dropped,
        "overhead": last.overhead,
    }
    if head.gradient_norm is not None:
        fields["gradient_norm"] = [step.gradient_norm for step in steps]
    times = [step.time_ns for step in steps]
    frames = encode_step(head.origin, head.seq, head.first, times, [step.step for step in steps], fields)
    assert decode_each(frames) == steps
    assert decode_each([memoryview(frame) for frame in frames]) == steps


@given(MESSAGES)
def test_any_other_message_is_read_as_one(message: Message) -> None:
    assert list(decode_each(encode(message))) == [message]


def test_the_unchanged_steps_are_fine() -> None:
    origin = Origin("r", 0, "s")
    assert read() == [Step(origin, 5, 2, 10, 7, {"total": 1.0}), Step(origin, 6, 2, 20, 8, {"total": 2.0})]


def test_numbers_may_be_whole_or_not_finite() -> None:
    first, second = read(losses={"total": [1, math.nan]}, gradient_norm=[math.inf, 2])
    assert isinstance(first, Step)
    assert isinstance(second, Step)
    assert (type(first.losses["total"]), first.gradient_norm, second.gradient_norm) == (float, math.inf, 2.0)
    assert math.isnan(second.losses["total"])


@pytest.mark.parametrize(
    "changes",
    [
        {"step": []},
        {"step": 7},
        {"step": "ab"},
        {"step": None},
        {"step": [7, True]},
        {"step": [7, -1]},
        {"step": [7, MAX_INTEGER + 1]},
        {"step": [7, 8.0]},
        {"step": [7]},
        {"time_ns": 10},
        {"time_ns": [10]},
        {"time_ns": [10, 20, 30]},
        {"time_ns": [10, None]},
        {"step": list(range(MAX_STEPS + 1)), "time_ns": [0] * (MAX_STEPS + 1), "losses": None},
        {"losses": {"total": [1.0]}},
        {"losses": {"total": [1.0, 2.0, 3.0]}},
        {"losses": {"total": 1.0}},
        {"losses": {"total": [1.0, "2"]}},
        {"losses": {"total": [1.0, True]}},
        {"losses": {"": [1.0, 2.0]}},
        {"losses": [1.0, 2.0]},
        {"learning_rates": {"0": [1.0]}},
        {"gradient_norm": 1.0},
        {"gradient_norm": [1.0]},
        {"gradient_norm": [1.0, None]},
        {"dropped": {"codes": -1}},
        {"overhead": [0.1, 0.2]},
        {"seq": MAX_INTEGER},
        {"seq": True},
        {"run": ""},
    ],
)
def test_what_is_wrong_with_one_step_refuses_them_all(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        read(**changes)
    assert caught.value.reason == "field"


def test_they_have_no_arrays_and_are_not_read_as_one_step() -> None:
    with pytest.raises(WireError) as caught:
        decode_each([msgpack.packb(GOOD), b""])
    assert caught.value.reason == "frames"
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb(GOOD)])
    assert caught.value.reason == "field"


@st.composite
def codes_alike(draw: Any) -> list[Codes]:
    """Codes of steps, numbered one after the other, with tensors that are alike."""
    origin, seq, count = draw(origins), draw(counts), draw(st.integers(1, MAX_STEPS))
    dtype, masked = draw(st.sampled_from(sorted(INTEGER_DTYPES))), draw(st.booleans())
    part, parts = draw(st.integers(0, 3)), draw(st.integers(1, 4))

    def drawn(dtype: str, *shape: int) -> Tensor:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))

    return [
        Codes(
            origin, seq + index, draw(counts), draw(counts), ("0", "1"), drawn(dtype, 2, 3),
            drawn("bool", 3) if masked else None, part, parts,
        )
        for index in range(count)
    ]  # fmt: skip


@given(codes_alike())
def test_codes_of_each_step_come_back_as_they_were_told(codes: list[Codes]) -> None:
    frames = encoded(codes_of_steps(codes))
    assert decode_each(frames) == codes
    assert decode_each([memoryview(frame) for frame in frames]) == codes


CODES: dict[str, Any] = {
    "v": 1,
    "kind": "codes",
    "run": "r",
    "rank": 0,
    "session": "s",
    "seq": 5,
    "time_ns": [10, 20],
    "step": [7, 8],
    "layers": ["0"],
    "tensors": [["indices", "u8", [1, 4]]],
}


@pytest.mark.parametrize(
    ("changes", "buffers", "reason"),
    [
        ({}, 1, "frames"),
        ({}, 3, "frames"),
        ({}, 0, "frames"),
        ({"tensors": []}, 0, "field"),
        ({"tensors": [["indices", "u8", [1, 5]]]}, 2, "buffer_size"),
        ({"tensors": [["other", "u8", [4]]]}, 2, "field"),
        ({"tensors": [["indices", "f32", [1, 1]]]}, 2, "dtype"),
        ({"tensors": [["mask", "u8", [4]], ["indices", "u8", [1, 4]]]}, 2, "frames"),
        ({"tensors": [["mask", "u8", [2, 2]], ["indices", "u8", [1, 4]]]}, 4, "shape"),
        ({"layers": ["0", "1"]}, 2, "shape"),
        ({"step": [7, 8, 9]}, 2, "field"),
        ({"step": [7, True]}, 2, "field"),
        ({"time_ns": 10}, 2, "field"),
        ({"seq": MAX_INTEGER}, 2, "field"),
        ({"part": 300}, 2, "field"),
        ({"kind": "codebooks"}, 2, "frames"),
        ({"kind": "gossip"}, 2, "kind"),
    ],
)
def test_what_is_wrong_with_the_codes_of_one_step_refuses_them_all(
    changes: dict[str, Any], buffers: int, reason: str
) -> None:
    with pytest.raises(WireError) as caught:
        decode_each([msgpack.packb({**CODES, **changes}), *[b"abcd"] * buffers])
    assert caught.value.reason == reason


def test_a_later_buffer_is_looked_at_like_the_first() -> None:
    assert len(decode_each([msgpack.packb(CODES), b"abcd", b"efgh"])) == 2
    with pytest.raises(WireError) as caught:
        decode_each([msgpack.packb(CODES), b"abcd", b"efg"])
    assert caught.value.reason == "buffer_size"
