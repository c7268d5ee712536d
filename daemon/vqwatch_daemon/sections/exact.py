"""A sum of floats that does not depend on the order in which they come."""

from __future__ import annotations

import math
from collections.abc import Iterable


class ExactSum:
    """The exact sum of floats, rounded once, when it is read; a nan or an infinity makes it what adding them makes it.

    Holds a few floats that do not overlap and add up to the sum exactly. Source: Shewchuk, Adaptive Precision
    Floating-Point Arithmetic (1997), section 2.4; :func:`math.fsum` does the same for numbers that are all there.

    >>> ExactSum([1e100, 1.0, -1e100]).value, ExactSum([0.1] * 10).value, ExactSum([1.0, math.inf]).value
    (1.0, 1.0, inf)
    """

    __slots__ = ("_special", "_terms")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._terms: list[float] = []
        self._special = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Add one number."""
        if not math.isfinite(value):
            self._special += value
            return
        terms, kept = self._terms, 0
        for term in terms:
            large, small = (value, term) if abs(value) >= abs(term) else (term, value)
            value = large + small
            if not math.isfinite(value):  # beyond what a float can hold
                self._special += value
                return
            rest = small - (value - large)
            if rest:
                terms[kept] = rest
                kept += 1
        terms[kept:] = [value]

    @property
    def value(self) -> float:
        """The sum, rounded to a float."""
        try:
            return self._special or math.fsum(self._terms)
        except OverflowError:
            return math.copysign(math.inf, self._terms[-1])

    def state(self) -> list[float]:
        """Return numbers that add up to this."""
        return [*self._terms, self._special] if self._special else list(self._terms)
