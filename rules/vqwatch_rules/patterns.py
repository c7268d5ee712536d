"""Shell patterns over label values; one that begins with ``!`` leaves out what it matches."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

GLOB: Final = frozenset("*?[!")


def split(patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns that take in, and those that leave out, without their ``!``."""
    inside = tuple(pattern for pattern in patterns if not pattern.startswith("!"))
    return inside, tuple(pattern[1:] for pattern in patterns if pattern.startswith("!"))


def matches(value: str, patterns: Sequence[str]) -> bool:
    """Tell whether a label value is meant; only exclusions mean everything else.

    >>> matches("vq_loss", ["vq*"]), matches("duplicate", ["!dup*"]), matches("truncated", ["!dup*"])
    (True, False, True)
    """
    inside, outside = split(patterns)
    if any(fnmatchcase(value, pattern) for pattern in outside):
        return False
    return not inside or any(fnmatchcase(value, pattern) for pattern in inside)


def literal(pattern: str) -> bool:
    """Tell whether a pattern is a plain value."""
    return not GLOB & set(pattern)
