"""Each way to be wrong is refused with its own reason, before anything large is allocated."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest

from vqwatch import wire

GOOD: dict[str, Any] = {
    "v": 1,
    "kind": "codes",
    "run": "r",
    "rank": 0,
    "session": "s",
    "seq": 1,
    "time_ns": 0,
    "step": 4,
    "layers": ["0"],
    "tensors": [["indices", "u8", [1, 4]]],
}


def frames(buffer: bytes = b"abcd", **changes: Any) -> list[bytes]:
    header = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return [msgpack.packb(header), buffer]


def test_the_unchanged_message_is_fine() -> None:
    assert isinstance(wire.decode(frames()), wire.Codes)


def test_fields_that_nobody_knows_are_skipped() -> None:
    assert wire.decode(frames(colour="blue")) == wire.decode(frames())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": 2}, "version"),
        ({"v": None}, "field"),
        ({"kind": "gossip"}, "kind"),
        ({"run": ""}, "field"),
        ({"run": "x" * 129}, "field"),
        ({"run": "a\nb"}, "field"),
        ({"run": 7}, "field"),
        ({"rank": -1}, "field"),
        ({"rank": True}, "field"),
        ({"rank": 1 << 40}, "field"),
        ({"seq": -1}, "field"),
        ({"step": 1.5}, "field"),
        ({"step": None}, "field"),
        ({"layers": []}, "shape"),
        ({"layers": ["0", "1"]}, "shape"),
        ({"layers": ["0"] * 300}, "field"),
        ({"tensors": [["indices", "f32", [1, 1]]]}, "dtype"),
        ({"tensors": [["indices", "u64", [1, 4]]]}, "dtype"),
        ({"tensors": [["indices", "u8", [1, 5]]]}, "buffer_size"),
        ({"tensors": [["indices", "u8", [1, -4]]]}, "shape"),
        ({"tensors": [["indices", "u8", [1] * 9]]}, "shape"),
        ({"tensors": [["indices", "u8", [1 << 62, 1 << 62]]]}, "shape"),
        ({"tensors": [["indices", "u8", "four"]]}, "shape"),
        ({"tensors": [["indices", "u8"]]}, "field"),
        ({"tensors": []}, "frames"),
        ({"tensors": [["other", "u8", [4]]]}, "field"),
        ({"tensors": "all of them"}, "frames"),
    ],
)
def test_a_wrong_header_names_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.decode(frames(**changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "frames"),
        ([b""], "header_format"),
        ([b"\xc1"], "header_format"),
        ([msgpack.packb([1, 2])], "header_format"),
        ([b"\x81" + b"\xa1v" + b"\x01" + b"trailing"], "header_format"),
        ([b"\xdf" + struct.pack(">I", 0xFFFFFFFF)], "header_format"),
        ([b"\x00" * (wire.MAX_HEADER_BYTES + 1)], "header_size"),
        ([b"\x91" * 2000], "header_format"),
        ([msgpack.packb(GOOD)] + [b""] * (wire.MAX_TENSORS + 1), "frames"),
    ],
)
def test_frames_that_are_no_message_name_their_reason(raw: list[bytes], reason: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.decode(raw)
    assert caught.value.reason == reason


def test_a_codebook_of_absurd_size_is_refused() -> None:
    size = wire.MAX_CODEBOOK_SIZE + 1
    message = wire.Codebooks(
        wire.Origin("r", 0, "s"), 1, 0, 1, {("0", "cluster_size"): wire.Tensor("u8", (size,), bytes(size))}
    )
    with pytest.raises(wire.WireError) as caught:
        wire.decode(wire.encode(message))
    assert caught.value.reason == "limit"


def test_cluster_sizes_must_fit_their_codebook() -> None:
    message = wire.Codebooks(
        wire.Origin("r", 0, "s"),
        1,
        0,
        1,
        {
            ("0", "codebook"): wire.Tensor("u8", (4, 2), bytes(8)),
            ("0", "cluster_size"): wire.Tensor("u8", (3,), bytes(3)),
        },
    )
    with pytest.raises(wire.WireError) as caught:
        wire.decode(wire.encode(message))
    assert caught.value.reason == "shape"


def test_original_and_reconstruction_must_be_of_one_shape() -> None:
    message = wire.Reconstruction(
        wire.Origin("r", 0, "s"), 1, 0, 1, wire.Tensor("f32", (1, 2), bytes(8)), wire.Tensor("f32", (2, 1), bytes(8))
    )
    with pytest.raises(wire.WireError) as caught:
        wire.decode(wire.encode(message))
    assert caught.value.reason == "shape"


def test_a_truth_is_no_rank_although_it_equals_one_that_was_met() -> None:
    assert isinstance(wire.decode(frames(rank=1)), wire.Codes)
    with pytest.raises(wire.WireError, match="rank"):
        wire.decode(frames(rank=True))


@pytest.mark.parametrize("wrong", [["0", ["1"]], ["0", 1], ["0", b"1"], ["0", ""], ["0", "0"], ["0", "a\nb"]])
def test_names_beside_known_ones_are_looked_at_too(wrong: list[Any]) -> None:
    for layers in (["0"], wrong, wrong):
        message = frames(b"ab", layers=layers, tensors=[["indices", "u8", [len(layers), 2 // len(layers)]]])
        if layers is wrong:
            with pytest.raises(wire.WireError, match="layers"):
                wire.decode(message)
        else:
            wire.decode(message)


@pytest.mark.parametrize("losses", [{"a": True}, {"a": "1"}, {"a": 1.0, "": 1.0}, {"a": 1.0, "b": None}, {"a": [1.0]}])
def test_values_of_a_known_loss_are_looked_at_each_time(losses: dict[str, Any]) -> None:
    scalars = {"kind": "step", "first": 0, "layers": None, "tensors": None}
    fine = {"a": 1.0, "b": 2.0}
    assert isinstance(wire.decode(frames(**scalars, losses=fine)[:1]), wire.Step)
    with pytest.raises(wire.WireError, match="losses"):
        wire.decode(frames(**scalars, losses=losses)[:1])


def test_whole_numbers_among_losses_become_floats() -> None:
    message = wire.decode(frames(kind="step", first=0, layers=None, tensors=None, losses={"a": 1, "b": 2.0})[:1])
    assert isinstance(message, wire.Step)
    assert [type(value) for value in message.losses.values()] == [float, float]
