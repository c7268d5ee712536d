"""Spans of training or of time: ``50 steps`` or ``1m30s``.

>>> parse_span("50 steps"), parse_span("1m30s")
(Span(steps=50, seconds=0.0), Span(steps=0, seconds=90.0))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STEPS: Final = re.compile(r"\s*(\d+)\s*steps?\s*")
_TIME: Final = re.compile(r"\s*(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?\s*")
_UNITS: Final = (86400.0, 3600.0, 60.0, 1.0, 0.001)


@dataclass(frozen=True, slots=True)
class Span:
    """How long something has to last: a number of training steps, or of seconds. At most one is above 0."""

    steps: int = 0
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.steps > 0 or self.seconds > 0

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else f"{self.seconds:g}s"

    def in_seconds(self, step_seconds: float) -> float:
        """Return the span in seconds for steps of ``step_seconds``."""
        return self.seconds or self.steps * step_seconds


NOW: Final = Span()


def parse_span(text: object) -> Span:
    """Read a span as rule files write it; a bare 0 is no span at all.

    Raises:
        ValueError: anything else, with what is allowed.
    """
    if isinstance(text, Span):
        return text
    if isinstance(text, int | float) and not isinstance(text, bool) and text == 0:
        return NOW
    if isinstance(text, str):
        if match := _STEPS.fullmatch(text):
            return Span(steps=int(match[1]))
        if match := _TIME.fullmatch(text):
            return Span(
                seconds=sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS, strict=True) if part)
            )
    raise ValueError(f"{text!r} is no span; write steps ('50 steps') or time ('30s', '1m30s', '2h')")
