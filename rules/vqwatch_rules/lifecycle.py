"""The life of one alert: pending, firing, resolved. Pure: verdicts, steps and times come in, the next state comes out.

A verdict is what a condition makes of one reading. They are ordered so that ``max`` is "any of" and ``min`` "all of".

* ``HOLDS``: the condition is true.
* ``UNKNOWN``: the reading is not finite and says nothing. It neither confirms nor ends anything; it does interrupt a
  healthy stretch, because it is not healthy.
* ``WITHIN``: not true, but not past the clear threshold either: ends a wait, keeps an alert firing.
* ``CLEARS``: healthy.

A wait (``for``) ends with the first reading that is not ``HOLDS``; so does a healthy stretch (``keep_firing_for``) with
the first that is not ``CLEARS``. Spans in steps count the steps between readings, not the readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vqwatch_rules.alerts import State
from vqwatch_rules.durations import Span

CLEARS: Final = 0
WITHIN: Final = 1
UNKNOWN: Final = 2
HOLDS: Final = 3


@dataclass(slots=True)
class Record:
    """Where one alert is in its life. ``sure`` is false while the latest reading was ``UNKNOWN``."""

    value: float
    started_step: int
    active_at: float
    fired_at: float | None = None
    healthy_step: int | None = None
    healthy_at: float = 0.0
    sure: bool = True

    @property
    def state(self) -> State:
        """ "pending" or "firing"."""
        return "pending" if self.fired_at is None else "firing"


def begin(value: float, step: int, now: float, hold: Span) -> Record:
    """Return the record of a condition that has just become true: pending, or firing without a wait."""
    return Record(value, step, now, fired_at=None if hold else now)


def advance(record: Record, verdict: int, value: float, step: int, now: float, hold: Span, keep: Span) -> State:
    """Take one more reading and return the state after it; "inactive" ends a wait, "resolved" an alert."""
    if verdict == UNKNOWN:
        record.sure = False
        record.healthy_step = None
        return record.state
    record.sure = True
    record.value = value
    if record.fired_at is None:
        if verdict != HOLDS:
            return "inactive"
        if _lasted(hold, step - record.started_step, now - record.active_at):
            record.fired_at = now
            return "firing"
        return "pending"
    if verdict != CLEARS:
        record.healthy_step = None
        return "firing"
    if record.healthy_step is None:
        record.healthy_step, record.healthy_at = step, now
    return "resolved" if _lasted(keep, step - record.healthy_step, now - record.healthy_at) else "firing"


def pass_time(record: Record, now: float, hold: Span, keep: Span) -> State:
    """Return the state when nothing came but time: spans in seconds may be over, spans in steps are not."""
    if record.fired_at is None:
        if hold.seconds and record.sure and now - record.active_at >= hold.seconds:
            record.fired_at = now
            return "firing"
        return "pending"
    if keep.seconds and record.healthy_step is not None and now - record.healthy_at >= keep.seconds:
        return "resolved"
    return "firing"


def start_over(record: Record, step: int, now: float) -> None:
    """The run went back to ``step``: a wait begins again there, an alert goes on until a healthy reading."""
    record.healthy_step = None
    if record.fired_at is None:
        record.started_step, record.active_at = step, now


def _lasted(span: Span, steps: int, seconds: float) -> bool:
    return steps >= span.steps if span.steps else seconds >= span.seconds
