"""What somebody might hand to ``step()``: arrays of every kind, and objects that are none at all."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

SHAPES = [(), (0,), (1,), (7,), (2, 5), (2, 5, 2), (2, 5, 1), (1, 5, 2), (0, 5, 2), (2, 2, 5), (2, 5, 3, 2), (1,) * 9]
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.qint8,
]  # fmt: skip


class Liar:
    """Says that it is an array of a shape, and is none."""

    shape = (2, 5, 2)
    dtype = "float32"

    def numel(self) -> int:
        return 1

    def detach(self) -> Liar:
        return self


class Thorn:
    """Raises whatever is asked of it."""

    def _raise(self, *_arguments: Any, **_named: Any) -> Any:
        raise RuntimeError("thorn")

    __array__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __bool__ = __str__ = _raise
    __dlpack__ = __dlpack_device__ = __eq__ = __getitem__ = _raise
    __hash__ = None  # type: ignore[assignment]

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text("Thorn()")  # by which hypothesis tells of a failure

    def __getattr__(self, name: str) -> Any:
        raise (AttributeError if name.startswith("_") else RuntimeError)(name)

    def __repr__(self) -> str:
        return "Thorn()"


class ThornyMap(Mapping[str, Any]):
    """A mapping that cannot be read to its end."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Any:
        yield "total"
        raise RuntimeError("thorn")

    def __len__(self) -> int:
        return 1


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, how: str) -> Any:
    if dtype is torch.qint8:
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, dtype)
    plain = torch.zeros(shape).to(dtype)
    return _AS[how](plain)


def _strided(value: Tensor) -> Tensor:
    return torch.stack([value, value], -1)[..., 0]


def _nested(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(3, 2), torch.zeros(1, 2)])


def _inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _sparse(value: Tensor) -> Tensor:
    return torch.zeros(2, 5).to_sparse() if value.dim() == 0 else value.to(torch.float32).to_sparse()


class Wrapped(Tensor):
    """A subclass of somebody's."""


_AS: dict[str, Any] = {
    "plain": lambda value: value,
    "meta": lambda value: value.to("meta"),
    "sparse": _sparse,
    "csr": lambda _value: torch.eye(5).to_sparse_csr(),
    "nested": _nested,
    "strided": _strided,
    "expanded": lambda value: value[..., None].expand(*value.shape, 3),
    "inference": _inference,
    "negated": lambda value: torch._neg_view(value) if value.dtype is torch.float32 else value,
    "conjugated": lambda value: value.to(torch.complex64).conj(),
    "subclass": lambda value: value.as_subclass(Wrapped),
    "parameter": lambda value: torch.nn.Parameter(value, requires_grad=value.is_floating_point()),
    "graph": lambda _value: torch.zeros(2, 5, 8, requires_grad=True) * 2,
}

tensors = st.builds(_tensor, st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(sorted(_AS)))

numpy_arrays = st.one_of(
    st.builds(np.zeros, st.sampled_from(SHAPES), arrays.scalar_dtypes()),
    st.sampled_from([
        np.zeros((2, 5, 2), object), np.zeros(3, [("a", "f4"), ("b", "i8")]), np.array(["a", "b"]),
        np.ma.masked_array(np.zeros((2, 5)), mask=True), np.zeros((2, 5, 2), ">i4"), np.zeros((5, 2, 2)).T,
        np.float64(1.5), np.datetime64("2026-01-01"), np.zeros((2, 5, 2), np.longdouble),
    ]),
)  # fmt: skip

objects = st.sampled_from([
    object(), Liar(), Thorn(), ThornyMap(), SimpleNamespace(shape=3), int, len, ..., Decimal("1.5"), Fraction(1, 3),
    1j, b"bytes", bytearray(3), "text", {1, 2}, range(3), iter([1]), memoryview(b"abcd"),
])  # fmt: skip

numbers = st.one_of(st.floats(), st.integers(-(1 << 80), 1 << 80), st.booleans(), st.none())

leaves = st.one_of(numbers, objects, tensors, numpy_arrays)

names = st.one_of(st.integers(), st.text(min_size=1, max_size=5).filter(str.isprintable), st.just("n" * 128))

bad_names = st.sampled_from(["", "x" * 129, "a\x00b", "a\nb", "\ud800"])


def among(names: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Anything, alone or in lists, tuples and mappings with these names."""
    several = st.lists(leaves, max_size=3)
    return st.one_of(leaves, several, several.map(tuple), st.dictionaries(names, leaves, max_size=3))


anything = among(names)

too_many = st.sampled_from([1024, 1025, 3000]).map(lambda count: {f"number {index}": 0.5 for index in range(count)})

too_long = st.just({f"{index:04}".ljust(128, "\u732b"): 0.5 for index in range(1024)})

numbers_by_name = st.one_of(
    among(st.one_of(names, bad_names)), too_many, too_long, too_many.map(lambda named: list(named.values()))
)
"""Anything, with names that no message holds, or more of them than one holds."""
