"""What is wrong in a rule file: where, and what would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file; the line counts from 1, and 0 means the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, under which key (dotted from the file's top), and what to do about it."""

    where: Where
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class RuleError(ValueError):
    """Rule files that cannot be used; ``problems`` names every mistake found, in the order of the files."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    """Say that ``given`` is no known ``what``, what was probably meant, and what is allowed.

    >>> unknown("metric", "codebook_perplexty", ["codebook_perplexity", "loss"])
    "unknown metric 'codebook_perplexty'; did you mean 'codebook_perplexity'?"
    >>> unknown("layer", "9", ["0", "1"])
    "unknown layer '9'; allowed: 0, 1"
    """
    known = sorted(set(allowed))
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    start = f"unknown {what} {given!r}"
    if close:
        return f"{start}; did you mean {' or '.join(repr(name) for name in close)}?"
    if not known:
        return f"{start}; none is allowed here"
    shown = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
    return f"{start}; allowed: {shown}"
