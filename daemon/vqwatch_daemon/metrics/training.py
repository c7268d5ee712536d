"""Loss, speed and health of the training loop, from its scalars.

Times are arguments; nothing here reads a clock. A non-finite scalar never enters a smoothed value or a trend: it is
counted (:func:`~vqwatch_daemon.metrics.tensors.nonfinite_values`) and shown as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

NAN: Final = float("nan")

HALF_LIFE_STEPS: Final = 50.0

TOTAL: Final = "total"


def loss_shares(losses: Mapping[str, float]) -> dict[str, float]:
    """Return each component over the component "total", for all but the total. Source: the proposal, 4.1.

    0 to 1 where components are weighted, not negative and add up; taken as they are where not. nan for a component or
    a total that is not finite and for a total of 0; empty without a total.

    >>> loss_shares({"total": 4.0, "recon": 3.0, "vq": 1.0})
    {'recon': 0.75, 'vq': 0.25}
    """
    if TOTAL not in losses:
        return {}
    return {name: ratio(value, losses[TOTAL]) for name, value in losses.items() if name != TOTAL}


def ratio(part: float, whole: float) -> float:
    """Return part / whole, as for VQ loss over reconstruction loss (the proposal, 4.2); nan where that says nothing.

    That is: either is not finite, or ``whole`` is 0. The proposal adds 1e-8 to it, which turns a perfect
    reconstruction into a ratio of millions.

    >>> ratio(1.0, 4.0), ratio(1.0, 0.0)
    (0.25, nan)
    """
    return part / whole if math.isfinite(part) and math.isfinite(whole) and whole != 0 else NAN


class Smoothed:
    """Exponentially weighted mean of a series over steps: what lies ``half_life`` steps back weighs half.

    Source: the proposal, 4.2 (smoothed total), with a stated half-life. Normalised by the sum of the weights, so the
    first values are not drawn to 0. Readings may be any number of steps apart; one whose step does not lie after the
    last (a rewind, a repeat) counts as one step later. Non-finite values are skipped.
    """

    __slots__ = ("_step", "_total", "_weight", "half_life")

    def __init__(self, half_life: float = HALF_LIFE_STEPS) -> None:
        self.half_life = half_life
        self._step: int | None = None
        self._total = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The smoothed value; nan before the first finite reading."""
        return self._total / self._weight if self._weight else NAN

    def update(self, step: int, value: float) -> float:
        """Take one reading and return the smoothed value.

        >>> series = Smoothed(half_life=1)
        >>> series.update(1, 3.0), series.update(2, 0.0), series.update(3, float("nan"))
        (3.0, 1.0, 1.0)
        """
        if math.isfinite(value):
            kept = 0.0 if self._step is None else 0.5 ** (max(1, step - self._step) / self.half_life)
            self._total = self._total * kept + value
            self._weight = self._weight * kept + 1.0
            self._step = step
        return self.value

    def state(self) -> tuple[int | None, float, float]:
        """Return everything that :meth:`restore` needs."""
        return self._step, self._total, self._weight

    def restore(self, state: Sequence[Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._step, self._total, self._weight = state


def stalled_ratio(seconds_since: float, usual_seconds: float, shortest: float = 1.0) -> float:
    """Return the time since the latest step over the run's usual step time, at least 0; nan when that is not known.

    The usual time is taken as ``shortest`` seconds at least, lest a run of fast steps be called stalled for a hiccup.

    >>> stalled_ratio(30.0, usual_seconds=2.0), stalled_ratio(0.5, usual_seconds=0.01)
    (15.0, 0.5)
    """
    return max(0.0, seconds_since) / max(usual_seconds, shortest) if usual_seconds > 0 else NAN
