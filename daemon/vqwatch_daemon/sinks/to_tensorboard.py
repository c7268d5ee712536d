"""TensorBoard: scalars under the keys of ``names.py`` and histograms of code usage, one directory for each run.

Written with the ``tensorboard`` package's own event writer; neither torch nor TensorFlow is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from vqwatch_daemon.sinks.names import alert_key, named, usage_key
from vqwatch_daemon.sinks.records import Change, End, Record, Usage, Values

BUCKETS: Final = 128


def open_sink(target: str) -> TensorBoard:
    """Return a sink that writes below the directory ``target``."""
    return TensorBoard(Path(target))


class TensorBoard:
    """One event file for each run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[str, EventFileWriter] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, record: Record) -> None:
        """Write one record as one event."""
        if isinstance(record, End):
            if (writer := self._writers.pop(record.run, None)) is not None:
                writer.close()
            return
        event = event_pb2.Event(wall_time=record.now, step=record.step, summary=summary(record))
        self._writer(record.run).add_event(event)

    def _writer(self, run: str) -> EventFileWriter:
        writer = self._writers.get(run)
        if writer is None:
            writer = self._writers[run] = EventFileWriter(str(self._directory / directory_name(run)))
        return writer

    def flush(self) -> None:
        """Write out what the event writers hold."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()


def directory_name(run: str) -> str:
    """Return a run's directory below the sink's: its name with nothing in it that leads elsewhere.

    >>> directory_name("sweep/../7")
    'sweep_.._7'
    """
    return re.sub(r"[^A-Za-z0-9._=-]", "_", run).lstrip(".") or "run"


def summary(record: Values | Usage | Change) -> summary_pb2.Summary:
    """Return a record as TensorBoard's summary."""
    if isinstance(record, Values):
        pairs = [pair for name, series in record.readings.items() for pair in named(name, series)]
        return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=v) for tag, v in pairs])
    if isinstance(record, Usage):
        return summary_pb2.Summary(
            value=[_histogram(usage_key(layer), counts) for layer, counts in record.counts.items()]
        )
    return summary_pb2.Summary(value=[_alert(record), _text(record)])


def _alert(change: Change) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(tag=alert_key(change.name), simple_value=float(change.state == "firing"))


def _text(change: Change) -> summary_pb2.Summary.Value:
    text = f"{change.severity} {change.name} {change.state} at step {change.step}: {change.summary}"
    metadata = summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto(
        dim=[TensorShapeProto.Dim(size=1)]))  # fmt: skip
    return summary_pb2.Summary.Value(tag=f"{alert_key(change.name)}/text", metadata=metadata, tensor=tensor)


def _histogram(tag: str, counts: NDArray[np.int64]) -> summary_pb2.Summary.Value:
    """Return usage as a histogram over code numbers, in the form of the histogram plugin: rows (left, right, count)."""
    edges = np.unique(np.linspace(0, len(counts), min(BUCKETS, len(counts)) + 1).astype(np.int64))
    rows = np.stack([edges[:-1], edges[1:], np.add.reduceat(counts, edges[:-1])], axis=1).astype(np.float64)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in rows.shape])
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="histograms"),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_content=rows.astype("<f8").tobytes(), tensor_shape=shape)
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
