"""Reconstruction samples: which rows of a batch stand for it, and the tensors that are taken of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from . import schedule
from .arrays import Host, Refused, fitting, take, whole_shape, wire_dtype
from .wire import FLOAT_DTYPES, ITEM_BYTES, Message, Origin, Reconstruction

if TYPE_CHECKING:
    from .capture import Item
    from .entry import Arrived, Build, Entry

_NAMES: Final = ("original", "reconstructed", "mask")
_KEYS: Final = tuple(("reconstruction", name) for name in _NAMES)


class Samples:
    """Takes samples of at most ``most_bytes``, of other rows each time."""

    def __init__(self, origin: Origin, most_bytes: int) -> None:
        self._origin = origin
        self._most_bytes = most_bytes // 2
        self._turn = 0
        self._known: Known | None = None

    def take(self, entry: Entry, original: Any, reconstructed: Any, mask: Any) -> bool:
        """Take a sample, and return whether the mask, as :func:`~vqwatch.arrays.take` gives it, fits.

        Raises :class:`Refused` where there can be none.
        """
        pair = [take(original, "original"), take(reconstructed, "reconstructed")]
        shape = tuple(pair[0].shape)
        if shape != tuple(pair[1].shape):
            raise Refused("shape", f"original {list(shape)} beside reconstructed {list(pair[1].shape)}")
        if not 2 <= len(shape) <= 4 or 0 in shape:
            raise Refused("shape", f"original is {list(shape)}, expected [B, T, D] or [B, D]")
        if whole_shape(original, pair[0])[-1] != shape[-1]:
            raise Refused("sharded", f"this rank has {shape[-1]} of the features, expected all")
        dtypes = [wire_dtype(value) for value in pair]
        if not FLOAT_DTYPES.issuperset(dtypes):
            raise Refused("dtype", f"original is {dtypes[0]} and reconstructed {dtypes[1]}, expected floats")
        item_bytes = max(ITEM_BYTES[dtype] for dtype in dtypes)
        self._turn += 1
        chosen = rows(shape, item_bytes, self._most_bytes, self._turn)
        for key, value, dtype in zip(_KEYS, pair, dtypes, strict=False):
            part = _sliced(value, chosen)
            entry.take(key, schedule.RECONSTRUCTION, [part], tuple(part.shape), dtype)
        fitted = fitting(mask, shape[:-1]) if mask is not None else None
        if fitted is not None:
            part = _sliced(fitted, chosen[: len(shape) - 1])
            entry.take(_KEYS[2], schedule.RECONSTRUCTION, [part], tuple(part.shape), wire_dtype(mask))
        entry.outgoing.append(("reconstruction", self._message))
        if entry.alone and fitted is mask:
            self._known = Known.of(
                entry, item_bytes, [value for value in (original, reconstructed, mask) if value is not None]
            )
        return fitted is not None

    def take_again(self, entry: Entry, original: Any, reconstructed: Any, mask: Any) -> bool:
        """Take a sample of tensors on a device that look as those of the last one did; return whether they do.

        Most samples are taken so: to look at all that can be wrong with them takes as long as to copy them.
        """
        known = self._known
        given = (original, reconstructed) if mask is None else (original, reconstructed, mask)
        if known is None or [_look(value) for value in given] != known.looks:
            return False
        import torch

        self._turn += 1
        shape = original.shape
        chosen = rows(shape, known.item_bytes, self._most_bytes, self._turn)
        with torch.no_grad():
            entry.sources = [original[chosen], reconstructed[chosen]]
            if mask is not None:
                entry.sources.append(mask[chosen[: len(shape) - 1]])
        entry.items, entry.outgoing, entry.plan = known.items, known.outgoing, known
        return True

    def _message(self, entry: Arrived, seq: int) -> Message:
        original, reconstructed, mask = [entry.tensors.get(key) for key in _KEYS]
        if original is None or reconstructed is None:
            raise KeyError("reconstruction")
        return Reconstruction(self._origin, seq, entry.time_ns, entry.step, original, reconstructed, mask)


class Known:
    """How a sample was taken of tensors that have these ``looks``: it identifies the plan of its copies."""

    __slots__ = ("item_bytes", "items", "looks", "outgoing")

    def __init__(self, looks: list[Any], item_bytes: int, items: list[Item], outgoing: list[tuple[str, Build]]) -> None:
        self.looks = looks
        self.item_bytes = item_bytes
        self.items = items
        self.outgoing = outgoing

    @classmethod
    def of(cls, entry: Entry, item_bytes: int, given: list[Any]) -> Known | None:
        """Return how an entry's sample was taken of what was given, None where that was more than to slice tensors."""
        looks = [_look(value) for value in given]
        if None in looks or any(
            source.dtype != value.dtype for source, value in zip(entry.sources, given, strict=True)
        ):
            return None
        return cls(looks, item_bytes, [*entry.items], [*entry.outgoing])


def _look(value: Any) -> Any:
    """Return all in which tensors on a device can differ that are taken in another way; None for anything else."""
    import torch

    if type(value) is not torch.Tensor or not value.is_cuda:
        return None
    return value.shape, value.dtype, value.layout, value.device


def _sliced(value: Any, chosen: tuple[slice, ...]) -> Any:
    return Host(value.array[chosen], value.dtype) if isinstance(value, Host) else value[chosen]


def rows(shape: tuple[int, ...], item_bytes: int, most_bytes: int, turn: int) -> tuple[slice, ...]:
    """Return the slices of a sample ``[B, T, D]`` or ``[B, D]`` that has at most ``most_bytes``, at least one vector.

    Whole sequences, beginning at another one at each ``turn``; part of one sequence where a whole one is too long,
    in consecutive frames.

    >>> rows((16, 500, 1024), 4, 4_100_000, turn=3)
    (slice(6, 8, None), slice(0, 500, None))
    >>> rows((2, 500, 1024), 4, 1 << 20, turn=0)
    (slice(0, 1, None), slice(0, 256, None))
    """
    vector = max(1, item_bytes * shape[-1])
    frames = 1
    for size in shape[1:-1]:
        frames *= size
    sequence = max(1, vector * frames)
    count = min(shape[0], max(1, most_bytes // sequence)) if shape[0] else 0
    turns = max(1, shape[0] // count) if count else 1
    start = (turn % turns) * count
    chosen = (slice(start, start + count),)
    if len(shape) < 3:
        return chosen
    fitting = shape[1] if sequence <= most_bytes else max(1, most_bytes // max(1, sequence // max(1, shape[1])))
    return (*chosen, slice(0, min(shape[1], fitting)))
