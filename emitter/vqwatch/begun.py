"""Ordinary steps of one routine, between the three calls that it takes to copy them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .batch import Regular, Unlike

if TYPE_CHECKING:
    import torch

    from .entry import Build
    from .held import Held
    from .routine import Routine
    from .slots import Slot


class Looked(NamedTuple):
    """The slot that the first ``steps`` steps kept go to, if they turn out to be all of this routine.

    Those at the places ``parts`` have arrays. ``told`` tells what lies behind those, laid out by ``plan``. ``special``
    says that some steps have norms of layers or gradients beside.
    """

    slot: Slot
    routine: Routine
    steps: int
    parts: list[int]
    told: Sequence[tuple[str, Build]]
    plan: Any
    special: bool
    seconds: float


class Begun(NamedTuple):
    """Steps whose numbers are on their way to the slot, and whose arrays, with their ``versions``, are not yet."""

    looked: Looked
    held: list[Held]
    sources: list[torch.Tensor]
    versions: list[int]
    seconds: float

    def regular(self, seconds: float) -> Regular:
        """Return them as steps that are all alike, told how long the copies took."""
        looked = self.looked
        return Regular(looked.slot, looked.routine, self.held, looked.parts, looked.told, looked.plan, seconds)

    def unlike(self, lost: Sequence[int], seconds: float) -> Unlike:
        """Return them as steps that differ, without the arrays of those at some places."""
        looked = self.looked
        return Unlike(looked.slot, looked.routine, self.held, looked.parts, lost, looked.told, seconds)
