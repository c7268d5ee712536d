"""A sink that hangs, dies, refuses or is slow: what the outlet does, and that nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemon.sinks.conftest import Deliver, fired, values, wait_until

from vqwatch_daemon.sinks import outlet as outlets
from vqwatch_daemon.sinks.fan import Sinks
from vqwatch_daemon.sinks.outlet import Outlet
from vqwatch_daemon.sinks.thinning import Thinner

pytestmark = pytest.mark.alone

Open = Callable[..., Outlet]
QUICK = {"patience": 1.0, "back_off": (0.05,)}


def steps(path: Path) -> list[int]:
    """Return the steps in a file of JSON lines."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, even where nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_sink_is_begun_again_and_nothing_is_lost(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = open_outlet("jsonl", str(path), **QUICK)
    sink.put(values(0))
    wait_until(lambda: sink.counts().written == 1)
    assert sink.pid is not None
    os.kill(sink.pid, signal.SIGKILL)
    for step in range(1, 200):
        sink.put(fired(step))
    wait_until(lambda: sink.counts().queued == 0)
    assert sorted(set(steps(path))) == list(range(200))
    assert sink.counts().failures == 1


def test_a_frozen_sink_is_given_up_in_time_and_nothing_is_lost(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = open_outlet("jsonl", str(path), **QUICK)
    sink.put(values(0))
    wait_until(lambda: sink.counts().written == 1)
    assert sink.pid is not None
    frozen = sink.pid
    os.kill(frozen, signal.SIGSTOP)
    sink.put(fired(1))
    wait_until(lambda: sink.counts().written == 2)
    assert steps(path) == [0, 1]
    assert is_gone(frozen)


def test_a_frozen_sink_does_not_hold_up_the_exit(open_outlet: Open, tmp_path: Path) -> None:
    sink = open_outlet("jsonl", str(tmp_path / "out.jsonl"))
    sink.put(values(0))
    wait_until(lambda: sink.counts().written == 1)
    assert sink.pid is not None
    os.kill(sink.pid, signal.SIGSTOP)
    sink.put(fired(1))
    started = time.monotonic()
    sink.finish(started + 0.5)
    sink.join(started + 1.0)
    assert time.monotonic() - started < 3.0
    assert sink.counts().closed == 1


def test_a_full_queue_drops_its_oldest_records_counted(open_outlet: Open, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a directory has to be")
    sink = open_outlet("jsonl", str(tmp_path / "blocked" / "out.jsonl"), most_values=80, back_off=(60.0,))
    for step in range(15):
        sink.put(fired(step))  # weighs 8
    counts = sink.counts()
    assert (counts.queued, counts.full, counts.written) == (10, 5, 0)


def test_a_record_that_a_sink_refuses_again_and_again_is_left_out(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = open_outlet("jsonl", str(path), **QUICK)
    wrong = values(1)
    wrong.readings["not_in_the_catalogue"] = {(): 1.0}
    for record in (values(0), wrong, values(2)):
        sink.put(record)
    wait_until(lambda: sink.counts().queued == 0)
    assert (sink.counts().refused, sink.counts().failures) == (1, outlets.MOST_TRIES)
    assert steps(path) == [0, 2]


def test_a_sink_that_cannot_begin_keeps_its_records_until_it_can(open_outlet: Open, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory has to be")
    sink = open_outlet("jsonl", str(blocked / "out.jsonl"), **QUICK)
    sink.put(values(7))
    wait_until(lambda: sink.counts().failures > outlets.MOST_TRIES)
    blocked.unlink()
    wait_until(lambda: sink.counts().written == 1)
    assert steps(blocked / "out.jsonl") == [7]


def test_wandbs_frozen_service_is_killed_and_the_records_written_by_another(
    open_outlet: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sink = open_outlet("wandb", "project", patience=3.0, back_off=(0.05,))
    sink.put(values(0))
    wait_until(lambda: sink.counts().written == 1)
    assert sink.pid is not None
    services = outlets._descendants(sink.pid)
    assert services, "wandb runs a service of its own"
    for pid in services:
        os.kill(pid, signal.SIGSTOP)
    seconds = []
    for step in range(1, 3000):  # more than wandb's own socket buffers hold
        started = time.perf_counter()
        sink.put(values(step))
        seconds.append(time.perf_counter() - started)
    wait_until(lambda: sink.counts().failures >= 1)
    assert sorted(seconds)[len(seconds) * 99 // 100] < 0.02
    assert max(seconds) < 2.0  # a machine may be busy, but nobody waits for the 3 s of patience
    wait_until(lambda: all(map(is_gone, services)))
    started = time.monotonic()
    sink.finish(started + 0.5)
    sink.join(started + 1.5)
    assert time.monotonic() - started < 4.0


def test_one_frozen_sink_leaves_the_others_alone(open_outlet: Open, tmp_path: Path) -> None:
    sinks = Sinks({name: open_outlet("jsonl", str(tmp_path / name)) for name in ("one", "other")}, interval=0.0)
    sinks.readings("demo", 0, 0.0, values(0).readings)
    wait_until(lambda: sinks.own_readings()["sink_written_total"] == {("one",): 1.0, ("other",): 1.0})
    frozen = sinks.outlets["one"].pid
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    for step in range(1, 51):
        sinks.readings("demo", step, float(step), values(step).readings)
    wait_until(lambda: sinks.own_readings()["sink_written_total"]["other",] == 51)
    assert sinks.own_readings()["sink_queue_records"]["one",] == 50


def test_what_the_interval_held_back_is_written_at_the_end(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sinks = Sinks({"jsonl": open_outlet("jsonl", str(path))}, interval=10.0)
    for step in range(5):
        sinks.readings("demo", step, float(step), {"loss": {("total",): step + 0.5}})
    sinks.close(20.0)
    assert steps(path) == [0, 4]


def test_a_value_that_is_not_finite_is_not_held_back() -> None:
    thinner = Thinner(10.0)
    thinner.offer("demo", 0, 0.0, {"loss": {("total",): 1.0}})
    assert thinner.offer("demo", 1, 0.1, {"loss": {("total",): float("inf")}}) == [
        (1, {"loss": {("total",): float("inf")}})
    ]


def test_what_stays_the_same_for_a_step_is_not_written_again() -> None:
    thinner = Thinner(1.0)
    readings = {"sessions_gone": {(): 0.0}}
    assert thinner.offer("demo", 5, 0.0, readings)
    assert thinner.offer("demo", 5, 100.0, {"sessions_gone": {(): 0.0}}) == []


def test_delivery_counts_what_it_wrote(deliver: Deliver, tmp_path: Path) -> None:
    counts = deliver("jsonl", str(tmp_path / "out.jsonl"), [values(step) for step in range(300)])
    assert (counts.written, counts.full, counts.refused, counts.closed, counts.failures) == (300, 0, 0, 0, 0)


def presence(state: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what a tick of the clock says of a run."""
    return {"run_info": {(state, "1", "2"): 1.0}, "stalled_ratio": {(): 1.0}}


def test_a_run_ends_once_everybody_said_goodbye_and_begins_again(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sinks = Sinks({"jsonl": open_outlet("jsonl", str(path))}, interval=100.0)
    sinks.readings("demo", 1, 0.0, presence("live"))
    for second in range(1, 20):
        sinks.readings("demo", 2, float(second), {"loss": {("total",): 1.0 * second}, **presence("finished")})
    sinks.readings("demo", 3, 20.0, presence("live"))
    sinks.readings("demo", 3, 20.5, {"loss": {("total",): float("nan")}})
    sinks.close(20.0)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds.count("end") == 1
    assert kinds[-1] == "readings"


def test_a_run_that_is_only_evaluated_does_not_end_between_two_checkpoints(open_outlet: Open, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sinks = Sinks({"jsonl": open_outlet("jsonl", str(path))}, interval=1.0)
    for second in range(20):
        sinks.readings("demo", 0, float(second), presence("finished"))
    sinks.close(20.0)
    assert all(json.loads(line)["kind"] == "readings" for line in path.read_text().splitlines())
