"""Steps on their way to the daemon: each is sent, in order, once its copies have arrived on the host. Never waits,
except where it is told to."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .batch import Batch, Regular, Unlike
from .complaints import Complaints
from .dealer import Loan
from .entry import Entry
from .link import Form, Link
from .schedule import Schedule
from .telling import MAKING, Making, Teller, Telling, make_of
from .wire import Frame, Origin

MOST_PENDING: Final = 256
"""Steps whose copies may be under way at once."""

MADE_TOGETHER: Final = 3
"""Messages that a call makes of a batch whose steps differ."""

_LOOK_SECONDS: Final = 0.0005


class Outbox:
    """The steps that have been taken and not sent yet, in order: ``pending``. ``last_step`` is the last one sent."""

    def __init__(self, origin: Origin, link: Link, plan: Schedule, complaints: Complaints) -> None:
        self.last_step = 0
        self._link = link
        self._plan = plan
        self._complaints = complaints
        self._teller = Teller(origin, plan, complaints.dropped)
        self.pending: deque[Entry | Batch | Regular | Unlike] = deque()

    def add(self, entry: Entry | Batch | Regular | Unlike) -> None:
        """Take what has been staged."""
        if len(self.pending) >= MOST_PENDING:
            self._complaints.dropped["step:pending"] += 1 if isinstance(entry, Entry) else len(entry)
            if entry.slot is not None:
                entry.slot.release([])
            return
        self.pending.append(entry)

    def send(self, now: float, in_part: bool = False) -> float | None:
        """Send, in order, what has arrived; return the seconds that went to arrays, None where nothing was done.

        ``in_part`` does one thing only: send, or what goes before: make a part of a form, or of what tells a batch that
        has none.
        """
        spent: float | None = None
        pending = self.pending
        while pending:
            entry = pending[0]
            slot = entry.slot
            if slot is not None:
                if slot.fetch():
                    return spent or 0.0
                if not slot.arrived:
                    break
            pending.popleft()
            if isinstance(entry, Entry):
                seconds = self._send_entry(entry, now)
            else:
                left, seconds = self._send_steps(entry, now, in_part)
                if left is not None:
                    pending.appendleft(left)
                    return 0.0
            spent = seconds if spent is None else spent + seconds
            if in_part:
                break
        return spent

    def _send_entry(self, entry: Entry, now: float) -> float:
        """Send one step that was taken the general way."""
        loans: list[Loan] = []
        seconds = 0.0
        try:
            entry.resolve()
            if not entry.alone:
                message = self._teller.step(entry.step, entry.time_ns, entry.fields() | self._teller.news())
                self._link.must_arrive("step", message, now)
                self.last_step = entry.step
            seconds = self._send_arrays(entry, loans, now)
        finally:
            if entry.slot is not None:
                entry.slot.release(loans)
        self._plan.spent(entry.costs)
        return seconds

    def _send_steps(
        self, entry: Batch | Regular | Unlike, now: float, in_part: bool
    ) -> tuple[Batch | Regular | None, float]:
        """Send steps that were taken together; return what is left to go on with, and the seconds that arrays took."""
        if isinstance(entry, Regular):
            seconds = self._send_regular(entry, now, in_part)
            if seconds is MAKING:
                return entry, 0.0
            if seconds is not None:
                return None, seconds
        batch = entry if isinstance(entry, Batch) else entry.apart()
        if in_part and self._make_part(batch):
            return batch, 0.0
        return None, self._send_batch(batch, now)

    def _make_part(self, batch: Batch) -> bool:
        """Begin to tell a batch, or make some of its messages; return whether there was anything left to do."""
        if batch.telling is None:
            self._begin_telling(batch)
        elif batch.telling.complete:
            return False
        else:
            self._make_messages(batch, batch.telling, MADE_TOGETHER)
        return True

    def _begin_telling(self, batch: Batch) -> Telling:
        try:
            batch.telling = self._teller.begin(batch)
        except Exception:
            batch.slot.release([])
            raise
        return batch.telling

    def _make_messages(self, batch: Batch, telling: Telling, most: int | None = None) -> None:
        """Make messages of a batch's steps, all or so many, to be sent with its arrays."""
        try:
            self._link.hold(telling.some(most))
        except Exception:
            batch.slot.release([])
            raise
        self.last_step = batch.steps[-1].step

    def _send_batch(self, batch: Batch, now: float) -> float:
        """Send the steps of a batch and its arrays, as one message where that can be."""
        started = time.monotonic()
        telling = batch.telling or self._begin_telling(batch)
        if not telling.complete:
            self._make_messages(batch, telling)
        loans: list[Loan] = []
        try:
            loans = self._link.together(telling.arrays, batch.slot, now, telling.made)
        finally:
            batch.slot.release(loans)
        return self._spent(batch, started)

    def _send_regular(self, batch: Regular, now: float, in_part: bool) -> float | Making | None:
        """Send a batch by a form of others like it; return None, with nothing done, where that cannot be.

        ``in_part`` may make a part of that form instead, and returns :data:`~vqwatch.telling.MAKING`.
        """
        started = time.monotonic()
        try:
            form = self._teller.form(batch, in_part)
            if form is None or form is MAKING:
                return form
            loans = self._filled(batch, form, now)
        except Exception:
            batch.slot.release([])
            raise
        if loans is None:
            return None
        self.last_step = batch.last_step
        batch.slot.release(loans)
        return self._spent(batch, started)

    def _filled(self, batch: Regular, form: Form, now: float) -> list[Loan] | None:
        numbers = list(batch.slot.numbers(batch.count))

        def again(seq: int, first: int) -> list[Frame]:
            ((message, _),) = self._teller.messages(batch.apart(), numbers, self._teller.news())
            return message(seq, first)

        try:
            filling = self._teller.filling(batch, numbers)
            return self._link.filled(form, filling, batch.slot, (again, len(batch)), now)
        except ValueError:  # more numbers than the form is for, or fewer
            return None

    def _spent(self, batch: Batch | Regular, started: float) -> float:
        """Tell the schedule what the arrays of a batch cost, and return the seconds that sending them took."""
        seconds = (time.monotonic() - started) / 2
        costs = batch.costs(seconds)
        self._plan.spent(costs)
        return seconds if costs else 0.0

    def wait(self, clock: Callable[[], float], deadline: float) -> None:
        """Send everything, waiting for copies that are under way until ``deadline``."""
        while self.pending:
            self.send(clock())
            if clock() >= deadline:
                return
            if self.pending:
                time.sleep(_LOOK_SECONDS)

    def _send_arrays(self, entry: Entry, loans: list[Loan], now: float) -> float:
        """Send an entry's arrays and add what tracks their buffers; return the seconds that it took."""
        total = 0.0
        for kind, build in entry.outgoing:
            started = time.monotonic()
            make = make_of(build, [entry])
            with contextlib.suppress(KeyError):  # one of its arrays was left out, and counted
                if entry.alone and entry.slot is not None and not entry.on_host and len(entry.outgoing) == 1:
                    loans += self._link.together([(kind, make, 1)], entry.slot, now)
                else:
                    loans += self._link.best_effort(kind, make) or ()
            seconds = time.monotonic() - started
            entry.costs[kind] = entry.costs.get(kind, 0.0) + seconds
            total += seconds
        return total
