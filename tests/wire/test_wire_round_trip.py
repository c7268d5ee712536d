"""What is encoded is decoded again, whatever it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch import wire

names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
counts = st.integers(0, 2**40)
numbers = st.floats(allow_nan=False)
origins = st.builds(wire.Origin, names, st.integers(0, 1000), names)
maps = st.dictionaries(names, numbers, max_size=4)


@st.composite
def tensors(draw: Any, dtypes: frozenset[str], shape: tuple[int, ...]) -> wire.Tensor:
    dtype = draw(st.sampled_from(sorted(dtypes)))
    size = math.prod(shape) * wire.ITEM_BYTES[dtype]
    return wire.Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


must = {"origin": origins, "seq": counts, "first": counts, "time_ns": counts}
best = {"origin": origins, "seq": counts, "time_ns": counts}
layer = st.builds(
    wire.Layer,
    name=names,
    kind=st.sampled_from(sorted(wire.CODEBOOK_KINDS)),
    size=st.integers(1, 4096),
    dim=st.integers(0, 64),
    family=names,
    decay=st.none() | numbers,
    threshold=st.none() | numbers,
)
masks = tensors(frozenset({"bool", "u8", "f32"}), (2, 3))
MESSAGES = st.one_of(
    st.builds(
        wire.Hello,
        **must,
        world_size=st.integers(1, 64),
        layers=st.lists(layer, max_size=3, unique_by=lambda item: item.name).map(tuple),
        info=st.dictionaries(names, names, max_size=2),
    ),
    st.builds(
        wire.Step,
        **must,
        step=counts,
        losses=maps,
        gradient_norm=st.none() | numbers,
        gradient_norms=maps,
        learning_rates=maps,
        input_energy=st.none() | numbers,
        residual_energy=maps,
        overhead=st.none() | numbers,
        dropped=st.dictionaries(names, counts, max_size=2),
        every=st.dictionaries(names, counts, max_size=2),
    ),
    st.builds(
        wire.Codes,
        **best,
        step=counts,
        layers=st.just(("0", "1")),
        indices=tensors(wire.INTEGER_DTYPES, (2, 2, 3)),
        mask=st.none() | masks,
        part=st.integers(0, 3),
        parts=st.integers(1, 4),
    ),
    st.builds(
        wire.Codebooks,
        **best,
        step=counts,
        tensors=st.fixed_dictionaries(
            {
                ("0", "codebook"): tensors(wire.FLOAT_DTYPES, (4, 2)),
                ("a/b", "cluster_size"): tensors(wire.FLOAT_DTYPES, (4,)),
            }
        ),
    ),
    st.builds(
        wire.Reconstruction,
        **best,
        step=counts,
        original=tensors(wire.FLOAT_DTYPES, (2, 3, 1)),
        reconstructed=tensors(wire.FLOAT_DTYPES, (2, 3, 1)),
        mask=st.none() | masks,
    ),
    st.builds(
        wire.Evaluation,
        **must,
        step=counts,
        phase=st.sampled_from(sorted(wire.EVALUATION_PHASES)),
        name=names,
        batch=counts,
        layers=st.just(("0",)),
        codes=st.none() | tensors(wire.INTEGER_DTYPES, (1, 5)),
        scalars=maps,
    ),
    st.builds(wire.Goodbye, **must, step=counts, reason=names, sent=st.dictionaries(names, counts, max_size=2)),
    st.builds(wire.Welcome, names, names, counts),
    st.builds(wire.Ack, names, counts),
    st.builds(wire.Stop, names, names),
)


@given(MESSAGES)
def test_every_message_comes_back_as_it_was_sent(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(MESSAGES)
def test_a_reader_may_hand_over_memoryviews(message: wire.Message) -> None:
    assert wire.decode([memoryview(frame) for frame in wire.encode(message)]) == message


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_one_wire_error_with_a_known_reason(frames: list[bytes]) -> None:
    try:
        wire.decode(frames)
    except wire.WireError as error:
        assert error.reason in wire.REASONS
    else:
        raise AssertionError("random bytes made a message")


@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(message: wire.Message, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in wire.encode(message)]
    frame = data.draw(st.sampled_from(range(len(frames))))
    for _ in range(data.draw(st.integers(1, 4))):
        if frames[frame]:
            frames[frame][data.draw(st.integers(0, len(frames[frame]) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del frames[frame][data.draw(st.integers(0, len(frames[frame]))) :]
    try:
        wire.decode(frames)
    except wire.WireError as error:
        assert error.reason in wire.REASONS


def test_nan_and_infinity_travel_as_scalars() -> None:
    step = wire.Step(wire.Origin("r", 0, "s"), 1, 1, 0, 3, {"a": math.nan, "b": math.inf, "c": -math.inf})
    back = wire.decode(wire.encode(step))
    assert isinstance(back, wire.Step)
    assert math.isnan(back.losses["a"])
    assert back.losses["b"] == math.inf
    assert back.losses["c"] == -math.inf


def test_a_message_with_too_long_a_header_is_not_encoded() -> None:
    losses = {f"component {number}" * 10: 1.0 for number in range(1000)}
    with pytest.raises(wire.WireError) as caught:
        wire.encode(wire.Step(wire.Origin("r", 0, "s"), 1, 1, 0, 3, losses))
    assert caught.value.reason == "header_size"


def test_bfloat16_widens_exactly() -> None:
    from vqwatch_daemon.arrays import as_floats

    exact = np.array([1.0, -2.5, 0.0, np.inf, 3.140625], np.float32)
    upper = (exact.view(np.uint32) >> 16).astype("<u2")
    assert as_floats(wire.Tensor("bf16", (5,), upper.tobytes())).tolist() == exact.tolist()
