"""The report: out of a history file, with no daemon, in every format."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sqlite3
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.web.training import Training

from vqwatch_daemon import report
from vqwatch_daemon.history import History, HistoryReader
from vqwatch_daemon.report import figures, page, poster, svg
from vqwatch_daemon.report.story import episodes, gather
from vqwatch_daemon.report.words import summary

NOW = 1_790_000_000.0
EVIL = "<script>alert('run')</script>\"&"


def alert(to: str, step: int, **more: Any) -> dict[str, Any]:
    """One transition."""
    return {
        "run": "rq-512",
        "time": NOW + step / 10,
        "step": step,
        "name": "VqCodebookCollapse",
        "severity": "critical",
        "labels": {"alertname": "VqCodebookCollapse", "layer": "3"},
        "annotations": {"description": "Layer 3 uses 4 % of its codes."},
        "to": to,
        **more,
    }


@pytest.fixture(scope="module")
def state(tmp_path_factory: Any) -> Path:
    """The state directory of a daemon that watched a run collapse at step 600 and recover, and then went away."""
    folder: Path = tmp_path_factory.mktemp("state")
    source = Training(1, collapse=600)
    with History(folder / "history.sqlite") as store:
        for step in range(0, 1500, 10):
            readings = source.readings(step)
            if step == 500:
                readings["loss"]["total",] = math.nan
            store.record("rq-512", step, NOW + step / 10, readings)
            if step % 100 == 0:
                store.record_usage("rq-512", step, NOW + step / 10, source.usage(step))
        store.record_alert(alert("firing", 640))
        store.record_alert(alert("resolved", 910))
        store.record_alert(alert("firing", 1400, name="VqLossSpike", severity="warning", labels={}))
        store.record(EVIL, 1, NOW - 100, {"loss": {(EVIL,): 1.0, ("vq",): 2.0}})
        store.record_alert(alert("firing", 1, run=EVIL, name=EVIL, annotations={"description": EVIL}))
    return folder


def call(*words: str) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args(words))


class Reader(HTMLParser):
    """Collects what a document would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_html_report_is_one_file_that_loads_nothing(state: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert call("--run", "rq-512", "--state", str(state), "-o", str(output)) == 0
    text = output.read_text(encoding="utf-8")
    found = Reader()
    found.feed(text)
    assert "script" not in found.tags
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert found.addresses, "the heatmaps are there"
    assert len(text) < 600_000
    for title in ("Utilization by layer", "Signal to noise", "Loss and its components", "Alerts over the steps"):
        assert title in text


def test_the_summary_says_what_happened_when(state: Path) -> None:
    sentences = summary(gather(HistoryReader(state / "history.sqlite"), "rq-512"))
    told = "\n".join(sentences)
    assert "8 layers of 256 codes" in told
    assert "VqCodebookCollapse (layer 3), critical, fired at step 640 and was resolved at step 910, 27 s later." in told
    assert "VqLossSpike, warning, fired at step 1,400 and was still firing at the end." in told
    assert "The lowest reading was 4%, in layer 3 at step" in told
    assert "It was not finite in 1 sample, first at step 500." in told
    assert "signal-to-noise ratio rose to" in told


def test_a_silence_in_the_middle_is_told(tmp_path: Path) -> None:
    with History(tmp_path / "history.sqlite") as store:
        for second in [*range(100), *range(1000, 1100)]:
            store.record("gap", second, NOW + second, {"loss": {("total",): 1.0}})
    sentences = summary(gather(HistoryReader(tmp_path / "history.sqlite"), "gap"))
    assert any(sentence.startswith("Nothing was heard for 15 min 1 s after") for sentence in sentences)


def test_the_json_report_is_for_scripts(state: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    assert call("--run", "rq-512", "--state", str(state), "-o", str(output)) == 0
    made = json.loads(output.read_text(encoding="utf-8"))
    assert (made["run"], made["last_step"]) == ("rq-512", 1490)
    assert [(item["name"], item["end_step"]) for item in made["alerts"]] == [
        ("VqCodebookCollapse", 910),
        ("VqLossSpike", None),
    ]
    assert made["curves"]["codebook_perplexity"]["labels"] == ["layer"]
    assert len(made["usage"]["layers"]["0"]) == 256
    assert made["verdict"] in ("healthy", "concerning", "critical")


def test_the_picture_is_a_png_of_the_promised_width(state: Path, tmp_path: Path) -> None:
    importlib.import_module("resvg_py")
    output = tmp_path / "report.png"
    assert call("--run", "rq-512", "--state", str(state), "-o", str(output)) == 0
    data = output.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">I", data[16:20])[0] == poster.WIDTH


def test_every_drawing_is_well_formed_whatever_the_names(state: Path) -> None:
    reader = HistoryReader(state / "history.sqlite")
    for run in ("rq-512", EVIL):
        story = gather(reader, run)
        members = [figure for _, section in figures.SECTIONS for figure in section]
        drawings = [figures.chart(story, figure) for figure in members]
        drawings += [poster.drawing(story), figures.timeline(story), *figures.heatmaps(story)]
        assert any(drawings)
        for drawing in filter(None, drawings):
            ET.fromstring(drawing)  # raises when a name broke out of its place


def test_hostile_names_stay_text_in_the_document(state: Path) -> None:
    text = page.document(gather(HistoryReader(state / "history.sqlite"), EVIL))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_run_heard_of_last_is_the_default_and_runs_can_be_listed(
    state: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("--state", str(state)) == 0
    assert (tmp_path / "rq-512.html").exists()
    assert call("--state", str(state), "--list") == 0
    assert "rq-512\tsteps 0 to 1490" in capsys.readouterr().out


def test_mistakes_are_named(state: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("VQWATCH_STATE", raising=False)
    assert call("--state", str(state), "--run", "nobody") == 2
    assert "no run named 'nobody'" in capsys.readouterr().err
    assert call() == 2
    assert "--state" in capsys.readouterr().err
    assert call("--state", str(tmp_path / "nothing")) == 2
    assert "no history at" in capsys.readouterr().err


def test_a_file_that_is_no_history_is_an_error_and_not_a_traceback(tmp_path: Path, capsys: Any) -> None:
    sqlite3.connect(tmp_path / "history.sqlite").execute("CREATE TABLE other (x)").connection.close()
    assert call("--state", str(tmp_path)) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_an_alert_that_fires_twice_has_two_episodes() -> None:
    log = [alert("firing", 10), alert("resolved", 20), alert("pending", 30), alert("firing", 31)]
    assert [(item.start_step, item.end_step) for item in episodes(log)] == [(10, 20), (31, None)]


def test_one_alert_in_many_layers_is_told_in_one_sentence(tmp_path: Path) -> None:
    with History(tmp_path / "history.sqlite") as store:
        store.record("rq-512", 100, NOW, {"loss": {("total",): 1.0}})
        for layer in range(8):
            store.record_alert(alert("firing", 50 + layer, labels={"layer": str(layer)}))
            store.record_alert(alert("resolved", 80 + layer, labels={"layer": str(layer)}))
    told = summary(gather(HistoryReader(tmp_path / "history.sqlite"), "rq-512"))
    assert "VqCodebookCollapse (8 places), critical, fired at step 50 and was resolved at step 87, 4 s later." in told


def test_a_chart_without_anything_finite_is_empty() -> None:
    assert svg.chart("x", [svg.Line("a", [1.0], ["NaN"], "#000")]) == ""
    assert svg.chart("x", [svg.Line("a", [1.0], [0.0], "#000")], log=True) == ""
