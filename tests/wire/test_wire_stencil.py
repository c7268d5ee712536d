"""What a stencil is filled with is read as if it had been packed."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch.wire import HEAD_BYTES, Marks, Stencil, bundle, fill_in, unbundle

WHOLE = st.integers(0, 2**63 - 1) | st.integers(0, 300)
FLOATING = st.floats(allow_nan=False)


def packed(names: list[str], whole: list[int], floating: list[float]) -> bytes:
    """Pack numbers as a header holds them: alone, in lists, twice, and between texts."""
    bytes_of_it: bytes = msgpack.packb(
        {"seq": whole[0], "steps": whole, "losses": dict(zip(names, floating, strict=False)), "rates": floating,
         "again": [whole[0], names]}
    )  # fmt: skip
    return bytes_of_it


@given(
    st.lists(st.text(max_size=20), max_size=4), st.lists(WHOLE, min_size=1, max_size=70),
    st.lists(FLOATING, max_size=70), st.integers(0, 40),
)  # fmt: skip
def test_what_was_filled_in_is_read_as_if_packed(
    names: list[str], whole: list[int], floating: list[float], at: int
) -> None:
    marks = Marks()
    of_whole, of_floating = marks.whole(len(whole)), marks.floating(len(floating))
    stencil = Stencil(packed(names, of_whole, of_floating), [of_whole, of_floating])
    memory = memoryview(bytearray(at + stencil.size + 7))
    for numbers in ([[0] * len(whole), [0.5] * len(floating)], [whole, floating]):  # again and again
        stencil.fill(memory, at, numbers)
    read = msgpack.unpackb(memory[at : at + stencil.size])
    assert read == msgpack.unpackb(packed(names, whole, floating))
    assert (bytes(memory[:at]), bytes(memory[at + stencil.size :])) == (bytes(at), bytes(7)), "nothing beside it"


def test_marks_that_are_not_there_or_not_unlike_are_refused() -> None:
    marks = Marks()
    here, elsewhere = marks.whole(2), marks.floating(1)
    with pytest.raises(LookupError, match=r"marks \[2\]"):
        Stencil(msgpack.packb(here), [here, elsewhere]).prepare()
    with pytest.raises(LookupError, match="the same"):
        Stencil(msgpack.packb(here), [here, here]).prepare()


def test_marks_are_each_given_once() -> None:
    marks = Marks()
    given_out = [*marks.whole(100), *marks.floating(100), *marks.whole(100), *marks.floating(100)]
    assert len({struct.pack(">d" if isinstance(mark, float) else ">Q", mark) for mark in given_out}) == 400


@pytest.mark.parametrize(
    ("numbers", "refusal"),
    [
        ([[1, 2], [0.5]], None), ([[1], [0.5]], ValueError), ([[1, 2, 3], [0.5]], ValueError), ([], ValueError),
        ([[1, -2], [0.5]], struct.error), ([[1, 2**64], [0.5]], struct.error), ([[1, 0.5], [0.5]], struct.error),
        ([[1, 2], ["x"]], struct.error),
    ],
)  # fmt: skip
def test_other_numbers_than_marked_are_refused_and_do_no_harm(numbers: Any, refusal: Any) -> None:
    marks = Marks()
    groups = [marks.whole(2), marks.floating(1)]
    stencil = Stencil(msgpack.packb(groups), groups)
    memory = memoryview(bytearray(stencil.size))
    if refusal is not None:
        with pytest.raises(refusal):
            stencil.fill(memory, 0, numbers)
    stencil.fill(memory, 0, [[1, 2], [0.5]])
    assert msgpack.unpackb(memory) == [[1, 2], [0.5]]


def test_a_bundle_that_is_filled_in_is_the_one_that_would_be_made() -> None:
    marks = Marks()
    (number,), (loss,) = marks.whole(1), marks.floating(1)
    data = b"\x01\x02\x03\x04"

    def made(number: int, loss: float, spare: int) -> tuple[memoryview, Any]:
        memory = memoryview(bytearray(HEAD_BYTES) + data + bytes(spare))
        header: Any = {"seq": number, "loss": loss}
        return memory, bundle([(msgpack.packb(header), ()), (header, [(0, 2), (2, 2)])], memory, spare)

    _, frames = made(number, loss, 0)
    stencil = Stencil(bytes(frames[0]), [[number], [loss]])
    _, wanted = made(7, 0.25, 4096)
    memory, _ = made(0, 0.0, 4096)
    frame = fill_in(stencil, [[7], [0.25]], memory, 4096)
    assert frame is not None
    headers = [[msgpack.unpackb(message[0]) for message in unbundle(frames)] for frames in ([frame], wanted)]
    assert headers[0] == headers[1] == [{"seq": 7, "loss": 0.25}] * 2
    assert [[bytes(part) for part in message[1:]] for message in unbundle([frame])] == [[], [data[:2], data[2:]]]
    assert fill_in(stencil, [[7], [0.25]], memory, stencil.size - 1) is None
