"""What is captured at which step, and how that stretches to stay within the overhead budget.

Pure: steps, seconds and costs come in, cadences go out. No clock, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

SCALARS: Final = "scalars"
CODES: Final = "codes"
CLUSTERS: Final = "clusters"
CODEBOOKS: Final = "codebooks"
RECONSTRUCTION: Final = "reconstruction"
GRADIENTS: Final = "gradients"
ENERGIES: Final = "energies"

DEFAULT_EVERY: Final[Mapping[str, int]] = MappingProxyType(
    {SCALARS: 1, CODES: 1, CLUSTERS: 20, ENERGIES: 100, GRADIENTS: 200, CODEBOOKS: 100, RECONSTRUCTION: 100}
)
"""Steps between two captures of each kind.

Codes and scalars make the windows and are small. Cluster sizes are a few KiB and show revivals, which fade within tens
of steps. A codebook moves slowly (decay 0.99: a time constant of 100 steps). A reconstruction sample is for readings
whose trend is over hundreds of steps, as are the energies of layers and the gradients of modules; these cost the host
most, for the fewest bytes. On a device, whatever is taken now and then makes a call of ``step()`` a long one.
"""

EVERYTHING: Final[Mapping[str, int]] = MappingProxyType(dict.fromkeys(DEFAULT_EVERY, 1))

ORDINARY: Final = frozenset({SCALARS, CODES, ENERGIES})
"""Kinds that an ordinary step has, or may have; cluster sizes are taken along when several of them are copied."""

BESIDE: Final = frozenset({CODEBOOKS, RECONSTRUCTION, GRADIENTS})
"""Kinds that are taken at their step, beside what is ordinary in it."""

LARGE: Final = frozenset({CODEBOOKS, RECONSTRUCTION})
"""Kinds whose arrays are large and seldom taken."""

STRETCH_ORDER: Final = (RECONSTRUCTION, CODEBOOKS, GRADIENTS, ENERGIES, CLUSTERS, CODES)
MOST_STRETCH: Final = 64
MOST_CODES_STRETCH: Final = 16
"""Steps that may lie between two captures of codes where they were wanted at every step."""

MOST_TOGETHER: Final = 15
"""Steps whose tensors are copied in one go, at most: fewer calls into CUDA, for readings that many steps later. One
more, which a call that is busy with other things adds, and they are as many as a message can tell."""

MOST_LATE_SECONDS: Final = 1.6
"""What steps may wait for others."""

SLOW_STEP_SECONDS: Final = 0.2
"""In slower loops each step is copied at once: to wait for others would save nothing to speak of."""

LEAST_SHARE: Final = 0.25
# The large ones at different steps; energies with codebooks, as both want hooks, and gradients soon after: what steps
# have that others lack comes in as few batches as can be.
_OFFSETS: Final = {RECONSTRUCTION: 50, GRADIENTS: 2}
_REVIEW_STEPS: Final = 48
_WARM_UP_STEPS: Final = 32
_SMOOTHING: Final = 0.2
_RELAX_BELOW: Final = 0.6
_PAUSE: Final = 3.0
_PAUSES: Final = 3


def steps_together(step_seconds: float) -> int:
    """Return how many steps' tensors may be copied in one go, 1 before the pace is known.

    >>> [steps_together(seconds) for seconds in (0.0, 0.001, 0.1, 0.16, 1.0)]
    [1, 15, 15, 10, 1]
    """
    if not 0.0 < step_seconds < SLOW_STEP_SECONDS:
        return 1
    return min(MOST_TOGETHER, round(MOST_LATE_SECONDS / step_seconds))


def stretch(
    base: Mapping[str, int], costs: Mapping[str, float], fixed: float, step_seconds: float, budget: float
) -> dict[str, int]:
    """Return by which power of two each cadence must be stretched for the expected cost to fit the budget.

    ``costs`` are seconds per capture of a kind, ``fixed`` the seconds of every step that nothing can save. What costs
    most is stretched first, ties in :data:`STRETCH_ORDER`, and codes only when all others are stretched as far as it
    goes. Where the fixed part alone takes the budget, as in a loop of very short steps, the kinds still get
    :data:`LEAST_SHARE` of it: to take that away too would save little and tell nothing.

    >>> stretch({"codes": 1, "reconstruction": 50}, {"codes": 1e-5, "reconstruction": 0.1}, 0.0, 0.025, 0.01)
    {'codes': 1, 'reconstruction': 16}
    """
    factors = dict.fromkeys(base, 1)
    allowed = max(budget * step_seconds - fixed, LEAST_SHARE * budget * step_seconds)
    shares = {kind: costs[kind] / base[kind] for kind in STRETCH_ORDER if kind in base and costs.get(kind, 0.0) > 0}
    most = {kind: MOST_CODES_STRETCH if kind == CODES else MOST_STRETCH for kind in shares}
    if sum([share / most[kind] for kind, share in shares.items()]) > allowed:
        return factors | most  # as in many loops of very short steps, where a search would cost the most
    while sum(shares.values()) > allowed:
        worth = [kind for kind in shares if kind != CODES and factors[kind] < most[kind]] or [CODES]
        kind = max(worth, key=shares.__getitem__)
        factors[kind] *= 2
        shares[kind] /= 2
    return factors


class Schedule:
    """Says what is due, and keeps the emitter's share of the step time at or below ``budget``.

    Cadences are counted on the step number, so that ranks capture at the same steps, also while they stretch.

    ``last`` is the latest step, and before ``next_special`` nothing :data:`BESIDE` what is ordinary is due.
    ``step_seconds`` is the time from step to step, 0 before it is known.

    >>> schedule = Schedule({"codes": 1, "codebooks": 10}, budget=1.0)
    >>> [sorted(schedule.due(step)) for step in (0, 1, 12)]
    [['codebooks', 'codes'], ['codes'], ['codebooks', 'codes']]
    """

    def __init__(self, every: Mapping[str, int], budget: float) -> None:
        unknown = set(every) - set(DEFAULT_EVERY)
        if unknown:
            raise ValueError(f"every={dict(every)!r}: expected some of {', '.join(DEFAULT_EVERY)}")
        if not all(isinstance(steps, int) and steps >= 0 for steps in every.values()):
            raise ValueError(f"every={dict(every)!r}: expected whole numbers of steps, 0 for never")
        self._base = {kind: steps for kind, steps in every.items() if steps > 0}
        self._budget = budget
        self.every: dict[str, int] = dict(self._base)
        self.last = -1
        self.next_special = 0
        self._codes_every = 0
        self._costs: dict[str, float] = {}
        self._fixed = 0.0
        self.step_seconds = 0.0
        self._observed = 0
        self._long = 0
        self.overhead: float | None = None

    def due(self, step: int) -> frozenset[str]:
        """Return the kinds to capture at this step, and remember it as the latest."""
        last = self.last
        if last < 0 or step < last:
            found = frozenset(self.every)
        else:
            found = frozenset([kind for kind in self.every if self._is_due(kind, step, last)])
        self.last = step
        self._look_ahead(step)
        return found

    def codes_due_at(self, steps: Sequence[int]) -> list[int]:
        """Return at which of some steps, later than the latest and in order, codes are to be captured: their places."""
        every, last = self._codes_every, self.last
        if every == 1:
            return list(range(len(steps)))
        if every == 0:
            return []
        turns = [last // every, *[step // every for step in steps]]
        return [place for place in range(len(steps)) if turns[place + 1] != turns[place]]

    def beside(self, step: int, last: int) -> frozenset[str]:
        """Return the :data:`BESIDE` kinds to capture at ``step`` if ``last`` was the step before, and look ahead."""
        found = frozenset([kind for kind in self.every if kind in BESIDE and self.is_due(kind, step, last)])
        self._look_ahead(step)
        return found

    def is_due(self, kind: str, step: int, last: int) -> bool:
        """Return whether ``kind`` is to be captured at ``step`` if ``last`` was the step before."""
        return kind in self.every and (last < 0 or self._is_due(kind, step, last))

    def next_after(self, kind: str, step: int) -> int:
        """Return the first step after ``step`` at which ``kind`` is due, if every step comes."""
        every, offset = self.every.get(kind, 0), _OFFSETS.get(kind, 0)
        return ((step - offset) // every + 1) * every + offset if every else step + (1 << 62)

    def _look_ahead(self, step: int) -> None:
        """Work out the next step at which more is due than numbers and codes."""
        self._codes_every = self.every.get(CODES, 0)
        self.next_special = min(
            [self.next_after(kind, step) for kind in self.every if kind in BESIDE],
            default=step + (1 << 62),
        )

    def _is_due(self, kind: str, step: int, last: int) -> bool:
        every = self.every[kind]
        if every == 1:
            return True
        offset = _OFFSETS.get(kind, 0)
        return (step - offset) // every != (last - offset) // every

    def spent(self, costs: Mapping[str, float]) -> None:
        """Take in what one capture of some kinds cost, from the hook to the socket, in seconds of host time.

        The first of a kind says nothing of the next: it loads code and allocates memory.
        """
        for kind, seconds in costs.items():
            known = self._costs.get(kind)
            self._costs[kind] = 0.0 if known is None else _smooth(known, seconds)

    def observe(self, own_seconds: float, of_kinds_seconds: float, step_seconds: float, steps: int = 1) -> None:
        """Take in some steps: the emitter's host time, how much of it went to kinds, and the time from step to step.

        All are means over ``steps`` steps.
        """
        before, self._observed = self._observed, self._observed + steps
        if before < 2 or step_seconds <= 0.0 or self._is_pause(step_seconds):
            return
        self._fixed = _smooth(self._fixed, max(0.0, own_seconds - of_kinds_seconds))
        self.step_seconds = _smooth(self.step_seconds, step_seconds)
        ratio = own_seconds / step_seconds
        self.overhead = (
            ratio if self.overhead is None else self.overhead + min(1.0, 0.05 * steps) * (ratio - self.overhead)
        )
        if self._observed > _WARM_UP_STEPS and before // _REVIEW_STEPS != self._observed // _REVIEW_STEPS:
            self._review()

    def _is_pause(self, step_seconds: float) -> bool:
        """Return whether this was no training but a pause between steps, such as a validation: once, not for good."""
        long = 0.0 < _PAUSE * self.step_seconds < step_seconds
        self._long = self._long + 1 if long else 0
        return 0 < self._long < _PAUSES

    def _review(self) -> None:
        needed = stretch(self._base, self._costs, self._fixed, self.step_seconds, self._budget)
        relaxed = stretch(self._base, self._costs, self._fixed, self.step_seconds, _RELAX_BELOW * self._budget)
        for kind, base in self._base.items():
            now = self.every[kind] // base
            # Tighten at once; let go only where there is room to spare, so that a cadence does not swing.
            factor = max(now, needed[kind]) if relaxed[kind] >= now else max(needed[kind], relaxed[kind])
            self.every[kind] = base * factor
        if self.last >= 0:
            self._look_ahead(self.last)


def _smooth(old: float, new: float) -> float:
    """Return a moving average that starts at the first value and forgives one outlier quickly."""
    return new if old == 0.0 else old + _SMOOTHING * (min(new, 4 * old) - old)
