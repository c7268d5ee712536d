"""What one step has to tell, on its way from the tensors to the socket, and what makes messages of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from .capture import Item, Key, item_of
from .gradients import by_module
from .scalars import ENERGY, LOSS, NORM, RATE, Scalars
from .wire import Codebooks, Codes, Message, Origin, Tensor, Unpacked, header_of_codes

if TYPE_CHECKING:
    from .slots import Slot

GRADIENT_KEY: Final = ("gradients",)

Build = Callable[["Arrived", int], Message]
"""Makes a message of what has arrived, and the message's number."""


class Arrived(Protocol):
    """What a message with arrays is made of: a step, when it was, and its arrays on the host."""

    step: int
    time_ns: int

    @property
    def tensors(self) -> Mapping[Key, Tensor]:
        """Return the arrays by key."""


class Entry:
    """What one call of ``step`` has to tell, on its way from the tensors to the socket."""

    __slots__ = (
        "alone",
        "costs",
        "items",
        "modules",
        "outgoing",
        "plan",
        "rows",
        "scalars",
        "slot",
        "sources",
        "step",
        "tensors",
        "time_ns",
    )

    def __init__(self, step: int) -> None:
        self.step = step
        self.time_ns = time.time_ns()
        self.scalars = Scalars()
        self.rows: dict[str, int] = {}
        self.items: list[Item] = []
        self.sources: list[Any] = []
        self.outgoing: list[tuple[str, Build]] = []
        self.tensors: dict[Key, Tensor] = {}  # of the slot where nothing was on the host: not to be changed
        self.modules: list[str] = []
        self.slot: Slot | None = None
        self.plan: Any = None  # tells where its arrays lie, if somebody knows; see Slot.copy
        self.alone = False  # arrays only, of a step that is sent on its own
        self.costs: dict[str, float] = {}

    def take(self, key: Key, kind: str, sources: Sequence[Any], shape: tuple[int, ...], dtype: str) -> None:
        """Note an array to take. Raises :class:`Refused` where its sources are in two places."""
        self.items.append(item_of(key, kind, sources, shape, dtype))
        self.sources.extend(sources)

    @property
    def on_host(self) -> bool:
        """Return whether any of the arrays was on the host when it was given."""
        return any(item.on_host for item in self.items)

    def resolve(self) -> None:
        """Take in what has arrived."""
        scalars = self.scalars
        if self.slot is not None:
            scalars.resolve(self.slot.numbers(len(scalars.names)))
            if self.outgoing or self.items:
                arrived = self.slot.tensors(0)
                self.tensors = {**self.tensors, **arrived} if self.tensors else arrived

    def fields(self) -> dict[str, Any]:
        """Return what its message tells, once it has arrived."""
        known = self.scalars.known
        found: dict[str, Any] = {}
        for group, field in ((LOSS, "losses"), (RATE, "learning_rates")):
            if group in known:
                found[field] = known[group]
        if self.rows:
            found.update(energies(known.get(ENERGY, {}), self.rows))
        taken = self.tensors.get(GRADIENT_KEY)
        of_parameters = [] if taken is None else np.frombuffer(taken.data, np.float32).tolist()
        found.update(gradient_norms(self.scalars.one(NORM), of_parameters, self.modules))
        return found


def energies(norms: Mapping[str, float], rows: Mapping[str, int]) -> dict[str, Any]:
    """Return the mean squared norm of what each layer left over, and of what entered the first, as a message's fields.

    ``norms`` are over all of a layer's vectors, ``rows`` how many those were; the name of what entered is "".
    """
    found = {layer: norm * norm / rows[layer] for layer, norm in norms.items() if layer in rows}
    entered = found.pop("", None)
    fields: dict[str, Any] = {"residual_energy": found} if found else {}
    if entered is not None:
        fields["input_energy"] = entered
    return fields


def gradient_norms(norm: float | None, of_parameters: Sequence[float], modules: Sequence[str]) -> dict[str, Any]:
    """Return the gradient norm, and those by module where the norms of parameters are told, as a message's fields.

    ``modules`` names the module of each parameter. Where no norm of all was given, it is made of theirs.
    """
    fields: dict[str, Any] = {}
    if of_parameters:
        found = by_module(of_parameters, modules)
        fields["gradient_norms"] = found
        norm = math.hypot(*found.values()) if norm is None else norm
    if norm is not None:
        fields["gradient_norm"] = norm
    return fields


@dataclass(frozen=True, slots=True)
class CodesBuild:
    """Makes the message of a step's codes, ``place`` of so many; or the one of the codes of several steps."""

    origin: Origin
    layers: tuple[str, ...]
    place: tuple[int, int]
    key: Key
    mask_key: Key | None

    def __call__(self, entry: Arrived, seq: int) -> Codes:
        """Return the message of one step."""
        mask = entry.tensors.get(self.mask_key) if self.mask_key is not None else None
        codes = entry.tensors[self.key]
        return Codes(self.origin, seq, entry.time_ns, entry.step, self.layers, codes, mask, *self.place)

    def together(self, entries: Sequence[Arrived], seq: int) -> Unpacked:
        """Return the message that tells of several steps, taken alike; raises KeyError where one lacks its codes."""
        header = header_of_codes(
            self(entries[0], seq), [entry.step for entry in entries], [entry.time_ns for entry in entries]
        )
        key, mask = self.key, self.mask_key
        if mask is None:
            return header, [entry.tensors[key] for entry in entries]
        return header, [entry.tensors[name] for entry in entries for name in (mask, key)]


class CodebooksBuild:
    """Makes the message of codebooks. What lies in the same place again is told from the same mapping: it is large."""

    __slots__ = ("_keys", "_of", "_origin", "_there")

    def __init__(self, origin: Origin, keys: Sequence[Key]) -> None:
        self._origin = origin
        self._keys = keys
        self._of: Mapping[Key, Tensor] | None = None
        self._there: Mapping[tuple[str, str], Tensor] = {}

    def __call__(self, entry: Arrived, seq: int) -> Codebooks:
        """Return the message, raise KeyError where all of them were left out."""
        tensors = entry.tensors
        if tensors is not self._of:
            self._of = tensors
            self._there = {(key[1], key[2]): tensors[key] for key in self._keys if key in tensors}
        if not self._there:
            raise KeyError("codebooks")
        return Codebooks(self._origin, seq, entry.time_ns, entry.step, self._there)
