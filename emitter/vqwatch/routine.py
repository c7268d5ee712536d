"""How the general way of :mod:`vqwatch.collect` took a step, kept for the steps after it that look the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import schedule
from .scalars import ENERGY, LOSS, NORM, RATE

if TYPE_CHECKING:
    from .capture import Item
    from .collect import Build, Entry
    from .held import Held
    from .staging import Slot


def look(held: Held, with_codes: bool) -> Any:
    """Return what a step's routine is found by: the names of its numbers and the shape of its codes."""
    shape = None
    if with_codes:
        arrays = held.arrays()
        shape = (arrays[0].shape if arrays else None, held.codes is None, held.mask is None)
    kinds = tuple([type(value) is float for value in held.values])
    return held.names, kinds, held.norm is None, tuple(held.norms), shape


class Routine:
    """How to take the numbers and codes of steps that look alike: what the general way made of one."""

    __slots__ = ("codes_dtype", "items", "layers", "mask", "moved", "names", "nbytes", "outgoing")

    def __init__(self, entry: Entry, held: Held, with_codes: bool) -> None:
        self.names = entry.scalars.names
        self.items: list[Item] = entry.items if with_codes else []
        self.nbytes = 0
        self.outgoing: list[tuple[str, Build]] = entry.outgoing if with_codes else []
        self.layers = [layer for layer, _ in held.tapped] if held.codes is None else None
        self.mask = None if held.mask is None else (held.mask.shape, held.mask.dtype)
        self.codes_dtype = entry.sources[0].dtype if with_codes else None
        self.moved = False
        if with_codes and held.codes is not None:
            first = entry.sources[0]
            self.moved = first.shape != held.codes.shape or first.stride() != held.codes.stride()

    @classmethod
    def of(cls, entry: Entry, held: Held, with_codes: bool) -> Routine | None:
        """Return the routine for a step that was taken the general way, None where it was no ordinary one."""
        scalars = entry.scalars
        losses = sum(type(value) is not float for value in held.values)
        wanted = [LOSS] * losses + [NORM] * (held.norm is not None) + [ENERGY] * len(held.norms)
        if not wanted or [group for group, _ in scalars.names] != wanted or scalars.known.keys() - {LOSS, RATE}:
            return None
        floats = [name for name, value in zip(held.names, held.values, strict=True) if type(value) is float]
        if list(scalars.group(LOSS)) != floats or len(scalars.group(RATE)) != len(held.rates):
            return None  # some were refused, or are called otherwise
        if any(value.is_inference() for value in scalars.tensors):  # they have no versions
            return None
        if with_codes:
            arrays = held.arrays()
            if len(entry.sources) != len(arrays) or len(entry.items) != 1 + (held.mask is not None):
                return None
            if any(not array.is_cuda or array.is_inference() for array in arrays):
                return None
            if held.mask is not None and entry.sources[-1].shape != held.mask.shape:
                return None
            if held.codes is not None and entry.sources[0].shape not in (
                held.codes.shape,
                held.codes.movedim(-1, 0).shape,
            ):
                return None
        return cls(entry, held, with_codes)

    def fits(self, numbers: Sequence[torch.Tensor], held: Held, with_codes: bool) -> bool:
        """Return whether a step found by its look is taken this way: all on the device, of the same types."""
        for number in numbers:
            if not number.is_cuda or number.shape:
                return False
        for rate in held.rates:
            if type(rate) is not float:
                return False
        if not with_codes:
            return True
        for array in held.arrays():
            if not array.is_cuda:
                return False
        if held.codes is not None:
            if held.codes.dtype is not self.codes_dtype:
                return False
        else:
            shape = held.tapped[0][1].shape
            if [layer for layer, _ in held.tapped] != self.layers:
                return False
            for _, indices in held.tapped:
                if indices.shape != shape or indices.dtype is not self.codes_dtype:
                    return False
        return held.mask is None or (held.mask.shape, held.mask.dtype) == self.mask


class Taken:
    """An ordinary step on its way: as little as tells what to send when it has arrived."""

    __slots__ = (
        "items", "known", "modules", "norms", "number_at", "outgoing", "part", "rates", "routine", "step", "time_ns",
    )  # fmt: skip

    def __init__(self, held: Held, routine: Routine, number_at: int) -> None:
        self.step = held.step
        self.time_ns = held.time_ns
        self.routine = routine
        self.number_at = number_at
        self.part = 0
        self.items: Sequence[Item] = routine.items
        self.outgoing: list[tuple[str, Build]] = routine.outgoing
        self.known = {name: value for name, value in zip(held.names, held.values, strict=True) if type(value) is float}
        self.rates: list[float] = held.rates
        self.modules: list[str] = []
        self.norms = {layer: rows for layer, (_, rows) in held.norms.items()}

    def fill(self, entry: Entry, slot: Slot) -> None:
        """Make of it what the general way would have made."""
        scalars = entry.scalars
        entry.time_ns = self.time_ns
        entry.slot, entry.part, entry.number_at = slot, self.part, self.number_at
        entry.items = list(self.items)
        entry.outgoing = self.outgoing
        entry.rows = self.norms
        entry.modules = self.modules
        scalars.names = self.routine.names
        if self.known:
            scalars.known[LOSS] = self.known
        if self.rates:
            scalars.known[RATE] = {str(index): rate for index, rate in enumerate(self.rates)}


class Batch:
    """Ordinary steps that lie in one slot."""

    def __init__(self, slot: Slot, steps: Sequence[Taken], seconds: float) -> None:
        self.slot = slot
        self.steps = steps
        self._seconds = seconds

    @property
    def arrived(self) -> bool:
        """Return whether everything is on the host. Does not wait."""
        return self.slot.arrived

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what the arrays of one of the steps cost, told what it took to send them all."""
        share = (self._seconds / 2 + seconds) / len(self.steps)
        return {schedule.CODES: share} if self.steps[0].routine.items else {}
