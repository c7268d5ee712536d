"""What each sink wrote, read back with the sink's own library."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.daemon.sinks.conftest import START, Deliver, fired, usage, values

from vqwatch_daemon.sinks.records import End

EXPECTED = {
    "codebook/layer_0_utilization": 0.75,
    "codebook/layer_1_utilization": 0.5,
    "codebook/avg_utilization": 0.625,
    "vqwatch/codebook_gini_ratio/0": 0.25,
    "codebook/layer_usage_correlation/0_1": -0.125,
    "ema/layer_0_embedding_movement": 0.03125,
    "recon/snr_db": 15.5,
    "train/loss_total": 1.5,
    "loss_ratio/recon": 0.875,
    "grad_norm/global": 0.5,
    "train/lr": 0.001,
    "train/lr_1": 0.002,
    "evaluation/mse_mean": 0.25,
}
"""The keys of ``values(1)`` as every sink but JSON lines writes them."""


def test_json_lines_are_read_back_whole_with_catalogue_names(deliver: Deliver, tmp_path: Path) -> None:
    path = tmp_path / "made" / "out.jsonl"
    counts = deliver("jsonl", str(path), [values(1, total=math.nan), usage(1), fired(2)])
    readings, used, alert = (json.loads(line) for line in path.read_text().splitlines())
    assert counts.written == 3
    assert ["codebook_utilization_ratio", {"layer": "1"}, 0.5] in readings["values"]
    assert ["loss", {"component": "total"}, "NaN"] in readings["values"]
    assert readings["time"] == START + 1
    assert used["counts"] == {"0": [3, 0, 1, 4], "1": [5, 9]}
    assert (alert["name"], alert["state"], alert["step"]) == ("VqGradientSpike", "firing", 2)


def test_json_lines_go_on_behind_a_line_that_was_cut_short(deliver: Deliver, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"kind": "rea')
    deliver("jsonl", str(path), [fired(2)])
    cut, whole = path.read_text().splitlines()
    assert cut == '{"kind": "rea'
    assert json.loads(whole)["kind"] == "alert"


def test_tensorboard_reads_scalars_histograms_and_alerts(deliver: Deliver, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    deliver("tensorboard", str(tmp_path), [values(1), usage(1), values(2), fired(2), values(1, run="a/b")])
    found = EventAccumulator(str(tmp_path / "demo"), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    first = {tag: found.Scalars(tag)[0] for tag in found.Tags()["scalars"] if tag in EXPECTED}
    assert {tag: event.value for tag, event in first.items()} == pytest.approx(EXPECTED)
    assert [(event.step, event.value, event.wall_time) for event in found.Scalars("recon/snr_db")] == [
        (1, 15.5, START + 1),
        (2, 16.5, START + 2),
    ]
    histogram = make_ndarray(found.Tensors("codebook/layer_0_usage")[0].tensor_proto)
    np.testing.assert_array_equal(histogram, [[0, 1, 3], [1, 2, 0], [2, 3, 1], [3, 4, 4]])
    assert found.Scalars("alerts/gradient_spike")[0].value == 1.0
    assert (tmp_path / "a_b").is_dir()


def test_tensorboard_is_written_without_torch_or_tensorflow() -> None:
    probe = (
        "import sys, vqwatch_daemon.sinks.to_tensorboard as t; t.open_sink('/tmp');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_mlflow_reads_metrics_by_step_and_the_run_is_finished(
    deliver: Deliver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    counts = deliver("mlflow", tmp_path.as_uri(), [values(1), usage(1), values(2, total=math.nan), fired(2)])
    assert (counts.written, counts.failures) == (4, 0)
    client = MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name("vqwatch")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    first = {key: client.get_metric_history(run.info.run_id, key)[0].value for key in EXPECTED}
    assert first == pytest.approx(EXPECTED)
    history = client.get_metric_history(run.info.run_id, "recon/snr_db")
    assert [(point.step, point.value) for point in history] == [(1, 15.5), (2, 16.5)]
    assert math.isnan(run.data.metrics["train/loss_total"])
    assert run.data.tags["alert.VqGradientSpike"].startswith("firing at step 2")


def wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a ``.wandb`` file: a LevelDB log behind 7 bytes of its own. wandb 0.31 has no reader."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def wandb_histories(directory: Path) -> list[list[dict[str, Any]]]:
    """Return the rows of each offline run below a directory, in order."""
    paths = sorted(directory.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_ctime_ns)
    return [rows_of(path) for path in paths]


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of an offline run, in wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("run-*.wandb")
    rows = []
    for data in wandb_records(path):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {"_step": record.history.step.num}
            for item in record.history.item:
                key, *inner = item.nested_key or [item.key]
                (row.setdefault(key, {}) if inner else row)[inner[0] if inner else key] = json.loads(item.value_json)
            rows.append(row)
    return rows


def test_wandb_reads_rows_under_the_proposals_keys_with_heatmaps(
    deliver: Deliver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    counts = deliver("wandb", "project", [values(1), usage(1), values(2), fired(2)])
    assert (counts.written, counts.failures) == (4, 0)
    ((first, second),) = wandb_histories(tmp_path)
    assert {key: first[key] for key in EXPECTED} == pytest.approx(EXPECTED)
    assert (first["_step"], second["_step"]) == (1, 2)
    assert (second["recon/snr_db"], second["alerts/gradient_spike"]) == (16.5, 1)
    assert first["codebook/usage_heatmap"]["_type"] == "image-file"
    assert (first["codebook/usage_heatmap"]["width"], first["codebook/usage_heatmap"]["height"]) == (4, 32)
    assert first["codebook/layer_usage_correlation"]["_type"] == "image-file"
    assert first["codebook/layer_0_usage"]["values"] == [3, 0, 1, 4]


def test_a_wandb_sink_is_closed_once_the_process_that_writes_for_it_is_gone(tmp_path: Path) -> None:
    """It is killed then, and may still have everything to write when a run is finished."""
    script = (
        "import os\n"
        "from tests.daemon.sinks.conftest import values\n"
        "from vqwatch_daemon.sinks import outlet, to_wandb\n"
        "sink = to_wandb.open_sink('project')\n"
        "sink.write(values(1))\n"
        "assert outlet._descendants(os.getpid()) != []\n"
        "sink.close()\n"
        "print(outlet._descendants(os.getpid()))\n"
    )
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
    ((row,),) = wandb_histories(tmp_path)
    assert row["_step"] == 1


def test_training_that_went_back_begins_another_wandb_run(
    deliver: Deliver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    deliver("wandb", "project", [values(200), values(190), values(100), values(101)])
    histories = wandb_histories(tmp_path)
    assert [[row["_step"] for row in rows] for rows in histories] == [[190, 200], [100, 101]]


def test_a_run_that_ended_is_finished_in_wandb_and_mlflow_and_another_begins(
    deliver: Deliver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    records = [values(1), End("demo", 1, START + 1), values(2)]
    store = (tmp_path / "mlflow").as_uri()
    assert deliver("mlflow", store, records).written == deliver("wandb", "project", records).written == 3
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("vqwatch")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED", "FINISHED"]
    assert sorted(row["_step"] for rows in wandb_histories(tmp_path) for row in rows) == [1, 2]
