"""Weights & Biases: one wandb run for each run, rows by step under the keys of ``names.py``, usage as a heatmap.

wandb keeps rows whose step only rises. Readings of one step reach the daemon one after the other, so rows are held back
for a moment and what comes later still joins the oldest row held. Training that goes back to a checkpoint begins a new
wandb run of the same group. ``WANDB_MODE=offline`` and wandb's other variables work as always.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import wandb

from vqwatch_daemon.readings import Series
from vqwatch_daemon.sinks.heatmap import colours, usage_matrix
from vqwatch_daemon.sinks.names import CORRELATION, EVALUATION_STEP, HEATMAP, alert_key, named, usage_key
from vqwatch_daemon.sinks.records import Change, End, Record, Usage, Values

SETTLE_SECONDS: Final = 1.0
"""How old a wandb run is at least when it is finished: wandb-core 0.31 hangs, and loses every row, where one is ended
within some ten milliseconds of its beginning."""
HELD_SECONDS: Final = 3.0
"""How long a row waits for readings of its step that come later."""
LATE_STEPS: Final = 64
"""A loss that is further behind the latest one means that training went back; less is a late reading."""


def open_sink(target: str) -> WandB:
    """Return a sink that writes to the project ``target``, or ENTITY/PROJECT."""
    entity, _, project = target.rpartition("/")
    return WandB(project, entity or None)


class WandB:
    """Logs to wandb. ``directory`` is where wandb keeps its files, its own default when None."""

    def __init__(self, project: str, entity: str | None = None, directory: Path | None = None) -> None:
        self._project = project
        self._entity = entity
        self._directory = directory
        self._runs: dict[str, _Rows] = {}

    def write(self, record: Record) -> None:
        """Put a record into the row of its step."""
        if isinstance(record, End):
            if (ended := self._runs.pop(record.run, None)) is not None:
                ended.close()
            return
        rows = self._runs.get(record.run)
        if rows is not None and rows.went_back_to(record):
            rows.close()
            rows = None
        if rows is None:
            rows = self._runs[record.run] = _Rows(self._begin(record.run))
        rows.add(record)

    def _begin(self, run: str) -> Any:
        begun = wandb.init(
            project=self._project,
            entity=self._entity,
            dir=None if self._directory is None else str(self._directory),
            id=f"{re.sub(r'[^A-Za-z0-9_-]', '-', run)[:100]}-{uuid4().hex[:8]}",
            name=run,
            group=run,
            job_type="vqwatch",
            config={"run": run},
            reinit="create_new",
            settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
        )
        begun.define_metric(EVALUATION_STEP, hidden=True)
        begun.define_metric("evaluation/*", step_metric=EVALUATION_STEP)
        return begun

    def flush(self) -> None:
        """Hand over the rows that have waited long enough."""
        for rows in self._runs.values():
            rows.flush(HELD_SECONDS)

    def close(self) -> None:
        """Hand over every row, finish the runs, and wait until wandb's process has written them and is gone.

        It writes the last rows after ``finish()`` has returned, and who closes a sink ends whatever that started.
        """
        for rows in self._runs.values():
            rows.close()
        wandb.teardown()


class _Rows:
    """The rows of one wandb run that are held back, by step."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._began = time.monotonic()
        self._held: dict[int, dict[str, Any]] = {}
        self._since: dict[int, float] = {}
        self._written = -1
        self._trained = -1
        self._now = 0.0

    def went_back_to(self, record: Record) -> bool:
        """Return whether this record shows that training began again at an earlier step."""
        return isinstance(record, Values) and "loss" in record.readings and record.step < self._trained - LATE_STEPS

    def add(self, record: Values | Usage | Change) -> None:
        """Put a record into its row, or into the oldest one that is still held when its own was written."""
        step = record.step
        if isinstance(record, Values) and "loss" in record.readings:
            self._trained = max(self._trained, step)
        if step <= self._written:
            step = min(self._held, default=self._written + 1)
        self._now = max(self._now, record.now)
        self._since.setdefault(step, record.now)
        self._held.setdefault(step, {}).update(row(record))

    def flush(self, hold_seconds: float) -> None:
        """Log the rows that have been held so long, by the records' own time, and those of earlier steps."""
        due = max((step for step, since in self._since.items() if since <= self._now - hold_seconds), default=-1)
        for step in sorted(step for step in self._held if step <= due):
            del self._since[step]
            self._run.log(self._held.pop(step), step=step)
            self._written = step

    def close(self) -> None:
        """Log what is held and finish."""
        self.flush(0.0)
        time.sleep(max(0.0, self._began + SETTLE_SECONDS - time.monotonic()))
        self._run.finish()


def row(record: Values | Usage | Change) -> dict[str, Any]:
    """Return what a record adds to the row of its step."""
    if isinstance(record, Values):
        values: dict[str, Any] = {}
        for name, series in record.readings.items():
            if name == "codebook_usage_correlation":
                values[CORRELATION] = wandb.Image(_correlation(series))
            if name == "evaluation":
                values[EVALUATION_STEP] = record.step
            values.update(named(name, series))
        return values
    if isinstance(record, Usage):
        matrix = usage_matrix(list(record.counts.values()))
        values = {HEATMAP: wandb.Image(colours(matrix, 0.0, 1.0), caption=f"layers x codes, step {record.step}")}
        for layer, counts in record.counts.items():
            edges = np.unique(np.linspace(0, len(counts), min(64, len(counts)) + 1).astype(np.int64))
            values[usage_key(layer)] = wandb.Histogram(np_histogram=(np.add.reduceat(counts, edges[:-1]), edges))
        return values
    return _alert(record)


def _alert(change: Change) -> dict[str, Any]:
    return {alert_key(change.name): int(change.state == "firing")}


def _correlation(series: Series) -> Any:
    names = sorted({name for pair in series for name in pair}, key=lambda name: (len(name), name))
    matrix = np.eye(len(names))
    for (one, other), value in series.items():
        matrix[names.index(one), names.index(other)] = matrix[names.index(other), names.index(one)] = value
    return colours(np.repeat(matrix, 16, axis=1), -1.0, 1.0)
