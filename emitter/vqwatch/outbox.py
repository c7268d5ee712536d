"""Steps on their way to the daemon: each is sent, in order, once its copies have arrived on the host. Never waits,
except where it is told to."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from .backlog import Encode
from .complaints import Complaints
from .entry import CodesBuild, Entry
from .link import Link, Loan, Make
from .routine import alike, arrays_of
from .schedule import Schedule
from .wire import Frame, Origin, encode_step, unpacked

if TYPE_CHECKING:
    from .entry import Arrived, Build
    from .routine import Batch, Taken

MOST_PENDING: Final = 256
"""Steps whose copies may be under way at once."""

_LOOK_SECONDS: Final = 0.0005


class Outbox:
    """The steps that have been taken and not sent yet; ``last_step`` is the last one sent."""

    def __init__(self, origin: Origin, link: Link, plan: Schedule, complaints: Complaints) -> None:
        self.last_step = 0
        self._origin = origin
        self._link = link
        self._plan = plan
        self._complaints = complaints
        self._pending: deque[Entry | Batch] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, entry: Entry | Batch) -> None:
        """Take what has been staged."""
        if len(self._pending) >= MOST_PENDING:
            self._complaints.dropped["step:pending"] += 1 if isinstance(entry, Entry) else len(entry.steps)
            if entry.slot is not None:
                entry.slot.release([])
            return
        self._pending.append(entry)

    def send(self, now: float, at_most: int = MOST_PENDING) -> float:
        """Send, in order, what has arrived; return the seconds that went to arrays."""
        spent = 0.0
        pending = self._pending
        while at_most and pending:
            slot = pending[0].slot
            if slot is not None and not slot.arrived:
                break
            at_most -= 1
            entry = pending.popleft()
            if not isinstance(entry, Entry):
                spent += self._send_batch(entry, now)
                continue
            loans: list[Loan] = []
            try:
                entry.resolve()
                if not entry.alone:
                    message = self._step_message(entry.step, entry.time_ns, entry.fields(), with_news=True)
                    self._link.must_arrive("step", message, now)
                    self.last_step = entry.step
                spent += self._send_arrays(entry, loans, now)
            finally:
                if entry.slot is not None:
                    entry.slot.release(loans)
            self._plan.spent(entry.costs)
        return spent

    def _send_batch(self, batch: Batch, now: float) -> float:
        """Send the steps of a batch, with their arrays, as one message where that can be."""
        started = time.monotonic()
        slot, numbers = batch.slot, batch.resolve()
        last = batch.steps[-1]
        arrays = [(kind, _make(build, steps), len(steps)) for kind, build, steps in arrays_of(batch.steps)]
        messages = [self._message(steps, numbers, steps[-1] is last) for steps in alike(batch.steps)]
        self.last_step = last.step
        loans: list[Loan] = []
        try:
            loans = self._link.together(messages, arrays, slot, now)
        finally:
            slot.release(loans)
        seconds = (time.monotonic() - started) / 2
        self._plan.spent(batch.costs(seconds))
        return seconds if arrays else 0.0

    def wait(self, clock: Callable[[], float], deadline: float) -> None:
        """Send everything, waiting for copies that are under way until ``deadline``."""
        while self._pending:
            self.send(clock())
            if clock() >= deadline:
                return
            if self._pending:
                time.sleep(_LOOK_SECONDS)

    def _send_arrays(self, entry: Entry, loans: list[Loan], now: float) -> float:
        """Send an entry's arrays and add what tracks their buffers; return the seconds that it took."""
        total = 0.0
        for kind, build in entry.outgoing:
            started = time.monotonic()
            make = _make(build, [entry])
            with contextlib.suppress(KeyError):  # one of its arrays was left out, and counted
                if entry.alone and entry.slot is not None and not entry.on_host and len(entry.outgoing) == 1:
                    loans += self._link.together([], [(kind, make, 1)], entry.slot, now)
                else:
                    loans += self._link.best_effort(kind, make) or ()
            seconds = time.monotonic() - started
            entry.costs[kind] = entry.costs.get(kind, 0.0) + seconds
            total += seconds
        return total

    def _message(self, steps: Sequence[Taken], numbers: Sequence[float], with_news: bool) -> tuple[Encode, int]:
        """Return what makes the message that tells these steps, and how many they are."""
        first = steps[0]
        if len(steps) == 1:
            return self._step_message(first.step, first.time_ns, first.fields(numbers), with_news), 1
        told, times = [taken.step for taken in steps], [taken.time_ns for taken in steps]
        return self._step_message(told, times, first.columns(numbers, steps), with_news), len(steps)

    def _step_message(
        self, step: int | list[int], time_ns: int | list[int], fields: dict[str, Any], with_news: bool
    ) -> Encode:
        """Return what makes a step's message of its fields, or the one of several and their columns.

        ``with_news`` adds what the emitter tells of itself.
        """
        origin, plan, dropped = self._origin, self._plan, self._complaints.dropped

        def make(seq: int, first: int) -> list[Frame]:
            if with_news:
                fields["every"] = plan.every
                if dropped:
                    fields["dropped"] = dropped
                if plan.overhead is not None:
                    fields["overhead"] = plan.overhead
            return encode_step(origin, seq, first, time_ns, step, fields)

        return make


def _make(build: Build, steps: Sequence[Arrived]) -> Make:
    """Return what makes the message of one step's arrays, or the one of the codes of several."""
    if len(steps) == 1:
        return lambda seq: unpacked(build(steps[0], seq))
    assert isinstance(build, CodesBuild)
    return functools.partial(build.together, steps)
