"""The system's clock is set, and the daemon goes on judging silence, waits and retention by the time that passed."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import Trainer
from tests.servers import wait_for

from vqwatch.wire import Message, encode
from vqwatch_daemon.app import Daemon
from vqwatch_daemon.clock import JUMP_SECONDS, SLOWEST, Clock
from vqwatch_daemon.readings import Series
from vqwatch_daemon.settings import Settings

HOUR = 3600.0


@given(
    beats=st.lists(st.floats(0.001, 100.0), min_size=1, max_size=30),
    jumps=st.lists(st.floats(-1e5, 1e5), min_size=30, max_size=30),
)
def test_time_never_stands_still_and_is_the_systems_unless_that_went_back(
    beats: list[float], jumps: list[float]
) -> None:
    at = {"wall": 1e9, "beat": 0.0}
    clock = Clock(lambda: at["wall"], lambda: at["beat"])
    before = 1e9
    for beat, jump in zip(beats, jumps, strict=False):
        at["beat"] += beat
        at["wall"] += beat + jump
        now = clock()
        assert now >= before + SLOWEST * beat - 1e-6
        assert now == pytest.approx(max(at["wall"], before + SLOWEST * beat))
        ahead = now - before - beat
        assert clock.skipped() == pytest.approx(ahead if ahead > JUMP_SECONDS else 0.0, abs=1e-4)
        before = now


def test_it_goes_on_from_where_an_earlier_daemon_was() -> None:
    beat = iter([0.0, 10.0])
    clock = Clock(lambda: 100.0, lambda: next(beat))
    clock.not_before(HOUR)
    assert clock() == HOUR + 5.0
    assert clock.skipped() == 0.0


class Place:
    """A daemon in a thread, whose system's clock is off by ``off`` seconds, and one peer."""

    def __init__(self, directory: str, **options: object) -> None:
        self.off = 0.0
        endpoint = f"ipc://{directory}/s"
        settings = Settings(listen=[endpoint], http="127.0.0.1:0", **options)  # type: ignore[arg-type]
        self.daemon = Daemon(settings, lambda: time.time() + self.off)
        self._thread = threading.Thread(target=self.daemon.run)
        self._thread.start()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peer = self._context.socket(zmq.DEALER)
        self._peer.connect(endpoint)

    def say(self, *messages: Message) -> None:
        for message in messages:
            self._peer.send_multipart(encode(message))

    def reading(self, name: str) -> Series:
        with self.daemon.locked():
            run = self.daemon.hub.runs.get("r")
            return dict(run.readings.get(name, {})) if run else {}

    def silent(self, rank: str = "0") -> float:
        return self.reading("rank_silent_seconds").get((rank,), -1.0)

    def close(self) -> None:
        self.daemon.stop()
        self._thread.join()
        self._context.destroy(linger=0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="vqw") as short:
        opened = Place(short, state=tmp_path / "state")
        yield opened
        opened.close()


def start(place: Place, ranks: int = 1) -> list[Trainer]:
    trainers = [Trainer(rank=rank, session=f"s{rank}", world_size=ranks) for rank in range(ranks)]
    for trainer in trainers:
        place.say(trainer.hello(), trainer.step(1, time.time(), losses={"total": 1.0}))
    wait_for(lambda: place.reading("loss"), 5.0, "the first step")
    return trainers


def test_a_clock_set_back_hides_no_silence_and_holds_up_no_step(place: Place) -> None:
    first, _ = start(place, ranks=2)
    place.off = -HOUR
    place.say(first.step(2, time.time() - HOUR, losses={"total": 5.0}))
    wait_for(lambda: place.reading("loss") == {("total",): 5.0}, 6.0, "the step that the other rank has not reported")
    wait_for(lambda: place.silent("1") > 1.0, 6.0, "the other rank's silence")


def test_a_clock_set_forward_or_a_machine_that_slept_makes_nobody_silent_and_forgets_no_run(place: Place) -> None:
    [trainer] = start(place)
    place.off = 3 * HOUR  # longer than a silent run is kept
    wait_for(lambda: place.silent() > 2.0, 6.0, "two more seconds")
    assert place.silent() < 10.0
    assert place.reading("sessions_gone") == {(): 0.0}
    place.say(trainer.step(2, time.time() + 3 * HOUR, losses={"total": 2.0}))
    wait_for(lambda: place.reading("loss") == {("total",): 2.0}, 5.0, "the next step")
    wait_for(
        lambda: place.reading("last_message_timestamp_seconds")[("0",)] > time.time() + 3 * HOUR - 30.0, 5.0,
        "times to be the system's again",
    )  # fmt: skip


def test_a_trainer_whose_clock_is_wrong_has_not_stalled(place: Place) -> None:
    [trainer] = start(place)
    for step in range(2, 40):
        place.say(trainer.step(step, time.time() - HOUR + 0.1 * step, losses={"total": 1.0}))
    wait_for(lambda: place.reading("stalled_ratio").get(()) is not None, 5.0, "a usual step time")
    assert place.reading("stalled_ratio")[()] < 20.0
