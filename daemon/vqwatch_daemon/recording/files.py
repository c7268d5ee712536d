"""Messages in files: gzip, one record after the other, each the arrival time and the frames of one message.

A recording is one file or, where it was rotated, a numbered row of them (``run.vqrec``, ``run.1.vqrec``, ...); every
file begins with the hello of each session, so that any of them can be read alone. A torn end is the end. No clock.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from vqwatch.wire import (
    MUST_ARRIVE,
    Ack,
    Codebooks,
    Codes,
    Evaluation,
    Goodbye,
    Hello,
    Message,
    Reconstruction,
    Step,
    Stop,
    Welcome,
    WireError,
    decode,
    encode,
)

Said: TypeAlias = Hello | Step | Codes | Codebooks | Reconstruction | Evaluation | Goodbye
"""What a trainer says, and a recording holds."""

MAGIC: Final = b"vqwatch recording 1\n"
_HEAD: Final = struct.Struct("<dH")
_SIZE: Final = struct.Struct("<Q")
MAX_RECORD_BYTES: Final = 1 << 30
COMPRESSION: Final = 1


class RecordingError(ValueError):
    """A file that is no recording, or holds what this version cannot read; the message names it."""


class Recorder:
    """Writes messages to ``path``; at ``max_bytes`` of uncompressed messages the next file begins.

    At most ``max_files`` are kept: the oldest goes. Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, *, max_bytes: int = 4 << 30, max_files: int = 8) -> None:
        self.path = path
        self.messages = 0
        self._max_bytes, self._max_files = max_bytes, max_files
        self._number = 0
        self._hellos: dict[tuple[str, str], tuple[float, Hello]] = {}
        self._file = self._open()

    def _open(self) -> gzip.GzipFile:
        self._written = 0
        file = gzip.GzipFile(numbered(self.path, self._number), "wb", COMPRESSION)
        file.write(MAGIC)
        return file

    def add(self, message: Message, now: float) -> None:
        """Append one message that arrived at ``now``."""
        if isinstance(message, (Welcome, Ack, Stop)):
            return
        if self._written > self._max_bytes:
            self._rotate()
        if isinstance(message, Hello):
            self._hellos[message.origin.run, message.origin.session] = (now, message)
        elif message.kind == "goodbye":
            self._hellos.pop((message.origin.run, message.origin.session), None)
        self._write(message, now)
        self.messages += 1

    def _write(self, message: Message, now: float) -> None:
        frames = encode(message)
        sizes = [memoryview(frame).nbytes for frame in frames]
        self._file.write(_HEAD.pack(now, len(frames)) + b"".join(map(_SIZE.pack, sizes)))
        for frame in frames:
            self._file.write(frame)
        self._written += sum(sizes)

    def _rotate(self) -> None:
        self._file.close()
        self._number += 1
        self._file = self._open()
        for now, hello in self._hellos.values():
            self._write(hello, now)
        numbered(self.path, self._number - self._max_files).unlink(missing_ok=True)

    def flush(self) -> None:
        """Hand what was written to the system, so that a killed recorder loses no more than what came later."""
        self._file.flush(zlib.Z_SYNC_FLUSH)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def numbered(path: Path, number: int) -> Path:
    """Return the name of a recording's file ``number``, 0 being the first.

    >>> numbered(Path("run.vqrec"), 2).name
    'run.2.vqrec'
    """
    return path if number <= 0 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def files(path: Path) -> list[Path]:
    """Return the files of a recording that exist, in their order; ``path`` itself may have been rotated away."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}")
    later = [(int(found[1]), entry) for entry in path.parent.iterdir() if (found := pattern.fullmatch(entry.name))]
    return ([path] if path.exists() else []) + [entry for _, entry in sorted(later)]


def read(path: Path) -> Iterator[tuple[float, Message]]:
    """Yield (arrival time, message) over all files of a recording. Raises :class:`RecordingError`."""
    if not path.parent.is_dir() or not (existing := files(path)):
        raise RecordingError(f"{path}: no such recording")
    for entry in existing:
        yield from _read(entry)


def _read(path: Path) -> Iterator[tuple[float, Message]]:
    with gzip.GzipFile(path, "rb") as file:
        try:
            if file.read(len(MAGIC)) != MAGIC:
                raise RecordingError(f"{path}: not a vqwatch recording")
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                now, count = _HEAD.unpack(head)
                sizes = [_SIZE.unpack(_exactly(file, _SIZE.size))[0] for _ in range(count)]
                if sum(sizes) > MAX_RECORD_BYTES:
                    raise RecordingError(f"{path}: a record of {sum(sizes)} bytes")
                yield now, decode([_exactly(file, size) for size in sizes])
        except (EOFError, zlib.error):
            return  # the recorder was killed: what is whole was read
        except gzip.BadGzipFile as error:
            raise RecordingError(f"{path}: not a vqwatch recording") from error
        except WireError as error:
            raise RecordingError(f"{path}: {error}") from error


def _exactly(file: gzip.GzipFile, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


class Renumber:
    """Gives recorded messages the numbers, and if asked the run and session, of a stream that begins with them.

    What the recorder did not get leaves no gap in the replay: it was counted when it happened.
    """

    def __init__(self, run: str | None = None, suffix: str = "") -> None:
        self._run, self._suffix = run, suffix
        self._next: dict[tuple[str, str, str], int] = {}
        self._greeted: set[tuple[str, str]] = set()

    def __call__(self, message: Message) -> Said | None:
        """Return the message as it is to be sent; None for a hello that was only repeated by a rotation."""
        if isinstance(message, (Welcome, Ack, Stop)):
            return None
        session = (message.origin.run, message.origin.session)
        if isinstance(message, Hello):
            if session in self._greeted:
                return None
            self._greeted.add(session)
        stream = (*session, "" if message.kind in MUST_ARRIVE else message.kind)
        number = self._next[stream] = self._next.get(stream, 0) + 1
        origin = replace(
            message.origin,
            run=message.origin.run if self._run is None else self._run,
            session=message.origin.session + self._suffix,
        )
        changes: dict[str, Any] = {"origin": origin, "seq": number}
        if message.kind in MUST_ARRIVE:
            changes["first"] = 1
        return replace(message, **changes)
