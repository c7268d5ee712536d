"""MLflow: one MLflow run for each run, metrics under the keys of ``names.py``, alerts as metrics and tags.

A daemon or sink that begins again goes on in the MLflow run that is still open.
"""

from __future__ import annotations

import re
from typing import Final

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from vqwatch_daemon.sinks.names import alert_key, named
from vqwatch_daemon.sinks.records import End, Record, Usage, Values

EXPERIMENT: Final = "vqwatch"
RUN_TAG: Final = "vqwatch.run"
METRICS_AT_ONCE: Final = 1000
"""MLflow's own limit for one request."""


def open_sink(target: str) -> Mlflow:
    """Return a sink that writes to the tracking server or store ``target``; asks it at once."""
    return Mlflow(MlflowClient(tracking_uri=target))


class Mlflow:
    """Logs to MLflow's experiment "vqwatch"."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._runs: dict[str, str] = {}
        found = client.get_experiment_by_name(EXPERIMENT)
        self._experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id

    def write(self, record: Record) -> None:
        """Log one record; a store has no place for histograms, so usage is left out."""
        if isinstance(record, Usage):
            return
        if isinstance(record, End):
            if (ended := self._runs.pop(record.run, None)) is not None:
                self._client.set_terminated(ended)
            return
        tags = []
        if isinstance(record, Values):
            pairs = [pair for name, series in record.readings.items() for pair in named(name, series)]
        else:
            pairs = [(alert_key(record.name), float(record.state == "firing"))]
            tags = [RunTag(f"alert.{record.name}", f"{record.state} at step {record.step}: {record.summary}"[:4000])]
        stamp = int(record.now * 1000)
        metrics = [Metric(_allowed(key), value, stamp, record.step) for key, value in pairs]
        run = self._run(record.run, stamp)
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(run, metrics=metrics[start : start + METRICS_AT_ONCE])
        if tags:
            self._client.log_batch(run, tags=tags)

    def _run(self, name: str, stamp: int) -> str:
        if name not in self._runs:
            quoted = name.replace("'", "\\'")
            open_runs = self._client.search_runs(
                [self._experiment], f"tags.`{RUN_TAG}` = '{quoted}' and attributes.status = 'RUNNING'", max_results=1
            )
            if open_runs:
                self._runs[name] = open_runs[0].info.run_id
            else:
                run = self._client.create_run(self._experiment, stamp, {RUN_TAG: name}, run_name=name)
                self._runs[name] = run.info.run_id
        return self._runs[name]

    def flush(self) -> None:
        """Return at once: the client waits for the store with every call."""

    def close(self) -> None:
        """Say that the runs have ended."""
        for run in self._runs.values():
            self._client.set_terminated(run)


def _allowed(key: str) -> str:
    """Return a key of MLflow's alphabet, with nothing in it that its file store takes for another directory.

    >>> _allowed("grad_norm/encoder[0]")
    'grad_norm/encoder_0_'
    """
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", key).replace("..", "__").strip("/.")
