"""Ordinary steps that are half copied, between the two calls that it takes."""

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


class Begun(NamedTuple):
    """Steps of one routine whose numbers are on their way to a slot, and whose arrays are not yet.

    Those are the ``sources``, with their ``versions``. ``parts`` are the places of the steps that have some; ``told``
    tells what lies behind those, laid out by ``plan``. ``special`` says that some steps have norms of layers or
    gradients beside.
    """

    slot: Slot
    routine: Routine
    held: list[Held]
    parts: list[int]
    sources: list[torch.Tensor]
    versions: list[int]
    told: Sequence[tuple[str, Build]]
    plan: Any
    special: bool
    seconds: float

    def regular(self, seconds: float) -> Regular:
        """Return them as steps that are all alike, told how long the copies took."""
        return Regular(self.slot, self.routine, self.held, self.parts, self.told, self.plan, seconds)

    def apart(self, lost: Sequence[int], seconds: float) -> Batch:
        """Return them as steps that can each be told in its own way, without the arrays of those at some places."""
        routine, at = self.routine, 0
        steps: list[Taken] = []
        outgoing = () if routine.arrays is None else routine.arrays.outgoing
        for index, one in enumerate(self.held):
            with_arrays = index in self.parts and index not in lost
            steps.append(Taken.of(one, routine, at, outgoing if with_arrays else ()))
            at += routine.numbers + len(one.norms)
        steps[-1].outgoing = [*steps[-1].outgoing, *self.told]
        return Batch(self.slot, steps, [steps[index] for index in self.parts], at, seconds)
