"""``vqwatch report``: what happened in a run, out of its history, with no daemon running.

One self-contained HTML file, a picture for slides, or JSON for scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final

from vqwatch_daemon.history import HistoryReader
from vqwatch_daemon.report import page, poster
from vqwatch_daemon.report.story import Story, gather
from vqwatch_daemon.report.words import summary
from vqwatch_daemon.web import encode

FORMATS: Final = ("html", "png", "json")
HISTORY_FILE: Final = "history.sqlite"


class ReportError(Exception):
    """A report cannot be made; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the report."""
    state = os.environ.get("VQWATCH_STATE")
    parser.add_argument("--run", help="name of the run (default: the one heard of last)")
    parser.add_argument("--state", default=state, help="state directory of the daemon, or its history file")
    parser.add_argument("-o", "--output", help="file to write (default: RUN.html, or by --format; - is the terminal)")
    parser.add_argument("--format", choices=FORMATS, help="default: by the output's ending, else html")
    parser.add_argument("--list", action="store_true", help="list the runs that the history knows, and end")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; 2 when that cannot be done as asked."""
    try:
        return _run(arguments)
    except (ReportError, FileNotFoundError) as error:
        sys.stderr.write(f"vqwatch report: {error}\n")
    except sqlite3.Error as error:
        sys.stderr.write(f"vqwatch report: the history cannot be read: {error}\n")
    return 2


def _run(arguments: argparse.Namespace) -> int:
    reader = HistoryReader(_history(arguments.state))
    runs = reader.runs()
    if arguments.list:
        for item in runs:
            sys.stdout.write(f"{item['name']}\tsteps {item['first_step']} to {item['step']}\n")
        return 0
    names = [item["name"] for item in runs]
    if not names:
        raise ReportError(f"no run in {reader.path}")
    name = names[0] if arguments.run is None else arguments.run
    if name not in names:
        raise ReportError(f"no run named {name!r} in {reader.path}; it knows: {', '.join(names[:10])}")
    story = gather(reader, name)
    ending = Path(arguments.output or "").suffix[1:]
    form = arguments.format or (ending if ending in FORMATS else "html")
    output = arguments.output or f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}.{form}"
    body = rendered(story, form)
    if output == "-":
        sys.stdout.buffer.write(body)
        return 0
    Path(output).write_bytes(body)
    sys.stdout.write(f"{output}: {name}, steps {story.first_step} to {story.last_step}. {story.sentence}\n")
    return 0


def rendered(story: Story, form: str) -> bytes:
    """Return the report in one of :data:`FORMATS`; raises :class:`ReportError` where a picture cannot be made."""
    if form == "json":
        return json.dumps(encode.clean(as_json(story)), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if form == "png":
        try:
            return poster.png(story)
        except ModuleNotFoundError as error:
            raise ReportError("--format png needs the package resvg-py: pip install 'vqwatch[png]'") from error
    return page.document(story).encode()


def as_json(story: Story) -> dict[str, object]:
    """Return the story as a JSON-able map: summary, tiles, alerts, last readings, curves, usage."""
    return {
        "run": story.run,
        "started_at": story.started_at,
        "last_seen": story.last_seen,
        "first_step": story.first_step,
        "last_step": story.last_step,
        **encode.overview(story.readings, ()),
        "verdict": story.verdict,
        "sentence": story.sentence,
        "summary": summary(story),
        "alerts": [episode.as_dict() for episode in story.episodes],
        "readings": encode.readings(story.readings),
        "curves": story.shown,
        "usage": None if not story.snapshots else story.snapshots[-1],
    }


def _history(state: str | None) -> Path:
    if state is None:
        raise ReportError("where is the history? name the daemon's state directory with --state")
    path = Path(state)
    return path / HISTORY_FILE if path.is_dir() else path
