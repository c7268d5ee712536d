"""The index of bundles that differ in nothing but numbers, packed once: what goes into it again is numbers alone.

msgpack writes large whole numbers, and all floating ones, as a byte and eight more. So an index is packed with a mark
in place of each number that will differ, every mark is found again in what was packed, and its eight bytes are a hole.
To fill all holes is one call, where to pack a header of several steps is hundreds. A small number that fills a hole is
longer than it need be, and is read as the same.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, Final, TypeAlias

_WHOLE: Final = struct.Struct(">BQ")
_FLOATING: Final = struct.Struct(">Bd")
_MOST_HOLES: Final = 28
"""Filled in one call. What that takes is then so small that Python has memory for it at hand: see :mod:`.bundle`."""

_MOST_FOUND: Final = 100
"""Marks that are looked for in one part of the preparation."""

_UINT64: Final = 0xCF
_FLOAT64: Final = 0xCB
# Neither can be a part of any text: in UTF-8 their first bytes are not followed by the second ones.
_FIRST_WHOLE: Final = 0x6D << 56
_FIRST_FLOATING: Final = -(2.0**900)
_MARK: Final = re.compile(rb"(?:\xcf\x6d|\xcb\xf8).{7}", re.DOTALL)


class Marks:
    """Gives marks, each only once."""

    def __init__(self) -> None:
        self._given = 0

    def whole(self, count: int) -> list[int]:
        """Return marks for whole numbers."""
        self._given += count
        return [_FIRST_WHOLE + self._given - index for index in range(count)]

    def floating(self, count: int) -> list[float]:
        """Return marks for floating numbers."""
        self._given += count
        return [_FIRST_FLOATING * (1.0 + (self._given - index) / (1 << 32)) for index in range(count)]


Groups: TypeAlias = Sequence[Collection[int | float]]
"""Numbers, some and some: one list of all is more than Python has memory for at hand."""


class Stencil:
    """What was ``packed`` with marks in it, two or more, to be filled with as many numbers; ``size`` is in bytes.

    A mark can be there several times. Made ready in parts by :meth:`prepare`.
    """

    def __init__(self, packed: bytes, groups: Groups) -> None:
        self.size = len(packed)
        self._packed = packed
        self._numbers = [mark for group in groups for mark in group]  # filled again and again
        self._count = len(self._numbers)
        self._which_of = {mark: which for which, mark in enumerate(self._numbers)}
        self._searched = 0  # up to where marks were looked for
        self._holes: list[tuple[int, int]] = []  # where each begins, and which of the numbers goes there,
        self._cut = 0  # how many of them are in a piece,
        self._begin = 0  # and where the next piece begins
        self._pieces: list[tuple[int, struct.Struct, Callable[[Any], Any], list[Any]]] = []

    def prepare(self) -> bool:
        """Do the next part of what :meth:`fill` needs before the first time; return whether any was left.

        What is left then, :meth:`fill` does itself. Raises LookupError where a mark is not in what was packed, or was
        given twice.
        """
        if self._searched < self.size:
            self._search()
        elif self._cut < len(self._holes):
            self._add_piece()
        else:
            return False
        return True

    def _search(self) -> None:
        """Find some more of the marks."""
        at = self._searched
        for _ in range(_MOST_FOUND):
            found = _MARK.search(self._packed, at)
            if found is None:
                self._check()
                self._searched = self.size
                return
            at = found.end()
            layout = _WHOLE if found[0][0] == _UINT64 else _FLOATING
            which = self._which_of.get(layout.unpack(found[0])[1])
            if which is not None:
                self._holes.append((found.start() + 1, which))
        self._searched = at

    def _check(self) -> None:
        missing = set(range(self._count)).difference([which for _, which in self._holes])
        if missing or len(self._which_of) < self._count:
            raise LookupError(f"marks {sorted(missing)} are not in what was packed, or some are the same")

    def _add_piece(self) -> None:
        """Make what fills some more of the holes."""
        left = len(self._holes) - self._cut
        count = -(-left // -(-left // _MOST_HOLES))
        some = self._holes[self._cut : self._cut + count]
        self._cut += count
        begin = before = self._begin
        of_piece = ">"
        parts: list[Any] = []
        for at, which in some:
            of_piece += f"{at - before}s{'d' if isinstance(self._numbers[which], float) else 'Q'}"
            parts += self._packed[before:at], 0
            before = at + 8
        self._begin = end = before if self._cut < len(self._holes) else self.size
        parts.append(self._packed[before:end])
        piece = struct.Struct(f"{of_piece}{end - before}s")
        self._pieces.append((begin, piece, itemgetter(*[which for _, which in some]), parts))

    def fill(self, memory: memoryview, at: int, groups: Groups) -> None:
        """Write what was packed to ``memory``, at ``at``, with these numbers in place of the marks.

        Raises struct.error where there is no room, or a number is not of its mark's kind, or below 0; ValueError where
        they are more or fewer than the marks.
        """
        while self.prepare():
            pass
        numbers, end = self._numbers, 0
        for group in groups:
            start, end = end, end + len(group)
            numbers[start:end] = group
        if end != self._count:
            del numbers[self._count :]
            raise ValueError(f"{end} numbers, expected {self._count}")
        for begin, piece, pick, parts in self._pieces:
            parts[1::2] = pick(numbers)
            piece.pack_into(memory, at + begin, *parts)
