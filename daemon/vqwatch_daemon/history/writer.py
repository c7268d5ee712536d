"""Takes samples to the file, rolls them into blocks, thins and forgets the old ones. One thread calls it.

Samples reach the table ``tail`` within seconds, cheaply and whole; every few minutes a run's tail becomes one packed
curve per metric in ``block``. What cannot be written is counted in :attr:`Writer.lost`; a damaged file is set aside.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from vqwatch_daemon.history import curve, schema
from vqwatch_daemon.history.codec import (
    AlertItem,
    Item,
    SampleItem,
    UsageItem,
    packed_tail,
    packed_usage,
    unpacked_tail,
)
from vqwatch_daemon.history.limits import Limits

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS: Final = 60.0
_BLOCKS_TO_MERGE: Final = 12
_METRICS_AT_ONCE: Final = 32
_RUNS_AT_ONCE: Final = 16


class Writer:
    """Owns the writing connection; see the module."""

    def __init__(self, path: Path, connection: sqlite3.Connection, limits: Limits, clock: Callable[[], float]) -> None:
        self.lost = 0
        self._path = path
        self._connection = connection
        self._limits = limits
        self._clock = clock
        self._samples: dict[str, list[SampleItem]] = {}
        self._others: list[UsageItem | AlertItem] = []
        self._housekept = float("-inf")

    def add(self, item: Item) -> None:
        """Keep an item until the next flush."""
        if isinstance(item, SampleItem):
            self._samples.setdefault(item.run, []).append(item)
        else:
            self._others.append(item)

    def flush(self) -> None:
        """Bring what was added to the file, in one transaction; then roll, thin and forget what is due."""
        samples, others = self._samples, self._others
        self._samples, self._others = {}, []
        count = sum(map(len, samples.values())) + len(others)
        if count and not self._attempt(lambda: self._write(samples, others)):
            self.lost += count
        now = self._clock()
        if not 0 <= now - self._housekept < _HOUSEKEEPING_SECONDS:
            self._housekept = now
            self._attempt(lambda: self._keep_house(now))

    def close(self) -> None:
        """Write what is left, fold the log into the file and close it."""
        self.flush()
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            logger.warning("the history was not folded at the end: %s", error)
        self._connection.close()

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Run ``act`` in a transaction; roll back and return False on an error, and replace a damaged file."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            act()
            self._connection.execute("COMMIT")
            return True
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            logger.warning("the history at %s took no write: %s", self._path, error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return False
        except sqlite3.DatabaseError as error:
            self._connection.close()
            schema.set_aside(self._path, str(error))
            self._connection = schema.open_for_writing(self._path)
            return False

    # --- writing ---------------------------------------------------------------------------------------------

    def _write(self, samples: Mapping[str, list[SampleItem]], others: list[UsageItem | AlertItem]) -> None:
        execute = self._connection.execute
        for run, items in samples.items():
            key = self._run(run, items[0].step, items[0].now)
            execute(
                "UPDATE run SET step = ?, last_seen = ?, written_at = ? WHERE id = ?",
                (items[-1].step, items[-1].now, self._clock(), key),
            )
            execute("INSERT INTO tail (run, data) VALUES (?, ?)", (key, packed_tail(items)))
            (rolled_at,) = execute("SELECT rolled_at FROM run WHERE id = ?", (key,)).fetchone()
            if not 0 <= items[-1].now - rolled_at < self._limits.block_seconds:
                self._roll(key, items[-1].now)
        for other in others:
            if isinstance(other, UsageItem):
                key = self._run(other.run, other.step, other.now)
                execute(
                    "INSERT INTO usage (run, step, time, level, data) VALUES (?, ?, ?, 0, ?)",
                    (key, other.step, other.now, packed_usage(other.counts)),
                )
            else:
                entry = other.entry
                execute(
                    "INSERT INTO alert (run, time, entry) VALUES (?, ?, ?)",
                    (str(entry.get("run", "")), float(entry.get("time", 0.0)), json.dumps(entry, default=str)),
                )

    def _run(self, name: str, step: int, now: float) -> int:
        row = self._connection.execute("SELECT id FROM run WHERE name = ?", (name,)).fetchone()
        if row is None:
            row = self._connection.execute(
                "INSERT INTO run (name, started_at, last_seen, first_step, step, rolled_at, written_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (name, now, now, step, step, now, self._clock()),
            ).fetchone()
        key: int = row[0]
        return key

    def _roll(self, run: int, now: float) -> None:
        """Turn a run's tail into blocks."""
        execute = self._connection.execute
        rows = execute("SELECT data FROM tail WHERE run = ? ORDER BY id", (run,)).fetchall()
        columns: dict[str, list[curve.Sample]] = {}
        for (data,) in rows:
            for metric, samples in unpacked_tail(data).items():
                columns.setdefault(metric, []).extend(samples)
        for metric, samples in columns.items():
            self._insert(run, metric, 0, curve.from_samples(samples))
        execute("DELETE FROM tail WHERE run = ?", (run,))
        execute("UPDATE run SET rolled_at = ? WHERE id = ?", (now, run))

    def _insert(self, run: int, metric: str, level: int, values: curve.Curve) -> None:
        self._connection.execute(
            "INSERT INTO block (run, metric, level, start_time, end_time, start_step, end_step, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run, metric, level, float(values.times.min()), float(values.times.max()),
                int(values.steps.min()), int(values.steps.max()), curve.pack(values),
            ),
        )  # fmt: skip

    # --- thinning and forgetting -----------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        """Thin and forget, for the runs that have waited longest.

        A sample's age counts from when its run was last written to, not from its own clock: the replay of an old
        recording is as young as the replay.
        """
        limits = self._limits
        execute = self._connection.execute
        for run, last_seen, written_at in execute(
            "SELECT id, last_seen, written_at FROM run ORDER BY kept_house_at LIMIT ?", (_RUNS_AT_ONCE,)
        ).fetchall():
            here = now - (written_at - last_seen)
            if last_seen < here - 2 * limits.block_seconds:
                self._roll(run, last_seen)
            self._thin(run, 0, here - limits.fine_hours * 3600, limits.medium_seconds)
            self._thin(run, 1, here - limits.medium_hours * 3600, limits.coarse_seconds)
            self._thin_usage(run, 0, here - 3600, 60.0)
            self._thin_usage(run, 1, here - 24 * 3600, limits.coarse_seconds)
            oldest = here - limits.max_age_days * 86400
            execute("DELETE FROM block WHERE run = ? AND level IN (0, 1, 2) AND end_time < ?", (run, oldest))
            execute("DELETE FROM usage WHERE run = ? AND level IN (0, 1, 2) AND time < ?", (run, oldest))
            execute("UPDATE run SET kept_house_at = ? WHERE id = ?", (now, run))
        self._forget_runs(now - limits.max_age_days * 86400)
        self._shrink()

    def _thin(self, run: int, level: int, before: float, seconds: float) -> None:
        """Merge blocks that ended ``before`` into buckets of ``seconds``, an hour's worth at a time."""
        execute = self._connection.execute
        due = execute(
            "SELECT metric FROM block WHERE run = ? AND level = ? AND end_time < ? GROUP BY metric "
            "HAVING count(*) >= ? OR min(end_time) < ? LIMIT ?",
            (run, level, before, _BLOCKS_TO_MERGE, before - 7200, _METRICS_AT_ONCE),
        ).fetchall()
        for (metric,) in due:
            rows = execute(
                "SELECT id, data FROM block WHERE run = ? AND metric = ? AND level = ? AND end_time < ? "
                "ORDER BY start_time LIMIT ?",
                (run, metric, level, before, 4 * _BLOCKS_TO_MERGE),
            ).fetchall()
            joined = curve.join(_readable(data for _, data in rows))
            if joined is not None:
                self._insert(run, metric, level + 1, curve.rounded(curve.bucket(joined, seconds)))
            self._connection.executemany("DELETE FROM block WHERE id = ?", [(key,) for key, _ in rows])

    def _thin_usage(self, run: int, level: int, before: float, seconds: float) -> None:
        """Keep the latest snapshot of each whole span of ``seconds`` that ended ``before``."""
        due = (run, level, before - before % seconds)
        self._connection.execute(
            "DELETE FROM usage WHERE run = ? AND level = ? AND time < ? AND id NOT IN ("
            "SELECT max(id) FROM usage WHERE run = ? AND level = ? AND time < ? GROUP BY CAST(time / ? AS INTEGER))",
            (*due, *due, seconds),
        )
        self._connection.execute("UPDATE usage SET level = level + 1 WHERE run = ? AND level = ? AND time < ?", due)

    def _forget_runs(self, before: float) -> None:
        execute = self._connection.execute
        gone = execute(
            "SELECT id, name FROM run WHERE written_at < ? UNION SELECT id, name FROM (SELECT id, name FROM run "
            "ORDER BY written_at DESC LIMIT -1 OFFSET ?)",
            (before, self._limits.max_runs),
        ).fetchall()
        for key, name in gone:
            for table in ("block", "usage", "tail"):
                execute(f"DELETE FROM {table} WHERE run = ?", (key,))
            execute("DELETE FROM alert WHERE run = ?", (name,))
            execute("DELETE FROM run WHERE id = ?", (key,))
        execute(
            "DELETE FROM alert WHERE id <= (SELECT coalesce(max(id), 0) FROM alert) - ?", (self._limits.max_alerts,)
        )

    def _shrink(self) -> None:
        """Drop the oldest until the file's pages in use fit the limit, and give free pages back."""
        execute = self._connection.execute
        (page_size,) = execute("PRAGMA page_size").fetchone()
        while True:
            (pages,) = execute("PRAGMA page_count").fetchone()
            (free,) = execute("PRAGMA freelist_count").fetchone()
            if (pages - free) * page_size <= self._limits.max_bytes:
                break
            deleted = 0
            for table, age in (("block", "end_time"), ("usage", "time")):
                share = f"SELECT max(1, count(*) / 20) FROM {table}"
                oldest = f"SELECT id FROM {table} ORDER BY {age} LIMIT ({share})"
                deleted += execute(f"DELETE FROM {table} WHERE id IN ({oldest})").rowcount
            if deleted == 0:
                break
        if free:
            execute("PRAGMA incremental_vacuum").fetchall()


def _readable(packed: Any) -> Any:
    """Yield the curves that can be read; a block that cannot is left out and said."""
    for data in packed:
        try:
            yield curve.unpack(data)
        except ValueError as error:
            logger.warning("a block of the history cannot be read: %s", error)
