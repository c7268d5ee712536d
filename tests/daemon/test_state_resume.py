"""A daemon that is killed goes on as if it had not been, as far as messages must arrive; what it wrote is believed
only when it is whole."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.messages import Trainer, layers

from vqwatch.wire import Ack, Message, Step, Welcome
from vqwatch_daemon import resume
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.clock import Clock
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.keeper import Keeper, StateError
from vqwatch_rules import Engine, load

SIZE = 8
ROUTE = b"peer"


class Nobody:
    """No Alertmanager."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        assert state == {}


class Life:
    """One daemon's life on a state directory, without socket and clock."""

    def __init__(self, directory: Path | None, now: float = 0.0, **options: Any) -> None:
        names = {name: metric.labels for name, metric in CATALOGUE.items()}
        self.hub = Hub(Book("d"), Engine(load([], names)), window=4)
        self.keeper = None if directory is None else Keeper(directory, **options)
        if self.keeper is not None:
            resume.resume(self.keeper, self.hub, Nobody(), Clock(lambda: now, lambda: 0.0))

    def take(self, message: Message, now: float) -> list[Any]:
        return [reply for _, reply in self.hub.receive(ROUTE, message, now)]

    def snapshot(self, now: float) -> None:
        assert self.keeper is not None
        self.keeper.snapshot(resume.state(self.hub, Nobody(), now), now, now, wait=True)

    def die(self) -> None:
        """As SIGKILL: nothing more is written; the system closes the files."""
        assert self.keeper is not None
        self.keeper.close()

    def seen(self, *, all_of_it: bool = False) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        readings = {
            name: {key: "nan" if value != value else value for key, value in series.items()}
            for name, series in self.hub.runs["r"].readings.items()
            if all_of_it or name.startswith(("loss", "nonfinite", "step", "gradient", "emitter", "messages_lost"))
        }
        return readings, sorted((alert.name, alert.state) for alert in self.hub.alerts())


def scalars(trainer: Trainer, step: int, rank: int = 0) -> Step:
    return trainer.step(
        step, losses={"total": 1.0 / (step + rank), "vq": 0.1}, gradient_norm=math.nan if step % 3 else 1.0,
        dropped={"codes:busy": step},
    )  # fmt: skip


def story(steps: int, ranks: int = 2) -> Iterator[tuple[Message, float]]:
    """Return must-arrive messages and tensors of a short training, with the time of each."""
    trainers = [Trainer(rank=rank, session=f"s{rank}", world_size=ranks) for rank in range(ranks)]
    noise = np.random.default_rng(0)
    for trainer in trainers:
        yield trainer.hello(layers(2, SIZE)), 0.0
    for step in range(1, steps):
        for rank, trainer in enumerate(trainers):
            yield scalars(trainer, step, rank), 0.1 * step
            yield trainer.codes(step, noise.integers(0, SIZE, (2, 12))), 0.1 * step
            book = noise.normal(size=(SIZE, 4)).astype(np.float32)
            sizes = noise.uniform(0, 3, SIZE).astype(np.float32)
            yield trainer.codebooks(step, codebook={"0": book, "1": book}, cluster_size={"0": sizes}), 0.1 * step
    sample = noise.normal(size=(1, 4, 3)).astype(np.float32)
    yield trainers[0].reconstruction(steps, sample, sample + 0.1), 0.1 * steps


@pytest.fixture(scope="module")
def undisturbed() -> tuple[dict[str, Any], list[tuple[str, str]]]:
    life = Life(None)
    for message, now in story(30):
        life.take(message, now)
    return life.seen()


@settings(max_examples=15, deadline=None)
@given(kills=st.sets(st.integers(0, 170), max_size=4), snapshots=st.sets(st.integers(0, 170), max_size=3))
def test_killed_anywhere_and_restarted_it_reads_as_if_undisturbed(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: Any, kills: set[int], snapshots: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("state")
    life = Life(directory)
    for index, (message, now) in enumerate(story(30)):
        if index in snapshots:
            life.snapshot(now)
        if index in kills:
            life.die()
            life = Life(directory, now)
        life.take(message, now)
    assert life.seen() == undisturbed
    life.die()


def test_after_a_snapshot_nothing_at_all_is_forgotten(tmp_path: Path) -> None:
    messages = list(story(40))
    half = len(messages) // 2
    undisturbed = Life(None)
    life = Life(tmp_path)
    for message, now in messages[:half]:
        undisturbed.take(message, now)
        life.take(message, now)
    life.snapshot(messages[half][1])
    life.die()
    life = Life(tmp_path, messages[half][1])
    for message, now in messages[half:]:
        undisturbed.take(message, now)
        life.take(message, now)
    assert life.seen(all_of_it=True) == undisturbed.seen(all_of_it=True)
    life.die()


@settings(max_examples=8, deadline=None)
@given(taken=st.integers(0, 200))
def test_what_is_being_written_does_not_change_while_the_daemon_goes_on(taken: int) -> None:
    """A thread writes the snapshot while the loop takes messages: a torn one would be neither before nor after."""
    life = Life(None)
    messages = list(story(40))

    def take(part: list[tuple[Message, float]]) -> None:
        for message, now in part:
            life.take(message, now)
            life.hub.count(message.kind, 0.001)
            life.hub.tick(now)

    take(messages[:taken])
    state = resume.state(life.hub, Nobody(), 1.0)
    before = frozen(state)
    take(messages[taken:])
    life.hub.reject("other")
    life.hub.tick(1e6)
    assert frozen(state) == before


def frozen(tree: Any) -> Any:
    """Return an independent copy of a tree, its arrays as bytes."""
    if isinstance(tree, np.ndarray):
        return (tree.dtype.str, tree.shape, tree.tobytes())
    if isinstance(tree, Mapping):
        return {key: frozen(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [frozen(value) for value in tree]
    return repr(tree)


def test_what_an_unfinished_evaluation_had_is_still_there(tmp_path: Path) -> None:
    from vqwatch.wire import Evaluation

    def part(trainer: Trainer, phase: str, **more: Any) -> Evaluation:
        trainer.seq += 1
        return Evaluation(trainer.origin, trainer.seq, 1, 0, 5, phase, **more)

    trainer = Trainer()
    life = Life(tmp_path)
    life.take(trainer.hello(layers(1, SIZE)), 0.0)
    life.take(part(trainer, "begin"), 0.0)
    life.take(part(trainer, "batch", scalars={"score": 1.0}), 0.0)
    life.snapshot(0.0)
    life.take(part(trainer, "batch", batch=1, scalars={"score": 3.0}), 0.0)
    life.die()
    life = Life(tmp_path, 1.0)
    life.take(part(trainer, "end", batch=2), 1.0)
    assert life.hub.runs["r"].readings["evaluation"]["score", "mean"] == 2.0
    life.die()


def test_tensors_that_came_after_the_snapshot_are_counted_as_lost(tmp_path: Path) -> None:
    trainer = Trainer()
    life = Life(tmp_path)
    life.take(trainer.hello(layers(1, SIZE)), 0.0)
    for step in range(1, 4):
        life.take(trainer.codes(step, [[1]]), 0.0)
    life.die()
    life = Life(tmp_path, 1.0)
    life.take(trainer.codes(4, [[1]]), 1.0)
    life.hub.tick(1.0)
    assert life.hub.runs["r"].readings["messages_lost_total"] == {("0",): 3.0}
    life.die()


def test_a_damaged_snapshot_costs_nothing_and_is_set_aside(tmp_path: Path, undisturbed: Any) -> None:
    life = Life(tmp_path)
    messages = list(story(30))
    for index, (message, now) in enumerate(messages):
        if index in (50, 100):
            life.snapshot(now)
        life.take(message, now)
    life.die()
    newest = max(tmp_path.glob("snapshot-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    newest.write_bytes(newest.read_bytes()[:-100])
    life = Life(tmp_path, messages[-1][1])
    assert life.seen() == undisturbed
    assert len(list(tmp_path.glob("*.damaged"))) == 1
    life.die()


def test_a_damaged_journal_says_how_much_of_it_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    life = Life(tmp_path)
    for message, now in story(10):
        life.take(message, now)
    life.die()
    [path] = [path for path in tmp_path.glob("journal-*.log") if path.stat().st_size]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    life = Life(tmp_path, 2.0)
    assert 0 < life.hub.runs["r"].ranks.furthest < 9
    [said] = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    lost = int(said.split("the last ")[1].split()[0])
    assert len(data) // 2 <= lost < len(data)
    life.die()


def test_when_every_file_is_noise_the_daemon_starts_anew(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for message, now in story(4):
        life.take(message, now)
    life.snapshot(1.0)
    life.die()
    for path in tmp_path.glob("*-*"):
        path.write_bytes(os.urandom(1000))
    life = Life(tmp_path, 2.0)
    assert not life.hub.runs
    assert life.take(Trainer().step(7), 2.0) == [Welcome("s", "d", 0)]
    life.die()


def test_the_directory_stays_bounded_over_many_restarts_and_snapshots(tmp_path: Path) -> None:
    for restart in range(6):
        life = Life(tmp_path, float(restart))
        for index in range(3):
            life.snapshot(restart + index / 10)
        life.die()
    assert len(list(tmp_path.glob("snapshot-*"))) == 2
    assert len(list(tmp_path.glob("journal-*"))) == 2


def test_silence_while_no_daemon_was_there_is_nobodys_silence(tmp_path: Path) -> None:
    trainer = Trainer()
    life = Life(tmp_path)
    life.take(trainer.hello(layers(1, SIZE)), 0.0)
    for step in range(1, 40):
        life.take(trainer.step(step, time=float(step)), float(step))
    life.die()
    life = Life(tmp_path, 1040.0)
    life.hub.tick(1041.0)
    readings = life.hub.runs["r"].readings
    assert readings["rank_silent_seconds"] == {("0",): pytest.approx(1.0)}
    assert readings["stalled_ratio"][()] < 3
    assert life.hub.runs["r"].ranks.state_name(1041.0) == "live"
    life.die()


def test_steps_wait_for_ranks_that_come_back_later_than_others(tmp_path: Path) -> None:
    one, two = (Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2))
    life = Life(tmp_path)
    for trainer in (one, two):
        life.take(trainer.hello(), 0.0)
    life.die()
    life = Life(tmp_path, 5.0)
    for step in range(100):
        life.take(one.step(step, losses={"total": 1.0}), 5.0)
    for now in (6.0, 7.0, 8.0, 9.0):
        life.hub.tick(now)
    for step in range(100):
        life.take(two.step(step, losses={"total": 3.0}), 9.0)
    readings = life.hub.runs["r"].readings
    assert readings["loss"] == readings["loss_smoothed"] == {("total",): 2.0}
    life.die()


def test_a_rank_that_has_come_back_but_not_caught_up_is_waited_for(tmp_path: Path) -> None:
    one, two = (Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2))
    life = Life(tmp_path)
    for trainer in (one, two):
        life.take(trainer.hello(), 0.0)
    life.take(one.step(1, losses={"total": 1.0}), 0.0)
    life.die()
    life = Life(tmp_path, 5.0)
    late, beyond = two.step(1, losses={"total": 3.0}), two.step(2, losses={"total": 3.0})
    life.take(one.step(2, losses={"total": 1.0}), 5.0)
    life.take(beyond, 5.0)  # a gap: it will be sent again, after the one before it
    for now in (5.0, 6.5, 8.0):
        life.hub.tick(now)
    life.take(late, 8.1)
    assert life.hub.runs["r"].readings["loss"] == {("total",): 2.0}
    life.die()


def test_steps_from_before_wait_until_the_last_rank_has_had_time_to_catch_up(tmp_path: Path) -> None:
    one, two = (Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2))
    life = Life(tmp_path)
    for trainer in (one, two):
        life.take(trainer.hello(), 0.0)
    for step in (1, 2):
        life.take(one.step(step, losses={"total": 1.0}), 0.0)
    life.die()
    life = Life(tmp_path, 5.0)
    life.hub.tick(5.0)
    life.take(one.step(3, losses={"total": 1.0}), 5.1)
    life.take(two.step(1, losses={"total": 3.0}), 5.9)
    life.hub.tick(6.0)
    life.take(two.step(2, losses={"total": 3.0}), 6.05)
    assert life.hub.runs["r"].readings["loss"] == {("total",): 2.0}
    assert life.hub.runs["r"].readings["step"] == {(): 2.0}
    life.die()


def test_a_second_daemon_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    life = Life(tmp_path)
    with pytest.raises(StateError, match="another daemon"):
        Keeper(tmp_path)
    life.die()


@pytest.fixture
def no_space(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """Let this process write no file beyond 100 kB, which fails like a full disk."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200 if on else before[0], before[1]))

    yield limit
    limit(False)
    signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_nothing_is_acknowledged_until_all_of_it_is_written(
    tmp_path: Path, no_space: Callable[[bool], None]
) -> None:
    trainer = Trainer()
    life = Life(tmp_path)
    assert life.keeper is not None
    life.keeper.join()
    assert Ack("s", 1) in life.take(trainer.hello(layers(1, SIZE)), 0.0)
    no_space(True)
    for step in range(1, 60):
        life.take(trainer.step(step, losses={"total": 1.0}), 1.0)
    assert life.hub.runs["r"].readings["step"] == {(): 59.0}
    assert not life.keeper.safe
    assert life.hub.tick(2.0) == []
    life.snapshot(2.0)
    assert not life.keeper.safe
    no_space(False)
    assert life.keeper.failures >= 2
    life.snapshot(3.0)
    assert life.hub.tick(4.0) == [(ROUTE, Ack("s", 60))]
    life.die()
    again = Life(tmp_path, 5.0)
    assert again.hub.runs["r"].readings["step"] == {(): 59.0}
    again.die()


def test_a_snapshot_is_due_after_its_interval_or_when_the_journal_is_full(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, snapshot_seconds=30.0, journal_bytes=1000)
    keeper.snapshot({}, 0.0, 100.0, wait=True)
    assert not keeper.due(129.0)
    assert keeper.due(130.0)
    for _ in range(20):
        keeper.note(scalars(Trainer(), 1), 0.0)
    assert keeper.due(105.0)
    keeper.close()


@pytest.mark.alone
def test_taking_a_snapshot_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    life = Life(tmp_path)
    for message, now in story(10):
        life.take(message, now)
    assert life.keeper is not None
    life.keeper.join()
    started = time.perf_counter()
    life.keeper.snapshot(resume.state(life.hub, Nobody(), 1.0), 1.0, 1.0)
    assert time.perf_counter() - started < 0.1
    life.die()
