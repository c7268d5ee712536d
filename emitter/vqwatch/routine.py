"""How the general way of :mod:`vqwatch.collect` took a step, kept for the steps after it that look the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import schedule
from .collect import GRADIENT_KEY, energies, gradient_norms
from .scalars import ENERGY, LOSS, NORM, RATE

if TYPE_CHECKING:
    import torch

    from .capture import Item, Key
    from .collect import Build, Entry
    from .held import Held
    from .staging import Slot
    from .wire import Tensor


def look(held: Held, with_codes: bool) -> Any:
    """Return what a step's routine is found by: the names of its numbers and the shape of its codes."""
    shape = None
    if with_codes:
        shape = (held.tensors[held.numbers].shape, held.codes is None, held.mask is None)
    known = tuple([type(value) is float for value in held.values])
    return held.names, known, held.norm is None, tuple(held.norms), shape


class Routine:
    """How to take the numbers and codes of steps that look alike: what the general way made of one."""

    __slots__ = ("codes_dtype", "items", "layers", "losses", "mask", "moved", "nbytes", "outgoing", "sources")

    def __init__(self, entry: Entry, held: Held, with_codes: bool) -> None:
        self.losses = [name for group, name in entry.scalars.names if group == LOSS]
        self.items: list[Item] = entry.items if with_codes else []
        self.nbytes = 0
        self.outgoing: list[tuple[str, Build]] = entry.outgoing if with_codes else []
        self.layers = [layer for layer, _ in held.tapped] if held.codes is None else None
        self.mask = None if held.mask is None else (held.mask.shape, held.mask.dtype)
        self.sources = len(entry.sources)
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
            arrays = held.arrays
            masked = held.mask is not None and len(entry.items) == 2  # one that fits; hooks may tell codes in one row
            if held.mask is not None and not masked:
                arrays.pop()
            if len(entry.sources) != len(arrays) or len(entry.items) != 1 + masked:
                return None
            if any(not array.is_cuda or array.is_inference() for array in arrays):
                return None
            if masked and entry.sources[-1].shape != held.arrays[-1].shape:
                return None
            if held.codes is not None and entry.sources[0].shape not in (
                held.codes.shape,
                held.codes.movedim(-1, 0).shape,
            ):
                return None
        return cls(entry, held, with_codes)

    def fits(self, numbers: Sequence[torch.Tensor], held: Held) -> bool:
        """Return whether a step found by its look is taken this way: all on the device, of the same types."""
        for number in numbers:
            if not number.is_cuda or number.shape:
                return False
        for rate in held.rates:
            if type(rate) is not float:
                return False
        if not self.items:
            return True
        for array in held.arrays:
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
        "_at", "_known", "_losses", "_rates", "_rows", "_with_norm", "items", "modules", "outgoing", "part", "step",
        "tensors", "time_ns",
    )  # fmt: skip

    def __init__(self, held: Held, routine: Routine, at: int, part: int) -> None:
        self.step = held.step
        self.time_ns = held.time_ns
        self.part = part
        self.items: Sequence[Item] = routine.items
        self.outgoing: list[tuple[str, Build]] = routine.outgoing
        self.modules: list[str] = []
        self.tensors: Mapping[Key, Tensor] = {}
        self._at = at
        self._losses = routine.losses
        self._with_norm = held.norm is not None
        self._known: dict[str, float] = {}
        if len(held.names) > len(routine.losses):
            pairs = zip(held.names, held.values, strict=True)
            self._known = {name: value for name, value in pairs if type(value) is float}
        self._rates: list[float] = held.rates
        self._rows = {layer: rows for layer, (_, rows) in held.norms.items()} if held.norms else None

    def fields(self, numbers: Sequence[float]) -> dict[str, Any]:
        """Return what its message tells, given the numbers of all steps that lie in the slot."""
        at = self._at
        end = at + len(self._losses)
        losses = dict(zip(self._losses, numbers[at:end], strict=True))
        losses.update(self._known)
        norm = None
        if self._with_norm:
            norm = numbers[end]
            end += 1
        norms = dict(zip(self._rows, numbers[end : end + len(self._rows)], strict=True)) if self._rows else {}
        found: dict[str, Any] = {"losses": losses} if losses else {}
        if self._rates:
            found["learning_rates"] = {str(index): rate for index, rate in enumerate(self._rates)}
        if self._rows:
            found.update(energies(norms, self._rows))
        found.update(gradient_norms(norm, self.tensors.get(GRADIENT_KEY), self.modules))
        return found


class Batch:
    """Ordinary steps that lie in one slot, with so many numbers in all."""

    def __init__(self, slot: Slot, steps: Sequence[Taken], numbers: int, seconds: float) -> None:
        self.slot = slot
        self.steps = steps
        self._numbers = numbers
        self._seconds = seconds

    @property
    def arrived(self) -> bool:
        """Return whether everything is on the host. Does not wait."""
        return self.slot.arrived

    @property
    def numbers(self) -> list[float]:
        """Return the numbers of all steps, once arrived."""
        return self.slot.numbers(0, self._numbers)

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what the arrays of one of the steps cost, told what it took to send them all."""
        share = (self._seconds / 2 + seconds) / len(self.steps)
        return {schedule.CODES: share} if self.steps[0].items else {}
