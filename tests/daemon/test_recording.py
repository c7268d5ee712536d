"""What is recorded comes back, judges the same, and survives how recordings end."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.messages import Trainer, layers
from tests.servers import wait_for
from tests.watching import Daemon

from vqwatch.wire import Hello, Step
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.recording import Recorder, RecordingError, Renumber, backtest, read
from vqwatch_daemon.recording.files import files
from vqwatch_rules import Engine, RuleSet, load

VOCABULARY = {name: metric.labels for name, metric in CATALOGUE.items()}


def story(run: str = "r", bad: int = 20) -> Iterator[tuple[float, Any]]:
    """A training whose loss is NaN for ten steps."""
    trainer = Trainer(run=run)
    yield 100.0, trainer.hello(layers(2, 8))
    for step in range(1, 61):
        loss = math.nan if bad <= step < bad + 10 else 1.0
        yield 100.0 + step, trainer.step(step, losses={"total": loss})
        yield 100.0 + step, trainer.codes(step, [[step % 8] * 50, [step % 4] * 50])
    yield 200.0, trainer.goodbye(60)


def rules(tmp_path: Path, text: str = "") -> RuleSet:
    path = tmp_path / "rules.yaml"
    path.write_text(text or "extends: default\n")
    return load([path], VOCABULARY)


def record(path: Path, messages: Iterator[tuple[float, Any]], **options: Any) -> None:
    recorder = Recorder(path, **options)
    for now, message in messages:
        recorder.add(message, now)
    recorder.close()


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    record(tmp_path / "run.vqrec", story(bad=100))
    assert list(read(tmp_path / "run.vqrec")) == list(story(bad=100))


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "run.vqrec"
    record(path, story(bad=100))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = list(read(path))
    assert 0 < len(found) < 122
    assert found == list(story(bad=100))[: len(found)]


def test_a_rotated_recording_is_bounded_and_every_file_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.vqrec"
    record(path, story(), max_bytes=2000, max_files=3)
    kept = files(path)
    assert len(kept) == 3
    assert not path.exists()
    for entry in kept:
        renumber = Renumber()
        first, *others = [renumber(message) for _, message in read(entry)]
        assert isinstance(first, Hello)
        assert [other.seq for other in others if isinstance(other, Step)] == list(
            range(2, 2 + sum(isinstance(o, Step) for o in others))
        )


@pytest.mark.parametrize("content", [b"", b"not gzip at all", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"])
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.vqrec"
    path.write_bytes(content)
    if content[:2] == b"\x1f\x8b":
        assert list(read(path)) == []  # cut off right after its beginning
        return
    with pytest.raises(RecordingError, match=r"other\.vqrec"):
        list(read(path))


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.vqrec"):
        list(read(tmp_path / "none.vqrec"))


def test_a_backtest_raises_what_the_daemon_raised(tmp_path: Path) -> None:
    path = tmp_path / "run.vqrec"
    record(path, story())
    ruleset = rules(tmp_path)
    hub = Hub(Book("d"), Engine(ruleset))
    fired: list[tuple[str, int]] = []
    for now, message in story():
        before = {alert.name for alert in hub.alerts() if alert.state == "firing"}
        hub.receive(b"", message, now)
        after = {alert.name for alert in hub.alerts() if alert.state == "firing"}
        fired += [(name, round(now - 100)) for name in after - before]
    events = backtest(read(path), ruleset)
    assert ("VqLossNotFinite", 20) in fired
    by_step = [(event.alert, event.step) for event in events if event.alert == "VqLossNotFinite"]
    assert by_step == [("VqLossNotFinite", 20)]
    assert backtest(read(path), ruleset) == events


def test_comparing_two_rule_files_shows_what_would_differ(tmp_path: Path) -> None:
    path, changed = tmp_path / "run.vqrec", tmp_path / "changed.yaml"
    record(path, story())
    changed.write_text("extends: default\noverride:\n  VqLossNotFinite: off\n")
    asked = subprocess.run(
        [sys.executable, "-m", "vqwatch_daemon.cli", "rules", "test", "--on", str(path), "--compare", str(changed)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    differing = [line for line in asked.stdout.splitlines() if "VqLossNotFinite" in line]
    assert len(differing) == 1
    assert differing[0].split()[1] == "-"


def test_a_recorded_run_is_played_into_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "run.vqrec"
    record(path, story())
    with Daemon(tmp_path / "daemon") as daemon:
        played = subprocess.run(
            [sys.executable, "-m", "vqwatch_daemon.cli", "replay", str(path), "--to", daemon.endpoint, "--speed", "0",
             "--run", "again"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert played.returncode == 0, played.stderr
        assert daemon.value("vqwatch_step", run="again") == 60
        assert daemon.value("vqwatch_codebook_assignments_total", layer="0", run="again") == 3000
        assert daemon.value("vqwatch_nonfinite_total", run="again", source="loss") == 10
        assert daemon.value("vqwatch_messages_lost_total", rank="0", run="again") in (0, None)


def test_an_old_recording_does_not_look_like_a_training_that_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "run.vqrec"
    record(path, story(bad=100))
    command = [sys.executable, "-m", "vqwatch_daemon.cli", "replay", str(path), "--speed", "200"]
    with Daemon(tmp_path / "daemon") as daemon:
        played = subprocess.run(
            [*command, "--to", daemon.endpoint],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert played.returncode == 0, played.stderr
        delay = wait_for(lambda: daemon.value("vqwatch_message_delay_seconds", run="r"), 5.0, "the delay")
    assert 0.0 < delay < 10.0, "recorded in 1970, 100 s late; at 200 times the speed that is half a second"


def test_a_recorder_takes_the_place_of_a_daemon(tmp_path: Path) -> None:
    path, endpoint = tmp_path / "run.vqrec", f"ipc://{tmp_path}/s"
    if len(endpoint) > 100:
        endpoint = "tcp://127.0.0.1:35791"
    story_path = tmp_path / "story.vqrec"
    record(story_path, story(bad=100))
    command = [sys.executable, "-m", "vqwatch_daemon.cli"]
    recorder = subprocess.Popen([*command, "record", "-o", str(path), "--listen", endpoint], stderr=subprocess.PIPE)
    try:
        played = subprocess.run([*command, "replay", str(story_path), "--to", endpoint, "--speed", "0"], check=False)
        assert played.returncode == 0
        wait_for(lambda: path.exists(), 5.0, "the recording")
    finally:
        recorder.terminate()
        assert recorder.wait(10.0) == 0
    assert [message.step for _, message in read(path) if isinstance(message, Step)] == list(range(1, 61))
