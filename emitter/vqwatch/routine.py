"""How the general way of :mod:`vqwatch.collect` took a step, kept for the steps after it that look the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from .capture import aligned
from .scalars import ENERGY, LOSS, NORM, RATE

if TYPE_CHECKING:
    import torch

    from .capture import Item
    from .entry import Build, Entry
    from .held import Held

MOST_ROUTINES: Final = 512


@dataclass(frozen=True, eq=False)
class Arrays:
    """The codes of a step, and its mask: from what they are taken, and how they are told.

    One object stands for all that are alike, and is known by identity.
    """

    items: tuple[Item, ...]
    outgoing: tuple[tuple[str, Build], ...]
    dtypes: tuple[torch.dtype, ...]

    def of(self, held: Held) -> list[torch.Tensor]:
        """Return the tensors of a step that has such arrays."""
        return held.tensors[held.numbers : held.numbers + len(self.dtypes)]

    @cached_property
    def nbytes(self) -> int:
        """Return the bytes that they take in a slot."""
        return sum(aligned(item.nbytes) for item in self.items)


class Routine:
    """How to take the numbers and codes of steps that look alike: what the general way made of one.

    ``losses`` names those on the device, ``floats`` those that are floats, ``numbers`` counts what is on the device,
    ``dtype`` is that of all of it, if they have one.
    """

    __slots__ = (
        "_dtypes", "_layers", "_masked", "_names", "_norms", "_number_dtypes", "_shapes", "_types", "arrays", "dtype",
        "floats", "losses", "normed", "numbers",
    )  # fmt: skip

    def __init__(self, entry: Entry, held: Held, with_codes: bool) -> None:
        self.losses = [name for group, name in entry.scalars.names if group == LOSS]
        self.arrays: Arrays | None = None
        if with_codes:
            dtypes = tuple(source.dtype for source in entry.sources)
            self.arrays = Arrays(_as_given(entry, held), tuple(entry.outgoing), dtypes)
        self._names = held.names
        self._types = [type(value) for value in held.values]
        self._number_dtypes = [number.dtype for number in held.scalars]
        self.floats = [name for name, value in zip(held.names, held.values, strict=True) if type(value) is float]
        self.numbers = len(self._number_dtypes)
        self.dtype = self._number_dtypes[0] if len({*self._number_dtypes}) == 1 else None
        self.normed = held.norm is not None
        self._norms = list(held.norms)
        self._layers = [layer for layer, _ in held.tapped] if held.codes is None else None
        self._masked = held.mask is not None
        self._dtypes = [array.dtype for array in held.arrays]
        self._shapes = [array.shape for array in held.arrays]

    @property
    def outgoing(self) -> Sequence[tuple[str, Build]]:
        """Return what tells a step's arrays."""
        return () if self.arrays is None else self.arrays.outgoing

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

    def tensors_of(
        self, steps: Sequence[Held], parts: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """Return the tensors of some steps: the numbers of all, and the arrays of those at the places ``parts``.

        None where the steps are not all taken this way, whatever arrays the others have.
        """
        with_arrays = [steps[part] for part in parts]
        numbers = [tensor for one in steps for tensor in one.tensors[: one.numbers]]
        given = [tensor for one in with_arrays for tensor in one.tensors[one.numbers :]]
        if not (self._fit(steps, numbers) and self._fit_arrays(with_arrays, given)):
            return None
        if self.arrays is None or not parts:
            return numbers, []
        each, used = len(self._dtypes), len(self.arrays.dtypes)
        if used == each:
            return numbers, given
        return numbers, [tensor for at in range(0, len(given), each) for tensor in given[at : at + used]]

    def versions_of(self, steps: Sequence[Held], parts: Sequence[int]) -> list[int]:
        """Return the versions of the arrays that :meth:`tensors_of` gives, as they were when they were given."""
        start = self.numbers
        end = start if self.arrays is None else start + len(self.arrays.dtypes)
        return [version for part in parts for version in steps[part].versions[start:end]]

    def _fit(self, steps: Sequence[Held], numbers: Sequence[torch.Tensor]) -> bool:
        """Return whether :meth:`fits` holds for the numbers of each of some steps, whatever layers' norms are beside.

        It takes a fraction of asking each. ``numbers`` are theirs, one step's after the other's.
        """
        count = self.numbers
        for one in steps:
            if one.names != self._names or (one.norm is not None) != self.normed or one.numbers != count:
                return False
        if self.floats and [type(value) for one in steps for value in one.values] != self._types * len(steps):
            return False
        return (
            {type(rate) for one in steps for rate in one.rates} <= {float}
            and len({len(one.rates) for one in steps}) == 1
            and self._fit_numbers(numbers, len(steps))
        )

    def _fit_numbers(self, numbers: Sequence[torch.Tensor], times: int) -> bool:
        if {number.dim() for number in numbers} != {0} or False in [number.is_cuda for number in numbers]:
            return False
        if self.dtype is not None:
            return {number.dtype for number in numbers} == {self.dtype}
        return [number.dtype for number in numbers] == self._number_dtypes * times

    def _fit_arrays(self, steps: Sequence[Held], arrays: Sequence[torch.Tensor]) -> bool:
        """Return whether :meth:`fits` holds for the arrays of each of some steps, one step's after the other's."""
        codes, times = self._layers is None, len(steps)
        for one in steps:
            if (one.codes is not None) != codes or (one.mask is not None) != self._masked:
                return False
            if one.tapped and [layer for layer, _ in one.tapped] != self._layers:
                return False
        return (
            [array.dtype for array in arrays] == self._dtypes * times
            and [array.shape for array in arrays] == self._shapes * times
            and False not in [array.is_cuda for array in arrays]
        )

    def has_shapes(self, held: Held) -> bool:
        """Return whether the arrays of a step are of these shapes."""
        return [array.shape for array in held.arrays] == self._shapes

    def fits(self, held: Held, numbers: Sequence[torch.Tensor]) -> bool:
        """Return whether a step is taken this way: it looks as that one did, and all of it is on the device."""
        if (
            held.names != self._names
            or [type(value) for value in held.values] != self._types
            or [number.dtype for number in numbers] != self._number_dtypes
            or (held.norm is not None) != self.normed
            or list(held.norms) != self._norms
        ):
            return False
        for number in numbers:
            if not number.is_cuda or number.shape:
                return False
        for rate in held.rates:
            if type(rate) is not float:
                return False
        if self.arrays is None:
            return True
        arrays = held.arrays
        if (
            [array.shape for array in arrays] != self._shapes
            or [array.dtype for array in arrays] != self._dtypes
            or (held.mask is not None) != self._masked
            or (None if held.codes is not None else [layer for layer, _ in held.tapped]) != self._layers
        ):
            return False
        return False not in [array.is_cuda for array in arrays]


def _look(held: Held, numbers: Sequence[torch.Tensor], with_codes: bool) -> Any:
    """Return what a step's routine is found by: what :meth:`Routine.fits` compares. Unlike that, it can be hashed."""
    arrays = [(array.dtype, array.shape) for array in held.arrays] if with_codes else []
    types = [type(value) for value in held.values]
    dtypes = [number.dtype for number in numbers]
    none = held.norm is None, held.codes is None, held.mask is None
    return held.names, tuple(types), tuple(dtypes), tuple(held.norms), *(none if with_codes else none[:1]), *arrays


def _as_given(entry: Entry, held: Held) -> tuple[Item, ...]:
    """Return an entry's items, the codes turned where they were given with the layers in the last axis."""
    codes, first = held.codes, entry.sources[0]
    if codes is None or (first.shape == codes.shape and first.stride() == codes.stride()):
        return tuple(entry.items)
    return replace(entry.items[0], turned=True), *entry.items[1:]


class Routines:
    """The routines of the steps met so far. Of one step, arrays take ``most_bytes`` and all messages are
    ``most_messages``, at most."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self.most_messages = 1
        self._known: dict[Any, Routine] = {}
        self._arrays: dict[Any, Arrays] = {}
        self._latest: list[Routine | None] = [None, None]  # without codes, and with them; no layers' norms

    @property
    def kinds(self) -> int:
        """Return how many kinds of arrays were met."""
        return len(self._arrays)

    def latest(self, with_codes: bool) -> Routine | None:
        """Return how the last step was taken, of those with codes or of those without; None before the first."""
        return self._latest[with_codes]

    def of(self, held: Held, with_codes: bool) -> Routine | None:
        """Return how a step is taken: as the last one was, or one before; None where nothing like it was met."""
        numbers = held.scalars
        latest = self._latest[with_codes]
        if latest is not None and not held.norms and latest.fits(held, numbers):
            return latest
        routine = self._known.get(_look(held, numbers, with_codes))
        if routine is None or not routine.fits(held, numbers):
            return None
        if not held.norms:
            self._latest[with_codes] = routine
        return routine

    def learn(self, entry: Entry, held: Held, with_codes: bool) -> Arrays | None:
        """Keep what the general way made of a step; return its arrays where none like them were met before."""
        if len(self._known) >= MOST_ROUTINES:
            self._known.clear()
            self._arrays.clear()
        numbers = held.scalars
        without = Routine.of(entry, held, with_codes=False)
        if without is not None:
            self._known[_look(held, numbers, with_codes=False)] = without
        routine = Routine.of(entry, held, with_codes=True) if with_codes else None
        if routine is None or routine.arrays is None:
            return None
        self._known[_look(held, numbers, with_codes=True)] = routine
        arrays = routine.arrays
        known = self._arrays.setdefault((arrays.items, arrays.outgoing, arrays.dtypes), arrays)
        if known is not arrays:
            routine.arrays = known
            return None
        self.most_messages = max(self.most_messages, 1 + len(arrays.outgoing))
        self.most_bytes = max(self.most_bytes, arrays.nbytes)
        return arrays
