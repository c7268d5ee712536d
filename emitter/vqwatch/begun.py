"""Ordinary steps of one routine, between the three calls that it takes to copy them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .batch import Batch, Regular, Taken

if TYPE_CHECKING:
    import torch

    from .entry import Build
    from .held import Held
    from .routine import Routine
    from .slots import Slot


class Looked(NamedTuple):
    """The first ``steps`` steps that are kept, all of one routine, and what is to be copied of them to a slot.

    ``numbers`` are those that all have, ``sources`` the arrays of the steps that have some, at the places ``parts``.
    ``told`` tells what lies behind those, laid out by ``plan``. ``special`` says that some steps have norms of layers
    or gradients beside.
    """

    slot: Slot
    routine: Routine
    steps: int
    parts: list[int]
    numbers: list[torch.Tensor]
    sources: list[torch.Tensor]
    told: Sequence[tuple[str, Build]]
    plan: Any
    special: bool
    seconds: float


class Begun(NamedTuple):
    """Steps whose numbers are on their way to the slot, and whose arrays, with their ``versions``, are not yet."""

    looked: Looked
    held: list[Held]
    versions: list[int]
    seconds: float

    def regular(self, seconds: float) -> Regular:
        """Return them as steps that are all alike, told how long the copies took."""
        looked = self.looked
        return Regular(looked.slot, looked.routine, self.held, looked.parts, looked.told, looked.plan, seconds)

    def apart(self, lost: Sequence[int], seconds: float) -> Batch:
        """Return them as steps that can each be told in its own way, without the arrays of those at some places."""
        looked = self.looked
        routine, parts = looked.routine, looked.parts
        seldom_at = routine.numbers * len(self.held)
        steps: list[Taken] = []
        outgoing = () if routine.arrays is None else routine.arrays.outgoing
        for index, one in enumerate(self.held):
            with_arrays = index in parts and index not in lost
            at = index * routine.numbers
            steps.append(Taken.of(one, routine, at, seldom_at, outgoing if with_arrays else ()))
            seldom_at += one.seldom_count
        steps[-1].outgoing = [*steps[-1].outgoing, *looked.told]
        return Batch(looked.slot, steps, [steps[index] for index in parts], seldom_at, seconds)
