"""Keeps the daemon's memory in a directory: a snapshot now and then, and a journal of what came after it.

Generation N is ``snapshot-N.npz`` and ``journal-N.log``, the latter holding what happened after the former was taken.
The newest two generations are kept, so that a damaged snapshot costs nothing: the one before it and both journals say
the same. Size: two snapshots, and journals of
:data:`JOURNAL_BYTES` each, at most :data:`MOST_UNSAVED` beyond the snapshots.

A message is safe once it is in the journal or in a snapshot. When neither can be written (disk full, too many open
files), the daemon goes on, counts, tries again every :data:`RETRY_SECONDS`, and until then acknowledges nothing: the
emitters keep what they sent, within their own bounds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from vqwatch.wire import Message, encode
from vqwatch_daemon import journal, saved
from vqwatch_daemon.journal import Journal, Record
from vqwatch_daemon.readings import Readings

_log = logging.getLogger(__name__)

SNAPSHOT_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 5.0
JOURNAL_BYTES: Final = 64 * 1024 * 1024
DAMAGED_KEPT: Final = 3
MOST_UNSAVED: Final = 4
"""Journals' worth of records that may pile up while no snapshot can be written; then nothing more is acknowledged."""


class StateError(RuntimeError):
    """The state directory cannot be used; the message says why."""


class Keeper:
    """The state directory of one daemon, locked against a second one.

    Use: :meth:`recover`, then :meth:`note` and :meth:`tick` for what happens, :meth:`snapshot` when :meth:`due`.
    Raises :class:`StateError` when the directory cannot be used at all.
    """

    def __init__(
        self, directory: Path, *, snapshot_seconds: float = SNAPSHOT_SECONDS, journal_bytes: int = JOURNAL_BYTES
    ) -> None:
        self._directory = directory
        self._snapshot_seconds = snapshot_seconds
        self._journal_bytes = journal_bytes
        self.failures = 0
        self.written_at: float | None = None
        self._tried_at = float("-inf")
        self._unsaved_bytes = 0
        self._broken_in: int | None = None
        self._journal: Journal | None = None
        self._writer: threading.Thread | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot use {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"another daemon keeps its state in {directory}") from error
        numbers = [*self._generations("snapshot"), *self._generations("journal")]
        self._generation = max(numbers, default=0)
        self._good = self._generation

    def _generations(self, kind: str) -> list[int]:
        pattern = re.compile(rf"{kind}-(\d{{1,18}})\.(npz|log)")
        found = (pattern.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _path(self, kind: str, generation: int) -> Path:
        return self._directory / f"{kind}-{generation}.{'npz' if kind == 'snapshot' else 'log'}"

    # --- after a restart --------------------------------------------------------------------------------------------

    def recover(self, take: Callable[[dict[str, Any]], None]) -> Iterator[Record]:
        """Give the newest good snapshot to ``take``, then yield what happened after it.

        A snapshot that cannot be read, or that ``take`` refuses by raising, is set aside and the one before it is
        tried: nothing in a file prevents a start.
        """
        base = -1
        for generation in reversed(self._generations("snapshot")):
            path = self._path("snapshot", generation)
            try:
                take(saved.read(path))
            except Exception as error:
                _log.warning("state: %s cannot be used and is set aside: %r", path.name, error)
                self._set_aside(path)
            else:
                base = self._good = generation
                break
        for generation in self._generations("journal"):
            if generation >= base:
                path = self._path("journal", generation)
                left = yield from journal.read(path)
                if left:
                    _log.warning("state: the last %d bytes of %s cannot be read: what they held is lost, unless it was "
                                 "never acknowledged", left, path.name)  # fmt: skip

    def _set_aside(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
            damaged = sorted(self._directory.glob("*.damaged"), key=lambda item: item.stat().st_mtime)
            for old in damaged[:-DAMAGED_KEPT]:
                old.unlink()

    # --- while running ----------------------------------------------------------------------------------------------

    @property
    def safe(self) -> bool:
        """Return whether everything noted so far outlives this process."""
        return self._broken_in is None

    def note(self, message: Message, now: float) -> None:
        """Write down a must-arrive message, before it is applied."""
        self._append("message", now, encode(message))

    def tick(self, now: float) -> None:
        """Write down that time passed."""
        self._append("tick", now, [])

    def absent(self, now: float, seconds: float) -> None:
        """Write down that no daemon was there for so long."""
        self._append("absent", now, journal.absence(seconds))

    def _append(self, kind: journal.Kind, now: float, frames: Any) -> None:
        if self._journal is None or self._broken_in == self._generation:
            return
        before = self._journal.size_bytes
        try:
            if self._unsaved_bytes > MOST_UNSAVED * self._journal_bytes:
                raise OSError(errno.EFBIG, "no snapshot could be written for too long")
            self._journal.append(kind, now, frames)
        except OSError as error:
            self.failures += 1
            if self._broken_in is None:
                _log.error("state: %s: %s; nothing is acknowledged until it can be written again",
                           self._journal.path, error.strerror)  # fmt: skip
            self._broken_in = self._generation
        self._unsaved_bytes += self._journal.size_bytes - before

    def due(self, monotonic: float) -> bool:
        """Return whether a snapshot should be taken now; ``monotonic`` in seconds."""
        if self._writer is not None and self._writer.is_alive():
            return False
        hurry = not self.safe or self._journal is None or self._journal.size_bytes >= self._journal_bytes
        wait = min(RETRY_SECONDS, self._snapshot_seconds) if hurry else self._snapshot_seconds
        return monotonic - self._tried_at >= wait

    def readings(self) -> Readings:
        """Return what the daemon says of its own memory."""
        readings: Readings = {
            "state_write_failures_total": {(): float(self.failures)},
            "state_safe": {(): float(self.safe)},
        }
        if self.written_at is not None:
            readings["state_snapshot_timestamp_seconds"] = {(): self.written_at}
        return readings

    def snapshot(self, state: dict[str, Any], now: float, monotonic: float, *, wait: bool = False) -> None:
        """Begin a new generation with ``state``, which must not change any more; a thread of its own writes it.

        What is noted from here on belongs to the new generation.
        """
        self._tried_at = monotonic
        self.join()
        generation = self._generation + 1
        try:
            fresh = Journal(self._path("journal", generation))
        except OSError as error:
            self.failures += 1
            _log.error("state: %s: %s", self._path("journal", generation), error.strerror)
            if self._journal is None:
                self._broken_in = self._generation
            return
        if self._journal is not None:
            self._journal.close()
        self._journal, self._generation = fresh, generation
        self._writer = threading.Thread(
            target=self._write, args=(state, generation, now), name="vqwatch-state", daemon=True
        )
        self._writer.start()
        if wait:
            self.join()

    def _write(self, state: dict[str, Any], generation: int, now: float) -> None:
        path = self._path("snapshot", generation)
        try:
            saved.write(path, state)
        except OSError as error:
            self.failures += 1
            _log.error("state: %s: %s", path, error.strerror)
            return
        self.written_at = now
        self._unsaved_bytes = 0
        if self._broken_in is not None and self._broken_in < generation:
            self._broken_in = None
        for kind in ("snapshot", "journal"):
            for old in self._generations(kind):
                if old < self._good:
                    self._path(kind, old).unlink(missing_ok=True)
        self._good = generation

    def join(self) -> None:
        """Wait for the snapshot that is being written."""
        if self._writer is not None:
            self._writer.join()

    def close(self) -> None:
        """Finish what is being written and give the directory free."""
        self.join()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        os.close(self._lock)
