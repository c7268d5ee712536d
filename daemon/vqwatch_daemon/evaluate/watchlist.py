"""Which checkpoints of a directory are next: each once, in order, when it no longer changes. Time is an argument."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vqwatch_daemon.evaluate.checkpoints import SUFFIXES

STILL_SECONDS: Final = 2.0
"""How long a file must not have changed before it counts as written."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """One content of one file."""

    path: Path
    inode: int
    size: int
    modified_ns: int


def listed(directory: Path) -> list[Stamp]:
    """Return the checkpoints that lie in a directory now; hidden files and those with other endings are none."""
    found = []
    for path in directory.iterdir():
        if path.suffix not in SUFFIXES or path.name.startswith("."):
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed while we looked
            continue
        if path.is_file():
            found.append(Stamp(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


class Watchlist:
    """Remembers what was seen and what is settled."""

    def __init__(self, still_seconds: float = STILL_SECONDS) -> None:
        self._still_seconds = still_seconds
        self._since: dict[Stamp, float] = {}
        self._settled: set[Stamp] = set()

    def look(self, found: Iterable[Stamp], now: float) -> list[Stamp]:
        """Return what is ready, the one written first coming first; what is gone is forgotten.

        A file that still changes waits until it has been the same for a while; those after it do not wait for it.
        """
        there = set(found)
        self._settled &= there
        self._since = {stamp: self._since.get(stamp, now) for stamp in there - self._settled}
        ready = [stamp for stamp, since in self._since.items() if now - since >= self._still_seconds and stamp.size]
        return sorted(ready, key=lambda stamp: (stamp.modified_ns, _natural(stamp.path.name)))

    def settle(self, stamp: Stamp) -> None:
        """Note that this content was evaluated, or cannot be: it comes again only when the file changes."""
        self._settled.add(stamp)
        self._since.pop(stamp, None)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts step_9 before step_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
