"""The numbers of one step: read at once where they are on the host, later where they are on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .arrays import Host, Refused, checked_name, take, whole_shape
from .wire import MAX_ENTRIES

if TYPE_CHECKING:
    import torch

LOSS = "loss"
NORM = "norm"
RATE = "rate"
ENERGY = "energy"
OWN = "scalar"

_NAMED: Final = (LOSS, RATE, OWN)  # by those who use it, and as many as they like

NAMED_BYTES: Final = 40 << 10
"""What such numbers may take of a header of 64 KiB, with their names; the rest is for what is ours."""

_NUMBER_BYTES: Final = 11


class Scalars:
    """Numbers by group and name: those known, and those on a device with the tensors that will tell them.

    A tensor is kept until the step is staged, within the call that gave it.
    """

    __slots__ = ("counts", "known", "named_bytes", "names", "tensors")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.named_bytes = 0
        self.known: dict[str, dict[str, float]] = {}
        self.names: list[tuple[str, str]] = []
        self.tensors: list[torch.Tensor] = []

    def add(self, group: str, name: Any, value: Any) -> None:
        """Take a number, an array with one element, or a one-element tensor. Raises :class:`Refused`.

        Also where a message has no room for it: the daemon would refuse all of it, however often it is sent.
        """
        if group in _NAMED:
            self._add_named(group, checked_name(name), value)
        else:
            self._add(group, name, value)

    def _add_named(self, group: str, name: str, value: Any) -> None:
        size = len(name.encode()) + _NUMBER_BYTES
        count = self.counts.get(group, 0)
        if count >= MAX_ENTRIES or self.named_bytes + size > NAMED_BYTES:
            detail = f"a message holds at most {MAX_ENTRIES}, and {NAMED_BYTES} bytes with their names"
            raise Refused("limit", f"{group} {name!r} and what follows: {detail}")
        self._add(group, name, value)
        self.counts[group] = count + 1
        self.named_bytes += size

    def _add(self, group: str, name: str, value: Any) -> None:
        if type(value) is float or type(value) is int:
            self.known.setdefault(group, {})[name] = float(value)
            return
        taken = take(value, f"{group} {name}")
        for shape in (whole_shape(value, taken), tuple(taken.shape)):
            if math.prod(shape) != 1:
                raise Refused("shape", f"{group} {name!r} has the shape {list(shape)}, expected one number")
        if isinstance(taken, Host):
            array = taken.array
            number = float(array.reshape(-1)[0]) if taken.dtype != "bf16" else _bf16(int(array.reshape(-1)[0]))
            self.known.setdefault(group, {})[name] = number
        else:
            self.names.append((group, name))
            self.tensors.append(taken.view(()) if taken.ndim else taken)

    def resolve(self, values: Sequence[float]) -> None:
        """Fill in the numbers that have come from the device, in the order in which they were given."""
        for (group, name), value in zip(self.names, values, strict=False):
            self.known.setdefault(group, {})[name] = value

    def group(self, group: str) -> dict[str, float]:
        """Return the numbers of one group by name."""
        return self.known.get(group, {})

    def one(self, group: str) -> float | None:
        """Return the number of a group that has only one, None where it has none."""
        return self.known.get(group, {}).get("")


def _bf16(bits: int) -> float:
    import struct

    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def parameter_groups(optimizers: Sequence[Any]) -> list[Any]:
    """Return the parameter groups of some optimizers, one after the other, as they are now."""
    found: list[Any] = []
    for optimizer in optimizers:
        groups = getattr(optimizer, "param_groups", None)
        if isinstance(groups, (list, tuple)):
            found += groups
    return found


def learning_rates(optimizers: Sequence[Any], given: Any) -> Mapping[str, Any]:
    """Return learning rates by parameter group: as given, or from the optimizers' groups, by their number or name."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return {str(index): value for index, value in enumerate(given)}
    if given is not None:
        return {"0": given}
    found: dict[str, Any] = {}
    for index, group in enumerate(parameter_groups(optimizers)):
        if isinstance(group, Mapping) and "lr" in group:
            name = str(group.get("name", index))
            found[str(index) if name in found else name] = group["lr"]
    return found
