"""Where the arrays of some steps lie in one slot. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import torch

from .capture import Item, Key, aligned
from .wire import HEAD_BYTES, Tensor

if TYPE_CHECKING:
    from .slots import Slot

MOST_NUMBERS: Final = 4096
"""Numbers that a slot has room for."""

MOST_SCALARS: Final = 512
"""Of these, such as are a tensor each; others come several in one."""

SPARE_BYTES: Final = 8192
"""What each slot has room for behind its arrays: the index of the message that they are sent in."""

START: Final = 4 * MOST_NUMBERS + 256
"""Where arrays begin: behind the numbers and the head of a message."""

BARE_BYTES: Final = START + SPARE_BYTES
"""What a slot takes without any array."""

TORCH_DTYPES: Final = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip

Groups: TypeAlias = dict[tuple[torch.dtype, torch.dtype], tuple[list[torch.Tensor], list[int]]]
"""For each pair of dtypes, what to copy into and the indices of the sources."""

Between: TypeAlias = Callable[[int], torch.Tensor | None]
"""Gives device memory of so many bytes for what is copied twice, or None."""


class Extra(NamedTuple):
    """Arrays that few steps have, to lie behind those that all have; ``plan`` tells apart what lies otherwise."""

    owner: int
    items: Sequence[Item]
    sources: Sequence[torch.Tensor]
    plan: Any


class Layout:
    """Where arrays of some steps lie in one slot: views to copy into, and host memory to send.

    What is to be turned, such as codes with the layers in their last axis, is copied as it is to memory ``between``,
    then turned, all of it at once: ``turned`` is what is copied to, and from. ``groups`` has, for each pair of dtypes,
    the views and the indices of their sources, which are of these ``dtypes``: few launches cost less than fast ones.
    """

    __slots__ = ("data", "device", "end", "extras", "groups", "host", "places", "spare", "tensors", "turned")

    def __init__(
        self,
        slot: Slot,
        at: int,
        parts: Sequence[Sequence[Item]],
        dtypes: Sequence[torch.dtype],
        between: Between,
    ) -> None:
        views: list[torch.Tensor] = []
        turned: list[tuple[int, int, Item]] = []  # the index of a view, where it lies, and what it is
        self.tensors: list[dict[Key, Tensor]] = []
        self.places: dict[int, tuple[int, int]] = {}
        for items in parts:
            tensors: dict[Key, Tensor] = {}
            for item in items:
                view = slot.device[at : at + item.nbytes].view(TORCH_DTYPES[item.dtype]).view(item.shape)
                if item.rows:
                    views.extend(view.unbind(0))
                elif item.turned:
                    turned.append((len(views), at, item))
                    views.append(view.movedim(0, -1))
                else:
                    views.append(view)
                data = slot.memory[at : at + item.nbytes]
                tensors[item.key] = Tensor(item.dtype, item.shape, data)
                self.places[id(data)] = at - START, item.nbytes
                at += aligned(item.nbytes)
            self.tensors.append(tensors)
        self.turned = _turned(slot, turned, views, between)
        groups: Groups = {}
        for index, (view, dtype) in enumerate(zip(views, dtypes, strict=True)):
            into, of = groups.setdefault((dtype, view.dtype), ([], []))
            into.append(view)
            of.append(index)
        self._until(slot, at, groups)

    def _until(self, slot: Slot, end: int, groups: Groups) -> None:
        self.groups = groups
        self.extras: dict[Any, Layout] = {}
        self.end = end
        self.device = slot.device[:end]
        self.host = slot.host[:end]
        self.spare = min(SPARE_BYTES, slot.capacity - end)
        self.data = slot.memory[START - HEAD_BYTES : end + self.spare]

    def first(self, count: int, slot: Slot) -> Layout:
        """Return how the first parts lie, where all of them are alike."""
        found = Layout.__new__(Layout)
        parts = len(self.tensors)
        found.tensors = self.tensors[:count]
        found.places = self.places
        found.turned = None
        if self.turned is not None:
            found.turned = self.turned[0][:count], self.turned[1][:count]
        groups = {}
        for dtypes, (into, of) in self.groups.items():
            many = len(into) // parts * count
            groups[dtypes] = into[:many], of[:many]
        found._until(slot, START + (self.end - START) // parts * count, groups)
        return found


def _turned(
    slot: Slot,
    turned: Sequence[tuple[int, int, Item]],
    views: list[torch.Tensor],
    between: Between,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Let several arrays that are alike be turned at once, by way of memory between.

    Changes their ``views`` to such of that memory, and returns where to copy it to, and it, turned. None where they are
    not alike or there is no memory: each is then turned as it is copied, which takes a launch each.
    """
    if len(turned) < 2:
        return None
    _, first, item = turned[0]
    apart = turned[1][1] - first
    if any(at != first + index * apart or of != item for index, (_, at, of) in enumerate(turned)):
        return None
    memory = between(len(turned) * item.nbytes)
    if memory is None:
        return None
    dtype = TORCH_DTYPES[item.dtype]
    straight = memory[: len(turned) * item.nbytes].view(dtype).view(len(turned), *item.shape[1:], item.shape[0])
    for (index, _, _), view in zip(turned, straight.unbind(0), strict=True):
        views[index] = view
    size = (len(turned) - 1) * apart + item.nbytes
    rows = slot.device[first : first + size].view(dtype)
    strides = torch.empty(item.shape, device="meta").stride()
    return rows.as_strided((len(turned), *item.shape), (apart // rows.itemsize, *strides)), straight.movedim(-1, 1)
