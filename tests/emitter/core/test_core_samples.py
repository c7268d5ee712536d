"""A sample of tensors that look as the last ones did is the sample that a full look at them gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vqwatch.entry import Entry
from vqwatch.samples import Samples
from vqwatch.wire import Origin

MOST_BYTES = 2 * 4 * 6 * 8 * 2
"""Room for two of the sequences below, of the original and of what was reconstructed."""


@pytest.fixture(autouse=True)
def host_for_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors on the host pass for such on a device."""

    def look(value: Any) -> Any:
        return (value.shape, value.dtype, value.layout) if type(value) is Tensor else None

    monkeypatch.setattr("vqwatch.samples._look", look)
    monkeypatch.setattr("vqwatch.samples.take", lambda value, _what: value.detach())
    monkeypatch.setattr("vqwatch.samples.wire_dtype", lambda value: {1: "bool", 2: "bf16", 4: "f32"}[value.itemsize])


def batch(sequences: int = 5, masked: bool = True, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    shape = (sequences, 6, 8)
    mask = torch.rand(shape[:2]) > 0.5 if masked else None
    return [torch.randn(shape).to(dtype), torch.randn(shape, requires_grad=True), mask]


def alone() -> Entry:
    entry = Entry(0)
    entry.alone = True
    return entry


@pytest.mark.parametrize("masked", [True, False])
def test_what_is_taken_again_is_what_a_full_look_gives(masked: bool) -> None:
    one, other = Samples(Origin("r", 0, "s"), MOST_BYTES), Samples(Origin("r", 0, "s"), MOST_BYTES)
    first = batch(masked=masked)
    assert not one.take_again(alone(), *first), "nothing like it was taken before"
    one.take(alone(), *first)
    other.take(Entry(0), *first)  # with other things in its step: it says nothing of samples alone
    seen = []
    for _ in range(4):
        given, again, full = batch(masked=masked), alone(), alone()
        assert one.take_again(again, *given)
        other._known = None
        other.take(full, *given)
        assert [(item.key, item.shape, item.dtype) for item in again.items] == [
            (item.key, item.shape, item.dtype) for item in full.items
        ]
        assert all(torch.equal(left, right) for left, right in zip(again.sources, full.sources, strict=True))
        assert all(source.grad_fn is None for source in again.sources)
        assert again.plan is not None
        seen.append(next(row for row in range(5) if torch.equal(again.sources[0][0], given[0][row])))  # type: ignore[index]
    assert len({*seen}) > 1, "other rows each time"


def test_tensors_that_look_otherwise_are_looked_at() -> None:
    samples = Samples(Origin("r", 0, "s"), MOST_BYTES)
    samples.take(alone(), *batch())
    assert samples.take_again(alone(), *batch())
    original, reconstructed, mask = batch()
    for given in (
        batch(sequences=4), batch(masked=False), batch(dtype=torch.bfloat16), [original, None, mask],
        [original, reconstructed, mask.float()], [torch.nn.Parameter(original), reconstructed, mask],  # type: ignore[union-attr, arg-type]
    ):  # fmt: skip
        entry = alone()
        assert not samples.take_again(entry, *given)
        assert (entry.items, entry.sources, entry.plan) == ([], [], None)


def test_a_mask_that_has_to_be_reshaped_is_looked_at_each_time() -> None:
    samples = Samples(Origin("r", 0, "s"), MOST_BYTES)
    original, reconstructed, mask = batch()
    assert mask is not None
    assert samples.take(alone(), original, reconstructed, mask[..., None])
    assert not samples.take_again(alone(), original, reconstructed, mask[..., None])
