"""Several messages that arrive as one are taken as if each had come by itself, and judged one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from tests.daemon.test_receiver_limits import Inbox
from tests.messages import Trainer, bundled, codes_of_steps, encoded, layers

from vqwatch.wire import MAX_BUNDLED, Message, Step, Stop, encode, encode_step
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.limits import BURST_SECONDS
from vqwatch_daemon.receiver import MESSAGES_AT_ONCE
from vqwatch_rules import Engine, load

CODES = [[0, 1, 1], [2, 3, 3]]


class Here(Inbox):
    """A receiver whose messages go on to a hub."""

    def __init__(self, **options: Any) -> None:
        self.hub = Hub(Book("d"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
        super().__init__("tcp://127.0.0.1:*", **options)

    def _take(self, route: bytes, message: Message) -> list[Any]:
        super()._take(route, message)
        return self.hub.receive(route, message, 0.0)


@pytest.fixture
def here() -> Iterator[Here]:
    opened = Here()
    yield opened
    opened.close()


@pytest.mark.parametrize("apart", [0, 3, 8])
def test_each_message_of_a_bundle_is_applied_once_and_in_order(here: Here, apart: int) -> None:
    trainer, peer = Trainer(), here.peer()
    peer.send_multipart(encode(trainer.hello(layers(2))))
    steps = [trainer.step(step, losses={"total": 1.0}, gradient_norm=math.nan) for step in (1, 2, 3)]
    codes = [trainer.codes(step, CODES) for step in (1, 2, 3)]
    whole = bundled([*steps, *codes], apart)
    peer.send_multipart(whole)
    peer.send_multipart(whole)  # as after a reconnect: the steps are known already
    assert here.work(lambda: len(here.taken) == 13)
    assert [message.kind for message in here.taken[1:7]] == ["step"] * 3 + ["codes"] * 3
    run = here.hub.runs["r"]
    assert run.readings["nonfinite_total"]["gradient",] == 3.0
    assert run.readings["step"] == {(): 3.0}
    usage = {layer: counts.tolist() for layer, counts in run.usage().items()}
    assert usage == {"0": [3, 6, 0, 0, 0, 0, 0, 0], "1": [0, 0, 3, 6, 0, 0, 0, 0]}
    assert not here.rejected


def test_steps_told_as_one_are_applied_once_each_and_counted_as_steps(here: Here) -> None:
    trainer, peer = Trainer(), here.peer()
    peer.send_multipart(encode(trainer.hello(layers(2))))
    columns = {"losses": {"total": [1.0, 2.0, 3.0]}, "gradient_norm": [math.nan] * 3, "overhead": 0.5}
    steps = encode_step(trainer.origin, 2, 1, [10, 20, 30], [1, 2, 3], columns)
    peer.send_multipart(steps)
    peer.send_multipart(bundled([steps, trainer.codes(3, CODES)]))  # as after a reconnect
    again = encode_step(trainer.origin, 4, 1, [30, 40], [3, 4], {"losses": {"total": [3.0, 4.0]}})
    peer.send_multipart(again)  # of which the first is known already
    wrong = encode_step(trainer.origin, 6, 1, [50], [5, 6], {})
    peer.send_multipart(wrong)
    assert here.work(lambda: bool(here.rejected))
    assert [message.seq for message in here.taken if isinstance(message, Step)] == [2, 3, 4, 2, 3, 4, 4, 5]
    run = here.hub.runs["r"]
    assert run.readings["nonfinite_total"]["gradient",] == 3.0
    assert (run.readings["step"], run.readings["loss"]["total",]) == ({(): 4.0}, 4.0)
    assert here.rejected == ["field"]
    assert here.counted["step"] == 8


def test_codes_of_steps_told_as_one_are_counted_once_each(here: Here) -> None:
    trainer, peer = Trainer(), here.peer()
    peer.send_multipart(encode(trainer.hello(layers(2))))
    told = encoded(codes_of_steps([trainer.codes(step, CODES) for step in (1, 2, 3)]))
    peer.send_multipart(bundled([told, trainer.codes(4, CODES)], apart=5))
    peer.send_multipart(told)
    assert here.work(lambda: here.counted["codes"] == 7)
    usage = {layer: counts.tolist() for layer, counts in here.hub.runs["r"].usage().items()}
    assert usage == {"0": [4, 8, 0, 0, 0, 0, 0, 0], "1": [0, 0, 4, 8, 0, 0, 0, 0]}
    assert not here.rejected


def test_what_is_wrong_in_a_bundle_does_not_take_the_rest_with_it(here: Here) -> None:
    trainer, peer = Trainer(), here.peer()
    header, buffer = encode(trainer.codes(1, CODES))
    trainer.sent["codes"] = 0
    wrong: list[Any] = [[msgpack.packb({"v": 1})], [header, bytes(buffer) + b"\x00"], Stop("s", "no")]
    right = [trainer.hello(layers(2)), trainer.step(1, losses={"total": 1.0}), trainer.codes(1, CODES)]
    peer.send_multipart(bundled([wrong[0], right[0], wrong[1], right[1], wrong[2], right[2]]))
    assert here.work(lambda: len(here.taken) == 3)
    assert here.taken == right
    assert here.rejected == ["field", "buffer_size", "direction"]
    assert here.hub.runs["r"].readings["loss"] == {("total",): 1.0}


def test_a_broken_index_is_one_offence(here: Here) -> None:
    trainer, peer = Trainer(), here.peer()
    index, data = bundled([trainer.hello(layers(2)), trainer.codes(1, CODES)])
    peer.send_multipart([index, memoryview(data)[1:]])
    peer.send_multipart([msgpack.packb([[b"\x80", []]] * (MAX_BUNDLED + 1))])
    peer.send_multipart(encode(trainer.step(1)))
    assert here.work(lambda: len(here.taken) == 1)
    assert here.rejected == ["buffer_size", "limit"]


def test_a_bundle_is_weighed_once_as_a_whole(here: Here) -> None:
    trainer = Trainer()
    whole = bundled([trainer.hello(layers(2)), *(trainer.step(step) for step in range(1, 20))])
    size = sum(memoryview(frame).nbytes for frame in whole)
    held = Here(session_bytes_per_second=(size + 100) / BURST_SECONDS)
    peer = held.peer()
    for _ in range(20):
        peer.send_multipart(whole)
    assert held.work(lambda: len(held.rejected) == 19)
    assert set(held.rejected) == {"session_rate"}
    assert len(held.taken) == 20, "the first is let through whole, the others not at all"
    held.close()


def test_time_driven_work_waits_for_no_more_messages_because_they_come_in_bundles(here: Here) -> None:
    trainer, peer = Trainer(), here.peer()
    for _ in range(10):
        peer.send_multipart(bundled([trainer.step(trainer.seq) for _ in range(MAX_BUNDLED)]))
    assert here.receiver.wait(3.0)
    time.sleep(0.2)
    assert here.receiver.drain() == len(here.taken)
    assert MESSAGES_AT_ONCE <= len(here.taken) < MESSAGES_AT_ONCE + MAX_BUNDLED
