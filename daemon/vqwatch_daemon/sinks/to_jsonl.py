"""JSON lines: one object for each record, appended to one file.

    {"kind": "readings", "run": "demo", "step": 40, "time": 1790000000.5,
     "values": [["codebook_perplexity", {"layer": "0"}, 201.5], ["reconstruction_snr_db", {}, 14.1]]}
    {"kind": "usage", "run": "demo", "step": 40, "time": …, "counts": {"0": [12, 0, 7, …]}}
    {"kind": "alert", "run": "demo", "step": 41, "time": …, "name": …, "severity": …, "state": "firing", …}
    {"kind": "end", "run": "demo", "step": 41, "time": …}

Names are the catalogue's. What is not finite is written as "NaN", "Infinity" or "-Infinity", which JSON lacks. A line
is whole or not there; after a crash some lines may be there twice. When the file is moved away a new one is begun.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.sinks.records import End, Record, Usage, Values


def open_sink(target: str) -> JsonLines:
    """Return a sink that appends to the file ``target``; its directory is made."""
    return JsonLines(Path(target))


class JsonLines:
    """Appends to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def _open(self) -> IO[bytes]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        if file.tell():
            with self._path.open("rb") as before:
                before.seek(-1, os.SEEK_END)
                if before.read(1) != b"\n":  # the writer before this one was killed inside a line
                    file.write(b"\n")
        return file

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(line(record), allow_nan=False, separators=(",", ":")).encode() + b"\n")

    def flush(self) -> None:
        """Hand the lines to the system; begin a new file where the old one was moved away."""
        self._file.flush()
        try:
            moved = self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            moved = True
        if moved:
            self._file.close()
            self._file = self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def line(record: Record) -> dict[str, Any]:
    """Return the object that stands for a record.

    >>> line(Values("demo", 3, 0.5, {"loss": {("total",): float("nan")}}))["values"]
    [['loss', {'component': 'total'}, 'NaN']]
    """
    head: dict[str, Any] = {"kind": "", "run": record.run, "step": record.step, "time": record.now}
    if isinstance(record, Values):
        values = [
            [name, dict(zip(CATALOGUE[name].labels, labels, strict=True)), _number(value)]
            for name, series in record.readings.items()
            for labels, value in series.items()
        ]
        return {**head, "kind": "readings", "values": values}
    if isinstance(record, Usage):
        return {**head, "kind": "usage", "counts": {layer: found.tolist() for layer, found in record.counts.items()}}
    if isinstance(record, End):
        return {**head, "kind": "end"}
    return {**head, "kind": "alert", "name": record.name, "severity": record.severity, "state": record.state,
            "labels": dict(record.labels), "summary": record.summary, "value": _number(record.value)}  # fmt: skip


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
