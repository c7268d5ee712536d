"""At most one value of a metric in so many seconds; the newest is held back and follows. Time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vqwatch_daemon.readings import Readings, Series

AT_ONCE: Final = frozenset({"evaluation", "evaluation_step"})
"""Metrics that come seldom and are never held back."""

LEFT_OUT: Final = frozenset(
    {"run_info", "codebook_info", "build_info", "last_message_timestamp_seconds", "rank_silent_seconds",
     "emitter_cadence_steps"}
)  # fmt: skip
"""Metrics about the watching that say nothing as curves over steps."""


class _Passed(NamedTuple):
    at: float
    step: int
    series: Series


@dataclass(slots=True)
class _Run:
    swept_at: float = -math.inf
    passed: dict[str, _Passed] = field(default_factory=dict)
    waiting: dict[str, tuple[int, Series]] = field(default_factory=dict)


class Thinner:
    """Decides which readings go on, for all runs. ``interval`` in seconds; 0 passes everything.

    A series with a value that is not finite goes on at once. What was passed on for a step does not go on again while
    it stays the same.

    >>> thinner = Thinner(1.0)
    >>> [thinner.offer("demo", step, step / 4, {"loss": {("total",): float(step)}}) for step in (0, 1, 4)]
    [[(0, {'loss': {('total',): 0.0}})], [], [(4, {'loss': {('total',): 4.0}})]]
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._runs: dict[str, _Run] = {}

    def offer(self, run: str, step: int, now: float, readings: Readings) -> list[tuple[int, Readings]]:
        """Return what goes on now, by step: of these readings, and of those that waited long enough."""
        state = self._runs.setdefault(run, _Run())
        out: dict[int, Readings] = {}
        for name, series in readings.items():
            last = state.passed.get(name)
            if not series or name in LEFT_OUT or (last is not None and last.step == step and last.series == series):
                continue
            due = last is None or now - last.at >= self._interval or name in AT_ONCE
            if due or not all(map(math.isfinite, series.values())):
                state.waiting.pop(name, None)
                self._pass(state, name, step, now, series, out)
            else:
                state.waiting[name] = (step, series)
        if state.waiting and now - state.swept_at >= self._interval:
            state.swept_at = now
            for name, (held_step, series) in list(state.waiting.items()):
                if now - state.passed[name].at >= self._interval:
                    del state.waiting[name]
                    self._pass(state, name, held_step, now, series, out)
        return sorted(out.items())

    def _pass(self, state: _Run, name: str, step: int, now: float, series: Series, out: dict[int, Readings]) -> None:
        state.passed[name] = _Passed(now, step, series)
        out.setdefault(step, {})[name] = series

    def rest(self, run: str) -> list[tuple[int, Readings]]:
        """Return all that is held back of a run, by step; nothing is then."""
        state = self._runs.get(run, _Run())
        by_step: dict[int, Readings] = {}
        for name, (step, series) in state.waiting.items():
            by_step.setdefault(step, {})[name] = series
        state.waiting.clear()
        return sorted(by_step.items())

    @property
    def runs(self) -> list[str]:
        """The runs that are known."""
        return list(self._runs)

    def forget(self, keep: set[str]) -> None:
        """Forget all runs but these."""
        self._runs = {run: state for run, state in self._runs.items() if run in keep}
