"""What happened since the last snapshot, appended record by record and read back after a crash.

A record is written with one system call and survives the death of the process from there on: the kernel has it. A power
cut costs what the kernel had not written back, by default up to 30 s. A torn or damaged record ends the reading; it was
never acknowledged, because an acknowledgement is sent only after the record was written.

Knows no clock. Frames are those of the wire: no pickle.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["message", "tick", "absent"]

_KINDS: Final[tuple[Kind, ...]] = ("message", "tick", "absent")
_START: Final = struct.Struct("<II")  # bytes that follow, their CRC-32
_HEAD: Final = struct.Struct("<BdH")  # kind, time, number of frames
_SIZE: Final = struct.Struct("<I")


class Record(NamedTuple):
    """One event: a must-arrive message as its frames, a tick, or that no daemon was there for ``seconds``."""

    kind: Kind
    now: float
    frames: tuple[bytes, ...] = ()
    seconds: float = 0.0


class Journal:
    """A file that records are appended to. Raises OSError where it cannot be made or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, kind: Kind, now: float, frames: Sequence[Any] = ()) -> None:
        """Write one record; after an OSError nothing of it is left, or nothing after it counts."""
        views = [memoryview(frame).cast("B") for frame in frames]
        head = b"".join((_HEAD.pack(_KINDS.index(kind), now, len(views)), *(_SIZE.pack(view.nbytes) for view in views)))
        crc = zlib.crc32(head)
        for view in views:
            crc = zlib.crc32(view, crc)
        length = len(head) + sum(view.nbytes for view in views)
        self._write([_START.pack(length, crc) + head, *views], _START.size + length)

    def _write(self, parts: list[Any], length: int) -> None:
        done = 0
        try:
            for start in range(0, len(parts), 512):  # writev takes at most 1024 parts
                done += os.writev(self._file, parts[start : start + 512])
            if done != length:
                raise OSError(errno.ENOSPC, "record written in part")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size_bytes)
            raise
        self.size_bytes += length

    def close(self) -> None:
        """Close the file; what was appended stays."""
        os.close(self._file)


def absence(seconds: float) -> tuple[bytes]:
    """Return the frames of an "absent" record."""
    return (struct.pack("<d", seconds),)


def read(path: Path) -> Generator[Record, None, int]:
    """Yield the records of a journal, up to its end or to the first that is torn or damaged; return the bytes left."""
    with path.open("rb") as file:
        size, done = os.fstat(file.fileno()).st_size, 0
        while len(start := file.read(_START.size)) == _START.size:
            length, crc = _START.unpack(start)
            body = file.read(min(length, size))
            if len(body) != length or zlib.crc32(body) != crc:
                break
            try:
                yield _parse(body)
            except (struct.error, IndexError):
                break
            done = file.tell()
    return size - done


def _parse(body: bytes) -> Record:
    kind, now, count = _HEAD.unpack_from(body)
    at = _HEAD.size + count * _SIZE.size
    frames = []
    for index in range(count):
        (size,) = _SIZE.unpack_from(body, _HEAD.size + index * _SIZE.size)
        frames.append(body[at : at + size])
        at += size
    if _KINDS[kind] == "absent":
        return Record("absent", now, (), *struct.unpack("<d", frames[0]))
    return Record(_KINDS[kind], now, tuple(frames))
