"""The writing side as the daemon sees it: offers that never wait, and a thread that takes them to the file."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from vqwatch_daemon.history import schema
from vqwatch_daemon.history.codec import AlertItem, Item, SampleItem, UsageItem
from vqwatch_daemon.history.limits import Limits
from vqwatch_daemon.history.reader import HistoryReader
from vqwatch_daemon.history.writer import Writer
from vqwatch_daemon.readings import Labels, Readings

_STOP: Final = None


@dataclass(slots=True)
class _Waiting:
    """What a run has offered since its last sample went to the writer."""

    due: float
    matrix_due: float
    usage_due: float = 0.0
    step: int = 0
    now: float = 0.0
    readings: dict[str, Mapping[Labels, float]] = field(default_factory=dict)


class History:
    """Keeps what a daemon measures; see the package's synopsis.

    ``record`` is made for the ingest path: it merges the readings into the run's sample in about a microsecond, and
    once per ``limits.resolution`` hands a copy to the writer. What the bounded queue cannot take is dropped and
    counted in :attr:`dropped`. Times are Unix seconds; ``clock`` is only asked for ages.

    Raises sqlite3.OperationalError when the file cannot be opened; a damaged file is set aside.
    """

    def __init__(self, path: Path, *, limits: Limits | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.limits = Limits() if limits is None else limits
        self._kept: dict[str, float | None] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._last_seen: dict[str, float] = {}
        self._lock = threading.Lock()
        self._queue: queue.Queue[Item | threading.Event | None] = queue.Queue(self.limits.queue_length)
        self._dropped = 0
        self._closed = False
        self._reader = HistoryReader(path)
        self._writer = Writer(path, schema.open_for_writing(path), self.limits, clock)
        self._thread = threading.Thread(target=self._write, name="vqwatch-history", daemon=True)
        self._thread.start()

    # --- offers: any thread, never waiting -------------------------------------------------------------------

    def record(self, run: str, step: int, now: float, readings: Mapping[str, Mapping[Labels, float]]) -> bool:
        """Offer the readings that ``step`` updated; return False when a sample had to be dropped."""
        with self._lock:
            waiting = self._waiting.get(run)
            if waiting is None:
                waiting = self._waiting[run] = _Waiting(now, now)
            waiting.readings.update(readings)
            waiting.step, waiting.now = step, now
            if now < waiting.due and waiting.due - now <= self.limits.resolution:
                return True
            sample = self._taken(run, waiting)
        return self._offer(sample)

    def record_usage(self, run: str, step: int, now: float, counts: Mapping[str, Any]) -> bool:
        """Offer how often each code was used over the window, by layer: integers [K]. Kept every few seconds."""
        with self._lock:
            waiting = self._waiting.get(run)
            if waiting is None:
                waiting = self._waiting[run] = _Waiting(now, now)
            if now < waiting.usage_due and waiting.usage_due - now <= self.limits.usage_resolution:
                return True
            waiting.usage_due = now + self.limits.usage_resolution
        layers = {layer: np.array(values, dtype=np.int64) for layer, values in counts.items()}
        return self._offer(UsageItem(run, step, now, layers))

    def record_alert(self, entry: Mapping[str, Any]) -> bool:
        """Offer one alert transition: a JSON-able map with at least ``run``, ``time``, ``name`` and ``to``.

        The page and the report also read ``from``, ``severity``, ``labels``, ``annotations``, ``value`` and ``step``.
        """
        return self._offer(AlertItem(dict(entry)))

    @property
    def dropped(self) -> int:
        """How many samples, snapshots and alert entries were dropped: the queue was full or the file refused them."""
        return self._dropped + self._writer.lost

    # --- reading ---------------------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        """See :meth:`HistoryReader.runs`."""
        return self._reader.runs()

    def latest(self, run: str) -> Readings:
        """See :meth:`HistoryReader.latest`."""
        return self._reader.latest(run)

    def series(
        self,
        run: str,
        metrics: Sequence[str],
        *,
        start: float | None = None,
        end: float | None = None,
        points: int = 400,
        by: str = "step",
    ) -> dict[str, Any]:
        """See :meth:`HistoryReader.series`."""
        return self._reader.series(run, metrics, start=start, end=end, points=points, by=by)

    def usage_at(self, run: str, step: int | None = None) -> dict[str, Any] | None:
        """See :meth:`HistoryReader.usage_at`."""
        return self._reader.usage_at(run, step)

    def usage_steps(self, run: str) -> list[tuple[int, float]]:
        """See :meth:`HistoryReader.usage_steps`."""
        return self._reader.usage_steps(run)

    def alert_log(self, run: str | None = None, *, limit: int = 200) -> list[dict[str, Any]]:
        """See :meth:`HistoryReader.alert_log`."""
        return self._reader.alert_log(run, limit=limit)

    # --- the thread ------------------------------------------------------------------------------------------

    def flush(self, timeout: float = 5.0) -> bool:
        """Bring everything offered so far to the file; return False when that took longer than ``timeout``."""
        for sample in self._leftovers():
            self._offer(sample)
        done = threading.Event()
        try:
            self._queue.put(done, timeout=timeout)
        except queue.Full:
            return False
        return done.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is left and close the file; safe to call twice."""
        if self._closed:
            return
        self.flush(timeout)
        self._closed = True
        try:
            self._queue.put(_STOP, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, item: Item) -> bool:
        if self._closed:
            return False
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._dropped += 1
            return False
        return True

    def _taken(self, run: str, waiting: _Waiting) -> SampleItem:
        """Copy what waits into a sample for the writer and start the next one. Called under the lock."""
        now, limits = waiting.now, self.limits
        matrices = now >= waiting.matrix_due or waiting.matrix_due - now > limits.matrix_resolution
        sample: dict[str, dict[Labels, float]] = {}
        for metric, series in waiting.readings.items():
            resolution = self._kept.get(metric, -1.0)
            if resolution == -1.0:
                resolution = self._kept[metric] = limits.resolution_of(metric)
            if resolution is None or not series or (resolution == limits.matrix_resolution and not matrices):
                continue
            if len(series) <= limits.max_series:
                sample[metric] = dict(series)
            else:
                sample[metric] = {labels: series[labels] for labels in list(series)[: limits.max_series]}
        waiting.readings = {}
        waiting.due = now + limits.resolution
        if matrices:
            waiting.matrix_due = now + limits.matrix_resolution
        return SampleItem(run, waiting.step, now, sample)

    def _leftovers(self) -> list[SampleItem]:
        with self._lock:
            return [self._taken(run, waiting) for run, waiting in self._waiting.items() if waiting.readings]

    def _write(self) -> None:
        writer = self._writer
        deadline = time.monotonic() + self.limits.flush_seconds
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                deadline = self._flushed(writer)
                continue
            if item is _STOP:
                writer.close()
                return
            if isinstance(item, threading.Event):
                writer.flush()
                item.set()
            else:
                writer.add(item)
            if time.monotonic() >= deadline:
                deadline = self._flushed(writer)

    def _flushed(self, writer: Writer) -> float:
        self._take_over_idle()
        writer.flush()
        return time.monotonic() + self.limits.flush_seconds

    def _take_over_idle(self) -> None:
        """Write the last sample of runs that have offered nothing since the previous call, and forget those runs."""
        with self._lock:
            idle = [run for run, waiting in self._waiting.items() if self._last_seen.get(run) == waiting.now]
            samples = [(run, self._waiting.pop(run)) for run in idle]
            taken = [self._taken(run, waiting) for run, waiting in samples if waiting.readings]
            self._last_seen = {run: waiting.now for run, waiting in self._waiting.items()}
        for sample in taken:
            self._writer.add(sample)
