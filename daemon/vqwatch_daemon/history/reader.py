"""Reads the store: beside the daemon that writes it, or long after. Every call opens a connection of its own."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.history import curve, schema
from vqwatch_daemon.history.codec import unpacked_tail, unpacked_usage
from vqwatch_daemon.readings import Readings, Series

logger = logging.getLogger(__name__)

MOST_POINTS = 5000


class HistoryReader:
    """Answers questions about a history file. Knows no writer; raises FileNotFoundError where there is no file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def runs(self) -> list[dict[str, Any]]:
        """Return every run, the latest first: name, started_at, last_seen (Unix seconds), first_step, step."""
        with closing(schema.open_for_reading(self.path)) as connection:
            rows = connection.execute(
                "SELECT name, started_at, last_seen, first_step, step FROM run ORDER BY last_seen DESC"
            ).fetchall()
        return [dict(zip(("name", "started_at", "last_seen", "first_step", "step"), row, strict=True)) for row in rows]

    def metrics(self, run: str) -> list[str]:
        """Return the names of the metrics that a run has samples of."""
        with closing(schema.open_for_reading(self.path)) as connection:
            found = {
                name
                for (name,) in connection.execute(
                    "SELECT DISTINCT metric FROM block JOIN run ON run.id = block.run WHERE run.name = ?", (run,)
                )
            }
            tails = connection.execute(
                "SELECT data FROM tail JOIN run ON run.id = tail.run WHERE run.name = ?", (run,)
            ).fetchall()
        for (data,) in tails:
            found.update(unpacked_tail(data))
        return sorted(found)

    def latest(self, run: str) -> Readings:
        """Return the last value of every series of a run; empty when the run is not known."""
        with closing(schema.open_for_reading(self.path)) as connection:
            connection.execute("BEGIN")
            row = connection.execute("SELECT id FROM run WHERE name = ?", (run,)).fetchone()
            if row is None:
                return {}
            blocks = connection.execute(
                "SELECT metric, data FROM block WHERE run = ? GROUP BY metric HAVING end_time = max(end_time)", row
            ).fetchall()
            tails = connection.execute("SELECT data FROM tail WHERE run = ? ORDER BY id", row).fetchall()
        found: Readings = {}
        for metric, data in blocks:
            try:
                found[metric] = _last(curve.unpack(data))
            except ValueError as error:
                logger.warning("a block of %s cannot be read: %s", metric, error)
        for (data,) in tails:
            for metric, samples in unpacked_tail(data).items():
                found[metric] = _last(curve.from_samples(samples[-1:]))
        return found

    def curves(
        self,
        run: str,
        metrics: Sequence[str],
        *,
        start: float | None = None,
        end: float | None = None,
        by: str = "step",
    ) -> dict[str, curve.Curve]:
        """Return the curves of the metrics that have samples with ``start <= by <= end``, at the kept resolution."""
        wanted = list(dict.fromkeys(metrics))
        low, high = (-math.inf if start is None else start), (math.inf if end is None else end)
        axis = "step" if by == "step" else "time"
        parts: dict[str, list[curve.Curve]] = {}
        with closing(schema.open_for_reading(self.path)) as connection:
            connection.execute("BEGIN")  # one moment for both tables
            row = connection.execute("SELECT id FROM run WHERE name = ?", (run,)).fetchone()
            if row is None or not wanted:
                return {}
            places = ", ".join("?" * len(wanted))
            blocks = connection.execute(
                f"SELECT metric, data FROM block WHERE run = ? AND metric IN ({places}) "
                f"AND end_{axis} >= ? AND start_{axis} <= ? ORDER BY start_time",
                (row[0], *wanted, low, high),
            ).fetchall()
            tails = connection.execute("SELECT data FROM tail WHERE run = ? ORDER BY id", (row[0],)).fetchall()
        for metric, data in blocks:
            try:
                parts.setdefault(metric, []).append(curve.unpack(data))
            except ValueError as error:
                logger.warning("a block of %s cannot be read: %s", metric, error)
        samples: dict[str, list[curve.Sample]] = {}
        for (data,) in tails:
            for metric, rows in unpacked_tail(data).items():
                if metric in wanted:
                    samples.setdefault(metric, []).extend(rows)
        for metric, rows in samples.items():
            parts.setdefault(metric, []).append(curve.from_samples(rows))
        joined = {metric: curve.join(parts[metric]) for metric in wanted if metric in parts}
        cut = {metric: _between(item, low, high, by) for metric, item in joined.items() if item is not None}
        return {metric: item for metric, item in cut.items() if len(item.steps)}

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
        """Return curves as JSON-able maps, each thinned to ``points`` samples along ``by`` ("step" or "time").

        ``{metric: {"labels": [names], "series": [[label values], …], "step": […], "time": […], "value": [[…], …],
        "low": …, "high": …}}``: one list of values per series, None where there was no evidence; ``low`` and
        ``high`` are there where a sample stands for several. Non-finite values are the strings of ``float``.
        """
        points = max(2, min(points, MOST_POINTS))
        found = self.curves(run, metrics, start=start, end=end, by=by)
        return {metric: shown(metric, curve.thin(item, points, by)) for metric, item in found.items()}

    def usage_at(self, run: str, step: int | None = None) -> dict[str, Any] | None:
        """Return ``{"step", "time", "layers": {layer: [counts]}}``: the latest snapshot (up to ``step``)."""
        with closing(schema.open_for_reading(self.path)) as connection:
            row = connection.execute(
                "SELECT usage.step, time, data FROM usage JOIN run ON run.id = usage.run "
                "WHERE name = ? AND usage.step <= ? ORDER BY time DESC LIMIT 1",
                (run, 2**63 - 1 if step is None else step),
            ).fetchone()
        if row is None:
            return None
        try:
            return {"step": row[0], "time": row[1], "layers": unpacked_usage(row[2])}
        except ValueError as error:
            logger.warning("a usage snapshot of %s cannot be read: %s", run, error)
            return None

    def usage_steps(self, run: str) -> list[tuple[int, float]]:
        """Return (step, time) of every usage snapshot of a run, in the order taken."""
        with closing(schema.open_for_reading(self.path)) as connection:
            return connection.execute(
                "SELECT usage.step, time FROM usage JOIN run ON run.id = usage.run WHERE name = ? ORDER BY time", (run,)
            ).fetchall()

    def alert_log(self, run: str | None = None, *, limit: int = 200) -> list[dict[str, Any]]:
        """Return the latest alert transitions, the newest first, as they were recorded."""
        condition, values = ("", ()) if run is None else ("WHERE run = ? ", (run,))
        with closing(schema.open_for_reading(self.path)) as connection:
            rows = connection.execute(
                f"SELECT entry FROM alert {condition}ORDER BY time DESC, id DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return [json.loads(entry) for (entry,) in rows]


def shown(metric: str, item: curve.Curve) -> dict[str, Any]:
    """Return a curve as the JSON-able map that :meth:`HistoryReader.series` describes."""
    known = CATALOGUE.get(metric)
    answer: dict[str, Any] = {
        "labels": list(known.labels) if known else [],
        "series": [list(labels) for labels in item.labels],
        "step": item.steps.tolist(),
        "time": [round(time, 3) for time in item.times.tolist()],
        "value": _columns(item.mean, item.present),
    }
    if item.bucketed:
        answer["low"] = _columns(item.low, item.present)
        answer["high"] = _columns(item.high, item.present)
    return answer


def _last(item: curve.Curve) -> Series:
    """Return the values of the last sample that are there."""
    row = item.mean[-1].tolist()
    return {labels: row[i] for i, labels in enumerate(item.labels) if item.present[-1, i]}


def _between(item: curve.Curve, low: float, high: float, by: str) -> curve.Curve:
    axis = item.steps if by == "step" else item.times
    inside = (axis >= low) & (axis <= high)
    return item if bool(inside.all()) else curve.take(item, inside)


def _columns(values: NDArray[np.float32], present: NDArray[np.bool_]) -> list[list[float | str | None]]:
    return [list(_numbers(values[:, i], present[:, i])) for i in range(values.shape[1])]


def _numbers(values: NDArray[np.float32], present: NDArray[np.bool_]) -> Iterable[float | str | None]:
    """Six significant digits are more than a screen shows."""
    for value, there in zip(values.tolist(), present.tolist(), strict=True):
        if not there:
            yield None
        elif math.isfinite(value):
            yield float(f"{value:.6g}")
        else:
            yield "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
