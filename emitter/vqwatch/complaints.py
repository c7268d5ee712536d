"""What went wrong in a guest's life: said once in the log, counted every time, never raised."""

from __future__ import annotations

import logging
from collections import Counter

from .arrays import Refused

_log = logging.getLogger("vqwatch")


class Complaints:
    """Counts what was dropped by "kind:reason"; the first of each reason that is somebody's mistake is logged."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._said: set[str] = set()

    def refused(self, kind: str, error: Refused) -> None:
        """Count an input that could not be used; the rest of the step goes on."""
        self.say(f"{kind}:{error.reason}", "left out: %s (said once, counted as %s)", error, f"{kind}:{error.reason}")

    def failed(self, kind: str, error: BaseException) -> None:
        """Count an error of our own or of a library below us; training goes on."""
        key = f"{kind}:{type(error).__name__}"
        self.dropped[key] += 1
        if key not in self._said:
            self._said.add(key)
            _log.warning("could not observe %s (said once, counted as %s)", kind, key, exc_info=error)

    def say(self, key: str, text: str, *arguments: object) -> None:
        """Count ``key`` and log the text the first time."""
        self.dropped[key] += 1
        if key not in self._said:
            self._said.add(key)
            _log.warning(text, *arguments)
