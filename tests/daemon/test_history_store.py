"""The store through its front door: offered, flushed, read, reopened, damaged, thinned."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqwatch_daemon.history import History, HistoryReader, Limits

NOW = 1_790_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "state" / "history.db"


@pytest.fixture
def store(path: Path) -> Iterator[History]:
    """A store that flushes only when asked."""
    with History(path, limits=Limits(flush_seconds=3600)) as history:
        yield history


def fill(store: History, seconds: int, run: str = "demo", start: float = NOW) -> None:
    """Offer one sample a second."""
    for second in range(seconds):
        readings = {"loss": {("total",): 10.0 - second / 100}, "codebook_perplexity": {("0",): 100.0, ("1",): second}}
        assert store.record(run, second * 10, start + second, readings)  # type: ignore[arg-type]


def test_offered_samples_are_read_back(store: History) -> None:
    fill(store, 20)
    assert store.flush()
    answer = store.series("demo", ["codebook_perplexity", "unknown"])
    assert list(answer) == ["codebook_perplexity"]
    curve = answer["codebook_perplexity"]
    assert curve["labels"] == ["layer"]
    assert curve["series"] == [["0"], ["1"]]
    assert curve["step"] == [second * 10 for second in range(20)]
    assert curve["value"][1] == [float(second) for second in range(20)]


def test_readings_between_two_samples_are_merged_into_the_next(store: History) -> None:
    store.record("demo", 0, NOW, {"loss": {("total",): 1.0}})
    for step in range(1, 10):
        store.record("demo", step, NOW + step / 10, {"loss": {("total",): float(step)}})
    store.record("demo", 5, NOW + 0.95, {"reconstruction_mse": {(): 0.25}})
    store.record("demo", 10, NOW + 1.0, {"loss": {("total",): 10.0}})
    store.flush()
    assert store.series("demo", ["loss"])["loss"]["value"] == [[1.0, 10.0]]
    assert store.series("demo", ["reconstruction_mse"])["reconstruction_mse"]["value"] == [[0.25]]


def test_the_last_moment_of_a_run_is_not_lost(store: History) -> None:
    store.record("demo", 0, NOW, {"loss": {("total",): 1.0}})
    store.record("demo", 1, NOW + 0.5, {"loss": {("total",): 2.0}})
    store.flush()
    assert store.series("demo", ["loss"])["loss"]["value"] == [[1.0, 2.0]]


def test_a_cut_by_step_and_by_time(store: History) -> None:
    fill(store, 50)
    store.flush()
    by_step = store.series("demo", ["loss"], start=100, end=150)["loss"]
    assert by_step["step"] == [100, 110, 120, 130, 140, 150]
    by_time = store.series("demo", ["loss"], start=NOW + 47, by="time")["loss"]
    assert by_time["time"] == [NOW + 47, NOW + 48, NOW + 49]


def test_long_curves_come_thinned_with_their_extremes(store: History) -> None:
    fill(store, 900)
    store.flush()
    curve = store.series("demo", ["loss"], points=50)["loss"]
    assert len(curve["step"]) <= 50
    assert curve["high"][0][0] == pytest.approx(10.0)
    assert curve["low"][0][-1] == pytest.approx(10.0 - 8.99)


def test_a_store_carries_on_after_a_restart(path: Path) -> None:
    with History(path) as first:
        fill(first, 400)
    with History(path) as second:
        fill(second, 30, start=NOW + 400)
        second.flush()
        assert len(second.series("demo", ["loss"], points=1000)["loss"]["step"]) == 430


def test_a_store_is_read_with_no_daemon_running(path: Path) -> None:
    with History(path) as store:
        fill(store, 5)
        store.record_usage("demo", 40, NOW + 4, {"0": np.array([3, 0, 1])})
    reader = HistoryReader(path)
    assert reader.runs() == [{"name": "demo", "started_at": NOW, "last_seen": NOW + 4, "first_step": 0, "step": 40}]
    assert reader.metrics("demo") == ["codebook_perplexity", "loss"]
    assert reader.usage_at("demo") == {"step": 40, "time": NOW + 4, "layers": {"0": [3, 0, 1]}}


def test_a_read_only_folder_can_be_read(path: Path) -> None:
    with History(path) as store:
        fill(store, 5)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert len(HistoryReader(path).runs()) == 1
    finally:
        path.parent.chmod(0o755)


def test_no_file_is_file_not_found(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HistoryReader(path).runs()


def test_usage_can_be_scrubbed_back(store: History) -> None:
    for second in range(0, 60, 5):
        store.record_usage("demo", second * 10, NOW + second, {"0": np.arange(4) + second})
    store.flush()
    assert [step for step, _ in store.usage_steps("demo")] == [0, 100, 200, 300, 400, 500]
    usage = store.usage_at("demo", 250)
    assert usage is not None
    assert usage["step"] == 200
    assert usage["layers"]["0"] == [20, 21, 22, 23]
    assert store.usage_at("demo", -1) is None


def test_the_alert_log_is_newest_first(store: History) -> None:
    for second, to in enumerate(("pending", "firing", "resolved")):
        store.record_alert({"run": "demo", "time": NOW + second, "name": "NanLoss", "to": to})
    store.record_alert({"run": "other", "time": NOW, "name": "NanLoss", "to": "firing"})
    store.flush()
    assert [entry["to"] for entry in store.alert_log("demo")] == ["resolved", "firing", "pending"]
    assert len(store.alert_log()) == 4
    assert len(store.alert_log(limit=2)) == 2


def test_a_full_queue_drops_counts_and_does_not_wait(path: Path) -> None:
    limits = Limits(queue_length=1, resolution=0.0, flush_seconds=3600)
    with History(path, limits=limits) as store:
        store.record("demo", 0, NOW, {"loss": {("total",): 1.0}})
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # the writer has to wait for this one
        assert not store.flush(timeout=0.05)
        taken = [store.record("demo", step, NOW + step, {"loss": {("total",): 1.0}}) for step in range(1, 10)]
        assert False in taken
        assert store.dropped == taken.count(False)
        other.execute("ROLLBACK")


@pytest.mark.parametrize("damage", ["garbage", "truncated", "foreign"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begins(path: Path, damage: str) -> None:
    with History(path) as store:
        fill(store, 400)
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"not a database at all" * 100)
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.unlink()
        sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.close()
    with History(path) as store:
        fill(store, 3)
        store.flush()
        assert len(store.series("demo", ["loss"])["loss"]["step"]) == 3
    assert path.with_name("history.db.damaged-1").exists()


def test_a_folder_that_cannot_hold_it_is_an_error_and_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")  # what a read-only file system makes of it

    monkeypatch.setattr(sqlite3, "connect", refused)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        History(path)
    assert "damaged" not in caplog.text


def test_damage_found_while_writing_is_set_aside_too(path: Path) -> None:
    with History(path, limits=Limits(flush_seconds=3600, block_seconds=10)) as store:
        fill(store, 100)
        store.flush()
        store._writer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
        store._writer._connection.execute("PRAGMA cache_size = 0")
        fill(store, 30, run="after", start=NOW + 200)
        store.flush()
        fill(store, 30, run="after", start=NOW + 300)
        store.flush()
        assert len(store.series("after", ["loss"])["loss"]["step"]) >= 30
        assert path.with_name("history.db.damaged-1").exists()


class Clock:
    """A clock that the test turns."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_old_samples_become_buckets_and_then_go(path: Path) -> None:
    clock = Clock(NOW)
    limits = Limits(flush_seconds=3600, fine_hours=1, medium_hours=4, max_age_days=1)
    with History(path, limits=limits, clock=clock) as store:

        def live(hours: int) -> None:
            for _ in range(hours * 60):
                for second in range(60):
                    now = clock.now + second
                    store.record("demo", int(now - NOW), now, {"loss": {("total",): now}})
                clock.now += 60
                store.flush()

        live(3)
        counts = levels(path)
        assert counts[0] <= 12 * 2 + 1
        assert counts[1] >= 1
        kept = HistoryReader(path).curves("demo", ["loss"])["loss"]
        assert 3600 <= len(kept.steps) < 2.5 * 3600
        assert kept.times[0] < NOW + 60
        live(5)
        assert levels(path)[2] >= 1
        clock.now += 86400 * 2
        store.flush()
        assert store.runs() == []


def test_usage_snapshots_thin_out_with_age(path: Path) -> None:
    clock = Clock(NOW)
    with History(path, limits=Limits(flush_seconds=3600), clock=clock) as store:
        for _ in range(30 * 60):
            clock.now += 60
            store.record("demo", int(clock.now - NOW), clock.now, {"loss": {("total",): 1.0}})
            store.record_usage("demo", int(clock.now - NOW), clock.now, {"0": np.arange(4)})
            store.flush()
        ages = [clock.now - time for _, time in store.usage_steps("demo")]
        assert len([age for age in ages if age > 24.5 * 3600]) <= 5.5 * 6 + 1
        assert len([age for age in ages if 2 * 3600 < age < 23 * 3600]) == pytest.approx(21 * 60, abs=2)


def levels(path: Path) -> dict[int, int]:
    """Return how many blocks there are of each level."""
    with sqlite3.connect(path) as connection:
        return dict(connection.execute("SELECT level, count(*) FROM block GROUP BY level").fetchall())


def test_the_file_stays_below_its_limit(path: Path) -> None:
    clock = Clock(NOW)
    limits = Limits(flush_seconds=3600, block_seconds=60, max_bytes=400_000)
    noise = np.random.default_rng(0).normal(size=(3000, 64))
    with History(path, limits=limits, clock=clock) as store:
        for second in range(3000):
            readings = {"gradient_norm_by_module": {(str(i),): v for i, v in enumerate(noise[second].tolist())}}
            store.record("demo", second, clock.now, readings)  # type: ignore[arg-type]
            clock.now += 1
            if second % 100 == 99:
                store.flush()
        clock.now += 100
        store.flush()
        assert store.series("demo", ["gradient_norm_by_module"])["gradient_norm_by_module"]["step"][-1] == 2999
    assert path.stat().st_size < 600_000


def test_the_replay_of_an_old_recording_is_kept(path: Path) -> None:
    with History(path, clock=Clock(NOW + 365 * 86400)) as store:
        fill(store, 5)
        store.flush()
        assert len(store.runs()) == 1


def test_hostile_names_are_only_names(store: History) -> None:
    name = "'; DROP TABLE run; --"
    fill(store, 3, run=name)
    store.record_alert({"run": name, "time": NOW, "name": "<script>", "to": "firing"})
    store.flush()
    assert store.runs()[0]["name"] == name
    assert store.alert_log(name)[0]["name"] == "<script>"


def test_more_series_than_allowed_are_cut(path: Path) -> None:
    with History(path, limits=Limits(max_series=4)) as store:
        readings: dict[str, Any] = {"emitter_overhead_ratio": {(str(rank),): 0.1 for rank in range(512)}}
        store.record("demo", 1, NOW, readings)
        store.flush()
        assert len(store.series("demo", ["emitter_overhead_ratio"])["emitter_overhead_ratio"]["series"]) == 4
