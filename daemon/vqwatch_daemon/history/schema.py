"""The file: its tables, how it is opened, and what becomes of a damaged one."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, started_at REAL NOT NULL, last_seen REAL NOT NULL,
    first_step INTEGER NOT NULL, step INTEGER NOT NULL, rolled_at REAL NOT NULL,
    written_at REAL NOT NULL DEFAULT 0, kept_house_at REAL NOT NULL DEFAULT 0
);
CREATE TABLE tail (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX tail_run ON tail (run);
CREATE TABLE block (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, metric TEXT NOT NULL, level INTEGER NOT NULL,
    start_time REAL NOT NULL, end_time REAL NOT NULL, start_step INTEGER NOT NULL, end_step INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX block_metric ON block (run, metric, start_time);
CREATE INDEX block_age ON block (run, level, end_time);
CREATE TABLE usage (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, level INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX usage_time ON usage (run, time);
CREATE INDEX usage_age ON usage (run, level, time);
CREATE TABLE alert (id INTEGER PRIMARY KEY, run TEXT NOT NULL, time REAL NOT NULL, entry TEXT NOT NULL);
CREATE INDEX alert_run ON alert (run, time);
"""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Return a connection to the store, made if absent; one that cannot be read is set aside and begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _opened(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and (not path.exists() or _is_sqlite(path)):
            raise  # locked, full, forbidden or read-only: not the file's fault
        set_aside(path, str(error))
        return _opened(path)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read; raises FileNotFoundError or sqlite3.DatabaseError."""
    if not path.is_file():
        raise FileNotFoundError(f"no history at {path}")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5)
        connection.execute("PRAGMA query_only = 1")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:  # a folder that we may not write: no -shm file can be made
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, timeout=5)
    return connection


def set_aside(path: Path, reason: str) -> Path:
    """Rename a damaged store and its companions, so that a new one can begin; return where it went."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(kept.with_name(kept.name + suffix))
    if path.exists():
        path.rename(kept)
    logger.warning("the history at %s is damaged (%s): kept as %s, a new one begins", path, reason, kept.name)
    return kept


def _opened(path: Path) -> sqlite3.Connection:
    fresh = not path.exists() or path.stat().st_size == 0
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        if fresh:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -4096")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with closing(connection.cursor()) as cursor:
                cursor.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version} of the file, this program reads {VERSION}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) in (b"SQLite format 3\0", b"")
