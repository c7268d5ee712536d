"""Steps on their way to the daemon: each is sent, in order, once its copies have arrived on the host. Never waits,
except where it is told to."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .backlog import Encode
from .collect import Entry
from .complaints import Complaints
from .link import Link
from .schedule import Schedule
from .wire import Frame, Message, Origin, encode_step

if TYPE_CHECKING:
    import zmq

    from .routine import Batch

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

    @property
    def arrived(self) -> bool:
        """Return whether the oldest can be sent."""
        return bool(self._pending) and self._pending[0].arrived

    def send(self, now: float, at_most: int = MOST_PENDING) -> float:
        """Send, in order, what has arrived; return the seconds that went to arrays."""
        spent = 0.0
        while at_most and self.arrived:
            at_most -= 1
            entry = self._pending.popleft()
            if not isinstance(entry, Entry):
                spent += self._send_batch(entry, now)
                continue
            trackers: list[zmq.MessageTracker] = []
            try:
                entry.resolve()
                if not entry.alone:
                    message = self._step_message(entry.step, entry.time_ns, entry.fields(), with_news=True)
                    self._link.must_arrive("step", message, now)
                    self.last_step = entry.step
                spent += self._send_arrays(entry, trackers, now)
            finally:
                if entry.slot is not None:
                    entry.slot.release(trackers)
            self._plan.spent(entry.costs)
        return spent

    def _send_batch(self, batch: Batch, now: float) -> float:
        """Send the steps of a batch, with their arrays, as one message where that can be."""
        started = time.monotonic()
        slot, numbers = batch.slot, batch.numbers
        last = batch.steps[-1]
        messages: list[Encode] = []
        arrays: list[tuple[str, Callable[[int], Message]]] = []
        for taken in batch.steps:
            if taken.items:
                taken.tensors = slot.tensors(taken.part)
                for kind, build in taken.outgoing:
                    arrays.append((kind, functools.partial(build, taken)))
            fields = taken.fields(numbers)
            messages.append(self._step_message(taken.step, taken.time_ns, fields, with_news=taken is last))
        self.last_step = last.step
        trackers: list[zmq.MessageTracker] = []
        try:
            trackers = self._link.together(messages, arrays, slot.data, slot.place, now)
        finally:
            slot.release(trackers)
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

    def _send_arrays(self, entry: Entry, trackers: list[zmq.MessageTracker], now: float) -> float:
        """Send an entry's arrays and add what tracks their buffers; return the seconds that it took."""
        total = 0.0
        for kind, build in entry.outgoing:
            started = time.monotonic()
            make = functools.partial(build, entry)
            with contextlib.suppress(KeyError):  # one of its arrays was left out, and counted
                if entry.alone and entry.slot is not None and len(entry.outgoing) == 1:  # all of it lies in the slot
                    trackers += self._link.together([], [(kind, make)], entry.slot.data, entry.slot.place, now)
                else:
                    trackers += self._link.best_effort(kind, make) or ()
            seconds = time.monotonic() - started
            entry.costs[kind] = entry.costs.get(kind, 0.0) + seconds
            total += seconds
        return total

    def _step_message(self, step: int, time_ns: int, fields: dict[str, Any], with_news: bool) -> Encode:
        """Return what makes a step's message of its fields; ``with_news`` adds what the emitter tells of itself."""
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
