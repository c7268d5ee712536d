"""Counting, against a plain loop."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import count_assignments, count_repeats, counted, narrowed

DTYPES = ["int8", "uint8", "int16", "int32", "int64"]

Batch = tuple[NDArray[Any], list[int], NDArray[np.bool_] | None]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Indices [L, ...] of any dtype with negatives and codes beyond the size, a size per layer, perhaps a mask."""
    shape = draw(array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))
    if shape[0] == 0:
        shape = (1, *shape[1:])
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    low = -2 if dtype.kind == "i" else 0
    indices = draw(arrays(dtype, shape, elements=st.integers(low, 9)))
    sizes = draw(st.lists(st.integers(1, 8), min_size=shape[0], max_size=shape[0]))
    mask = draw(st.none() | arrays(bool, shape[1:]))
    return indices, sizes, mask


def counted_by_hand(indices: NDArray[Any], sizes: Sequence[int], mask: NDArray[Any] | None) -> tuple[Any, Any, Any]:
    valid = np.ones(indices.shape[1:], bool) if mask is None else mask
    counts = [[0] * max(sizes) for _ in sizes]
    ignored, beyond = [0] * len(sizes), [0] * len(sizes)
    for layer, size in enumerate(sizes):
        for place in np.ndindex(indices.shape[1:]):
            code = int(indices[(layer, *place)])
            if code < 0 or not valid[place]:
                ignored[layer] += 1
            elif code >= size:
                beyond[layer] += 1
            else:
                counts[layer][code] += 1
    return counts, ignored, beyond


@given(batches())
def test_every_entry_is_counted_once_as_a_code_as_none_or_as_out_of_range(batch: Batch) -> None:
    indices, sizes, mask = batch
    counts, ignored, beyond = count_assignments(indices, sizes, mask)
    assert (counts.tolist(), ignored.tolist(), beyond.tolist()) == counted_by_hand(indices, sizes, mask)
    assert counts.dtype == ignored.dtype == beyond.dtype == np.int64


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_size_that_the_dtype_cannot_hold_is_no_problem(dtype: str) -> None:
    counts, ignored, beyond = count_assignments(np.array([[0, 1, 127]], dtype), 1000)
    assert (counts.shape, counts[0, 127], ignored[0], beyond[0]) == ((1, 1000), 1, 0, 0)


@pytest.mark.parametrize("size", [100, 200, 256, 1000])
def test_minus_one_in_eight_bits_is_not_code_255(size: int) -> None:
    counts, ignored, beyond = count_assignments(np.array([[-1, -128, 3]], np.int8), size)
    assert (counts.sum(), counts[0, 3], ignored[0], beyond[0]) == (1, 1, 2, 0)


def test_codes_at_the_end_of_a_wide_dtype_are_out_of_range() -> None:
    extremes = np.array([[np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0]])
    assert [part.tolist() for part in count_assignments(extremes, 2)] == [[[1, 0]], [1], [1]]


def test_a_mask_of_bytes_means_the_same_as_one_of_truths() -> None:
    indices = np.array([[[0, 1, 1], [2, 2, 2]]])
    mask = np.array([[1, 0, 2], [0, 0, 1]], np.uint8)
    assert count_assignments(indices, 3, mask).counts.tolist() == [[1, 1, 1]]


def test_a_codebook_of_one_code_counts_its_vectors() -> None:
    assert count_assignments(np.zeros((1, 5), np.uint8), 1).counts.tolist() == [[5]]


def test_views_of_any_stride_are_counted_alike() -> None:
    codes_last = np.random.default_rng(0).integers(-1, 9, (4, 5, 3)).astype(np.int16)
    view = np.moveaxis(codes_last, -1, 0)
    for got, expected in zip(count_assignments(view, 8), count_assignments(view.copy(), 8), strict=True):
        assert got.tolist() == expected.tolist()


@given(batches())
def test_indices_as_bytes_count_alike(batch: Batch) -> None:
    indices, sizes, mask = batch
    for given_, expected in zip(
        count_assignments(narrowed(indices), sizes, mask), count_assignments(indices, sizes, mask), strict=True
    ):
        assert given_.tolist() == expected.tolist()
    assert [part.tolist() for part in count_repeats(narrowed(indices), mask)] == [
        part.tolist() for part in count_repeats(indices, mask)
    ]


@given(batches())
def test_looking_once_for_counts_and_repeats_finds_what_looking_twice_does(batch: Batch) -> None:
    indices, sizes, mask = batch
    apart = (*count_assignments(indices, sizes, mask), *count_repeats(indices, mask))
    for given_, expected in zip((part for pair in counted(*batch) for part in pair), apart, strict=True):
        assert given_.tolist() == expected.tolist()
        assert given_.dtype == np.int64


@pytest.mark.parametrize("size", [255, 256, 257])
def test_looking_once_mistakes_no_code_at_the_end_of_a_byte(size: int) -> None:
    indices = np.array([[[0, 255, 255, 256, -1, 511]]], np.int16)
    counts, ignored, beyond = counted(indices, [size])[0]
    assert (counts.tolist(), ignored.tolist(), beyond.tolist()) == counted_by_hand(indices, [size], None)


@pytest.mark.parametrize("code", [-1, 255, 256, 511])
def test_only_codes_that_a_byte_can_hold_become_bytes(code: int) -> None:
    indices = np.array([[0, code]], np.int16)
    assert narrowed(indices).tolist() == indices.tolist()
    assert (narrowed(indices).dtype == np.uint8) == (code == 255)


@given(batches(), st.data())
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(batch: Batch, data: st.DataObject) -> None:
    indices, sizes, mask = batch
    if indices.ndim < 2:
        return
    cut = data.draw(st.integers(0, indices.shape[1]))
    parts = [
        count_assignments(indices[:, piece], sizes, None if mask is None else mask[piece])
        for piece in (slice(cut), slice(cut, None))
    ]
    whole = count_assignments(indices, sizes, mask)
    for position in range(3):
        assert (parts[0][position] + parts[1][position]).tolist() == whole[position].tolist()


@given(batches())
def test_neighbours_are_compared_only_where_both_are_codes(batch: Batch) -> None:
    indices, _, mask = batch
    valid = np.ones(indices.shape[1:], bool) if mask is None else mask
    same, pairs = [0] * len(indices), [0] * len(indices)
    for layer in range(len(indices)):
        for place in np.ndindex(indices.shape[1:]):
            if not place or place[-1] == 0:
                continue
            before = (*place[:-1], place[-1] - 1)
            one, two = indices[(layer, *before)], indices[(layer, *place)]
            if valid[before] and valid[place] and one >= 0 and two >= 0:
                pairs[layer] += 1
                same[layer] += int(one == two)
    repeats = count_repeats(indices, mask)
    assert (repeats.same.tolist(), repeats.pairs.tolist()) == (same, pairs)


def test_items_without_a_time_axis_have_no_neighbours() -> None:
    assert count_repeats(np.zeros((2, 30, 1), np.int64)).pairs.tolist() == [0, 0]
