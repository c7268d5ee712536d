from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import array

from vqwatch.arrays import Host, Refused, gather, narrow, take
from vqwatch.codes import read

KNOWN = ("0", "1", "2")


def sent(value: Any, dtype: str | None = None) -> np.ndarray:
    """Return what goes onto the wire for an input."""
    host = take(value, "it")
    assert isinstance(host, Host)
    return array(gather([host], host.shape, dtype or host.dtype, owned=False))


class Exporter:
    """Somebody else's array: nothing but the DLPack protocol."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **named: Any) -> Any:
        return self._values.__dlpack__(**named)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_every_plain_dtype_keeps_its_values(dtype: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    host = take(torch.from_numpy(values), "it")
    assert isinstance(host, Host)
    assert np.array_equal(host.array, values)
    assert host.array.dtype == dtype


def test_an_array_that_is_not_contiguous_arrives_in_order() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2)[::2]
    assert np.array_equal(sent(values), values.numpy())


def test_bfloat16_travels_as_its_bits() -> None:
    values = torch.tensor([1.0, -2.5, float("nan"), float("inf")], dtype=torch.bfloat16)
    bits = sent(values)
    assert np.array_equal(bits, values.view(torch.int16).numpy().view(np.uint16))


def test_float8_is_widened_to_float16() -> None:
    values = torch.tensor([1.0, -0.5, 448.0]).to(torch.float8_e4m3fn)
    assert np.array_equal(sent(values), [1.0, -0.5, 448.0])


def test_anything_with_dlpack_is_an_array() -> None:
    assert np.array_equal(sent(Exporter(np.arange(6.0).reshape(2, 3))), np.arange(6.0).reshape(2, 3))


def test_a_tensor_that_needs_gradients_is_an_array() -> None:
    assert np.array_equal(sent(torch.ones(3, requires_grad=True)), np.ones(3))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.eye(3).to_sparse(), "layout"),
        (torch.ones(2, device="meta"), "device"),
        (torch.ones(2, dtype=torch.complex64), "dtype"),
        (np.array(["a"]), "dtype"),
        (object(), "dtype"),
    ],
)
def test_what_no_message_can_hold_is_refused_with_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        take(value, "it")
    assert refused.value.reason == reason


def test_rows_are_gathered_into_one_array_and_narrowed_on_the_way() -> None:
    rows = [Host(np.full((2, 2), row, np.int64), "i64") for row in range(3)]
    tensor = gather(rows, (3, 2, 2), "i16", owned=True)
    assert (tensor.dtype, array(tensor)[:, 0, 0].tolist()) == ("i16", [0, 1, 2])


def test_an_owned_array_does_not_change_when_its_source_does() -> None:
    source = np.zeros(4, np.float32)
    owned = gather([Host(source, "f32")], (4,), "f32", owned=True)
    source += 1
    assert array(owned).sum() == 0


def test_an_empty_array_is_an_array() -> None:
    assert sent(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [("i64", 256, "i16"), ("i64", 1 << 15, "i16"), ("i64", 1 << 16, "i32"), ("u8", 256, "u8")],
)
def test_codes_travel_in_the_narrowest_dtype_that_has_room_for_no_code(dtype: str, size: int, expected: str) -> None:
    assert narrow(dtype, size) == expected


def codes_of(codes: Any, known: tuple[str, ...] = KNOWN) -> list[tuple[tuple[str, ...], np.ndarray]]:
    return [
        (part.layers, array(gather(part.sources, part.shape, part.dtype, owned=True)))
        for part in read(codes, known, 256)
    ]


def test_the_last_axis_is_the_layers() -> None:
    codes = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    ((layers, indices),) = codes_of(codes)
    assert layers == KNOWN
    assert np.array_equal(indices, codes.movedim(-1, 0).numpy())


def test_the_proposals_two_axes_are_documents_and_layers() -> None:
    codes = torch.arange(12).reshape(4, 3)
    ((_, indices),) = codes_of(codes)
    assert np.array_equal(indices, codes.T.numpy())


def test_the_first_axis_is_the_layers_where_only_it_fits() -> None:
    codes = torch.arange(3 * 2 * 5).reshape(3, 2, 5)
    ((layers, indices),) = codes_of(codes)
    assert (layers, indices.tolist()) == (KNOWN, codes.tolist())


def test_where_both_axes_fit_it_is_the_last() -> None:
    codes = torch.arange(9).reshape(3, 3)
    ((_, indices),) = codes_of(codes)
    assert np.array_equal(indices, codes.T.numpy())


def test_fewer_layers_than_the_model_has_are_its_first() -> None:
    ((layers, _),) = codes_of(torch.zeros(4, 5, 2, dtype=torch.long))
    assert layers == ("0", "1")


def test_one_layer_may_leave_the_axis_out() -> None:
    ((layers, indices),) = codes_of(torch.zeros(4, 5, dtype=torch.long), ("0",))
    assert (layers, indices.shape) == (("0",), (1, 4, 5))


def test_a_list_and_a_mapping_name_their_layers() -> None:
    several = [torch.full((2, 5), layer) for layer in range(3)]
    ((layers, indices),) = codes_of(several)
    assert (layers, indices[:, 0, 0].tolist()) == (KNOWN, [0, 1, 2])
    ((layers, _),) = codes_of({"b": several[0], "a": several[1]})
    assert layers == ("b", "a")


def test_layers_of_different_shapes_travel_apart() -> None:
    found = codes_of({"0": torch.zeros(2, 5, dtype=torch.long), "1": torch.zeros(2, 3, dtype=torch.long)})
    assert [(layers, indices.shape) for layers, indices in found] == [(("0",), (1, 2, 5)), (("1",), (1, 2, 3))]


@pytest.mark.parametrize(
    ("codes", "reason"),
    [(torch.zeros(4, 3), "dtype"), (torch.tensor(3), "shape"), (torch.zeros(4, 9, dtype=torch.long), "shape")],
)
def test_what_is_not_codes_is_refused_with_a_reason(codes: Any, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        codes_of(codes)
    assert refused.value.reason == reason


class Attempts:
    """Lets nothing out, and notes what was refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def __call__(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Refused as error:
            self.refused.append(error.reason)
        return None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(torch.zeros(2, 5), "dtype"), (None, "absent"), (torch.eye(5).to_sparse(), "layout"), (object(), "dtype")],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_layer_that_cannot_be_used_is_missing_and_the_others_keep_their_names(
    bad: Any, reason: str, named: bool
) -> None:
    layers = [torch.full((2, 5), 3), bad, torch.full((2, 5), 7)]
    attempts = Attempts()
    (part,) = read(dict(zip(KNOWN, layers, strict=True)) if named else layers, KNOWN, 256, attempts)
    assert (part.layers, part.shape, attempts.refused) == (("0", "2"), (2, 2, 5), [reason])
    assert [source.array[0, 0] for source in part.sources if isinstance(source, Host)] == [3, 7]


def test_of_two_layers_of_one_name_the_first_is_sent() -> None:
    attempts = Attempts()
    (part,) = read({7: torch.zeros(2, dtype=torch.long), "7": torch.ones(2, dtype=torch.long)}, (), 256, attempts)
    assert (part.layers, attempts.refused) == (("7",), ["name"])
