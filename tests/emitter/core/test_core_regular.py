"""Batches of steps that are all alike are told by a form: the daemon reads what it would have read without one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.emitter.core.hand import Peer, array, until
from tests.messages import Memory

from vqwatch.backlog import Backlog
from vqwatch.batch import Regular
from vqwatch.complaints import Complaints
from vqwatch.entry import CodebooksBuild, CodesBuild
from vqwatch.link import Form, Link
from vqwatch.outbox import Outbox
from vqwatch.schedule import Schedule
from vqwatch.telling import MAKING, Teller
from vqwatch.wire import (
    Frame,
    Hello,
    Message,
    Origin,
    Step,
    Tensor,
    bundle,
    decode_each,
    encode,
    fill_in,
    unbundle,
)

ORIGIN = Origin("r", 0, "s")
CODES = CodesBuild(ORIGIN, ("0",), (0, 1), ("codes", "0"), None)
SIZES = CodebooksBuild(ORIGIN, [("codebooks", "0", "cluster_size")])


class Slot(Memory):
    """Memory with the codes of some steps, and cluster sizes behind them; tells when it is let go of.

    Its numbers, those ``given``, are others from then on.
    """

    def __init__(self, numbers: list[float], parts: int, sizes: bool = False) -> None:
        super().__init__(np.arange(64 * (parts + 1), dtype=np.int16).reshape(parts + 1, 1, 64))
        self.given = numbers
        self._numbers = np.array(numbers)
        self._sizes = sizes
        self.released = 0
        self.arrived = True

    def fetch(self) -> bool:
        return False

    def numbers(self, count: int) -> memoryview:
        return self._numbers.data[:count]

    def tensors(self, part: int) -> dict[Any, Tensor]:
        return {("codes", "0"): Tensor("i16", (1, 64), self.parts[part])}

    def extras(self) -> Iterator[tuple[int, dict[Any, Tensor]]]:
        if self._sizes:
            yield -1, {("codebooks", "0", "cluster_size"): Tensor("f32", (32,), self.parts[-1])}

    def release(self, loans: list[Any]) -> None:
        self.released += 1
        self._numbers[:] = np.nan


@dataclass(eq=False)
class Way:
    """What a batch needs of its routine."""

    losses: list[str]
    floats: list[str]
    normed: bool
    numbers: int
    arrays: Any

    @property
    def outgoing(self) -> Any:
        return self.arrays.outgoing


class Alike:
    """Makes batches that look alike: of steps with these losses on the device, and these that are floats."""

    def __init__(self, losses: list[str], floats: list[str], normed: bool, rates: int) -> None:
        self.floats, self.rates, self.width = floats, rates, len(losses) + normed
        arrays = SimpleNamespace(outgoing=(("codes", CODES),))
        self.routine: Any = Way(losses, floats, normed, self.width, arrays)

    def batch(self, first: int, count: int, parts: list[int], sizes: bool, seed: int) -> Regular:
        """Return a batch of steps from ``first`` on; those at ``parts`` have codes, the last one cluster sizes."""
        values = iter(np.random.default_rng(seed).normal(size=(count, self.width + self.rates + len(self.floats))))
        held: list[Any] = []
        numbers: list[float] = []
        for step, row in enumerate(values, start=first):
            of_step = [float(value) for value in row]
            numbers += of_step[: self.width]
            rates, floats = of_step[self.width :][: self.rates], of_step[self.width + self.rates :]
            held.append(SimpleNamespace(step=step, time_ns=10**18 + step, rates=rates, floats=floats))
        slot: Any = Slot(numbers, len(parts), sizes)
        beside = [("codebooks", SIZES)] if sizes else []
        return Regular(slot, self.routine, held, parts, beside, "plan" if sizes else None, 0.0)


def plan() -> Schedule:
    schedule = Schedule({"codes": 1, "codebooks": 50}, 1.0)
    schedule.overhead = 0.25
    return schedule


def without_form(teller: Teller, batch: Regular, first: int) -> list[Message]:
    """Return what the daemon reads of a batch whose steps are told each in its own way; messages number from 1."""
    apart = batch.apart()
    numbers = apart.resolve()
    frames: list[list[Frame]] = [make(first, first) for make, _ in teller.messages(apart, numbers, teller.news())]
    for _, make, _ in teller.arrays(apart):
        header, tensors = make(1)
        packed = bundle([(header, [(0, len(tensor.data)) for tensor in tensors])])
        assert packed is not None
        frames.append([unbundle([*packed, bytes(1 << 16)])[0][0], *(tensor.data for tensor in tensors)])
    return [message for parts in frames for message in decode_each(parts)]


def by_form(teller: Teller, form: Form, batch: Regular, first: int) -> list[Message]:
    """Return what it reads of the batch as its form tells it."""
    slot: Any = batch.slot
    of_messages = [first, first, *(1 for _ in form.kinds)]
    frame = fill_in(
        form.stencil, [of_messages, *teller.filling(batch, slot.numbers(batch.count))], slot.data, slot.spare
    )
    assert frame is not None
    return [message for parts in unbundle([frame]) for message in decode_each(parts)]


@given(
    st.lists(st.sampled_from(["total", "vq", "recon"]), unique=True, max_size=3), st.booleans(), st.integers(0, 3),
    st.booleans(), st.integers(0, 2), st.integers(1, 16), st.data(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_what_a_form_tells_is_read_as_without_one(
    losses: list[str], normed: bool, split: int, dropped: bool, rates: int, count: int, data: Any, sizes: bool,
    known: bool, longer: bool,
) -> None:  # fmt: skip
    alike = Alike(losses[:split], losses[split:], normed or not losses[:split], rates)
    schedule = plan()
    if not known:
        schedule.overhead = None
    teller = Teller(ORIGIN, schedule, Counter({"codes:shape": 3} if dropped else {}))
    places = st.lists(st.integers(0, count - 1), unique=True, max_size=count).map(sorted)
    some = data.draw(places)
    # The same number of codes, of other steps; but where sizes are told too, the last step has codes in both or none.
    other = some if sizes else sorted(data.draw(st.permutations(range(count)))[: len(some)])
    first, second = (
        alike.batch(5, count, some, sizes, 1),
        alike.batch(1 << (40 if longer else 4), count, other, sizes, 2),
    )
    assert teller.form(first) is None, "one by itself is not worth it"
    form = teller.form(second)
    assert form is not None
    for batch in (first, second):
        schedule.every = {"codes": 4, "codebooks": 1 << 20}
        assert by_form(teller, form, batch, 7) == without_form(teller, batch, 7)
    assert teller.form(first) is form


def test_batches_that_differ_in_more_than_numbers_have_another_form() -> None:
    dropped, schedule = Counter({"codes:shape": 3}), plan()
    teller = Teller(ORIGIN, schedule, dropped)
    alike, more_rates = Alike(["total"], [], True, 1), Alike(["total"], [], True, 2)
    forms = []
    for batch in (
        alike.batch(0, 4, [0, 1], False, 0), alike.batch(0, 5, [0, 1], False, 0), alike.batch(0, 4, [0], False, 0),
        alike.batch(0, 4, [0, 1], True, 0), alike.batch(0, 4, [0, 3], True, 0), more_rates.batch(0, 4, [0], False, 0),
    ):  # fmt: skip
        assert teller.form(batch) is None
        forms.append(teller.form(batch))
    alike.rates = 2
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "there is one more learning rate"
    alike.rates = 1
    schedule.overhead = None
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "what it takes is not known any more"
    schedule.overhead = 0.25
    dropped["codes:dtype"] += 1
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "what was dropped has one more name"
    forms.append(teller.form(alike.batch(0, 4, [0, 1], False, 0)))
    assert len({id(form) for form in forms if form is not None}) == 7


def test_a_form_is_made_in_parts_and_then_is_there() -> None:
    teller = Teller(ORIGIN, plan(), Counter())
    alike = Alike(["total"], [], True, 1)
    assert teller.form(alike.batch(0, 4, [0, 1], True, 0), in_part=True) is None
    batch = alike.batch(4, 4, [0, 1], True, 0)
    found = [teller.form(batch, in_part=True) for _ in range(12)]
    making = found.count(MAKING)
    assert making > 6
    assert found[:making] == [MAKING] * making
    form = found[making]
    assert isinstance(form, Form)
    assert found[making:] == [form] * (12 - making)
    assert by_form(teller, form, batch, 7) == without_form(teller, batch, 7)


def test_what_does_not_fit_into_one_message_has_no_form() -> None:
    teller = Teller(ORIGIN, plan(), Counter())
    many = Alike([f"loss {index}" for index in range(60)], [], False, 0).batch(0, 16, [], False, 0)
    found = [teller.form(many, in_part=True) for _ in range(9)]
    making = found.count(MAKING)
    assert making > 2
    assert found == [None, *[MAKING] * making, *[None] * (8 - making)], "nor is it tried again"


class Line:
    """An outbox with a link that has introduced itself to the peer."""

    def __init__(self, peer: Peer, messages: int = 1000, send_bytes: int = 8 << 20) -> None:
        complaints = Complaints()
        self.dropped, self.peer = complaints.dropped, peer
        self.backlog = Backlog(messages, 1 << 20)
        self.link = Link(
            peer.endpoint, ORIGIN.session, time.monotonic(), self.dropped, backlog=self.backlog, send_bytes=send_bytes
        )
        self.outbox = Outbox(ORIGIN, self.link, plan(), complaints)
        self.link.introduce(lambda seq, first: encode(Hello(ORIGIN, seq, first, 0, 1, ())), time.monotonic())
        self.arrive()
        peer.applied.clear()
        self.alike = Alike(["total", "vq"], ["aux"], True, 1)
        self.filled = 0
        fill = self.link.filled

        def noted(*arguments: Any) -> Any:
            loans = fill(*arguments)
            self.filled += loans is not None
            return loans

        self.link.filled = noted  # type: ignore[method-assign]  # notes whether it was of use, and is it

    def arrive(self) -> None:
        until(lambda: self.backlog.acknowledged, lambda: (self.link.turn(time.monotonic()), self.peer.take(1)))
        self.peer.take(20)

    def send_all(self, in_part: bool) -> None:
        while self.outbox.pending:
            self.outbox.send(time.monotonic(), in_part)

    def send(self, first: int, parts: tuple[int, ...] = (0, 1, 2)) -> Regular:
        batch = self.alike.batch(first, 3, list(parts), False, first)
        self.outbox.add(batch)
        self.outbox.send(time.monotonic())
        slot: Any = batch.slot
        assert (slot.released, len(self.outbox.pending)) == (1, 0)
        return batch


@pytest.fixture
def line(peer: Peer) -> Iterator[Line]:
    made = Line(peer)
    yield made
    made.link.close()


def losses_of(batches: list[Regular]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for batch in batches:
        slot: Any = batch.slot
        found += zip(batch._steps, slot.given[::3], strict=True)
    return found


def arrived(peer: Peer) -> list[tuple[int, float]]:
    return [(message.step, message.losses["total"]) for message in peer.of("step")]


def test_batches_alike_arrive_in_order_whether_filled_in_or_not(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3, 6, 9)]
    line.arrive()
    assert (line.filled, line.dropped) == (3, {})
    assert arrived(peer) == losses_of(batches)
    assert [message.seq for message in peer.of("step")] == list(range(2, 14))
    codes = peer.of("codes")
    assert [(message.step, message.seq) for message in codes] == [(step, step + 1) for step in range(12)]
    assert [array(message.indices)[0, 0] for message in codes] == [0, 64, 128] * 4
    assert line.outbox.last_step == 11


def test_what_is_sent_in_parts_arrives_whole(line: Line, peer: Peer) -> None:
    batches = [line.alike.batch(first, 3, [0, 1, 2], False, first) for first in (0, 3, 6)]
    for batch in batches:
        line.outbox.add(batch)
    parts = []
    while line.outbox.pending:
        waiting = len(line.outbox.pending)
        assert line.outbox.send(time.monotonic(), in_part=True) is not None
        parts.append(waiting - len(line.outbox.pending))
    making = len(parts) - 5
    assert making > 6
    assert parts == [0, 0, 1, *[0] * making, 1, 1], "taken apart, made, sent; a form, and what it is for; filled in"
    line.arrive()
    assert (line.filled, arrived(peer), line.dropped) == (2, losses_of(batches), {})
    assert [message.step for message in peer.of("codes")] == list(range(9))


def test_a_batch_whose_steps_differ_is_sent_in_parts(line: Line, peer: Peer) -> None:
    before, batch = line.send(0), line.alike.batch(3, 10, [*range(10)], True, 0)
    apart = batch.apart()
    for odd in apart.steps[1::2]:
        odd._known = {**odd._known, "other": 0.25}
    line.outbox.add(apart)
    calls = 0
    while line.outbox.pending:
        assert (apart.telling is not None and apart.telling.made) == min(3 * max(calls - 1, 0), 10)
        line.outbox.send(time.monotonic(), in_part=True)
        calls += 1
    slot: Any = batch.slot
    assert (calls, slot.released) == (6, 1), "begun, ten messages in three calls of three and one of one, sent"
    line.arrive()
    assert (arrived(peer), line.dropped) == (losses_of([before, batch]), {})
    assert [len(message.losses) for message in peer.of("step")][3:] == [3, 4] * 5
    assert [(message.step, message.seq) for message in peer.of("codes")] == [(step, step + 1) for step in range(13)]
    (sizes,) = peer.of("codebooks")
    assert sizes.step == 12


def test_arrays_that_cannot_be_told_are_counted_and_the_rest_of_the_batch_arrives(line: Line, peer: Peer) -> None:
    def fails(_entry: Any, _seq: int) -> Message:
        raise RuntimeError("on purpose")

    batch = line.alike.batch(0, 3, [0, 1, 2], True, 0)
    apart = batch.apart()
    apart.steps[-1].outgoing = [("codes", CODES), ("samples", fails), ("codebooks", SIZES)]
    line.outbox.add(apart)
    line.send_all(in_part=True)
    line.arrive()
    assert (arrived(peer), line.dropped) == (losses_of([batch]), {"samples:RuntimeError": 1})
    assert [message.step for message in peer.of("codes")] == [0, 1, 2]
    assert len(peer.of("codebooks")) == 1


def test_what_was_filled_in_and_lost_is_told_again(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3)]
    line.arrive()
    lost = line.send(6)
    until(lambda: peer.socket.poll(100) > 0, lambda: None)
    peer.socket.recv_multipart()
    batches += [lost, line.send(9)]
    line.arrive()
    assert line.filled == 3
    assert arrived(peer) == losses_of(batches)


def test_a_daemon_that_forgot_the_session_is_told_again_what_was_filled_in(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    line.arrive()
    batches = [line.send(6), line.send(9)]
    peer.expected.clear()
    line.arrive()
    assert line.filled == 3
    assert arrived(peer)[-6:] == losses_of(batches)
    assert len(peer.of("hello")) == 1, "it was introduced again"


def test_where_the_backlog_is_full_nothing_is_filled_in_and_the_loss_is_counted(peer: Peer) -> None:
    line = Line(peer, messages=8)
    batches = [line.send(first) for first in (0, 3)]
    line.arrive()
    assert line.filled == 1
    batches += [line.send(first) for first in (6, 9, 12)]
    assert (line.filled, line.dropped["step:backlog"]) == (3, 3)
    line.arrive()
    told = [message.step for message in peer.of("step")]
    assert told == sorted(set(told))
    assert told[-3:] == [12, 13, 14]
    line.link.close()


def test_where_something_waits_to_be_sent_nothing_is_filled_in_before_it(line: Line, peer: Peer) -> None:
    batches = [line.send(first) for first in (0, 3)]
    line.backlog.add(lambda seq, first: encode(Step(ORIGIN, seq, first, 0, 6, {"total": 0.5})))
    line.send(7)
    line.arrive()
    assert line.filled == 1
    assert [step for step, _ in arrived(peer)] == [*(step for step, _ in losses_of(batches)), 6, 7, 8, 9]


def test_without_a_daemon_codes_are_counted_and_steps_are_kept(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    line.link.writable = False
    batch = line.send(6)
    assert (line.filled, line.dropped) == (1, {"codes:busy_peer": 3})
    line.arrive()
    assert arrived(peer)[-3:] == losses_of([batch])


@pytest.mark.parametrize(
    ("owner", "method", "apart"),
    [(Slot, "place", False), (Slot, "tensors", True), (Slot, "tensors", False), (Teller, "steps", True)],
)
@pytest.mark.parametrize("in_part", [False, True])
def test_an_error_while_a_batch_is_told_costs_that_batch_and_no_slot(
    line: Line, peer: Peer, owner: type, method: str, apart: bool, in_part: bool
) -> None:
    def fails(*_arguments: Any) -> Any:
        raise RuntimeError("on purpose")

    before = line.send(0)
    batch = line.alike.batch(3, 3, [0, 1, 2], False, 3)
    slot: Any = batch.slot
    broken: Any = slot if owner is Slot else line.outbox._teller
    setattr(broken, method, fails)
    line.outbox.add(batch.apart() if apart else batch)
    with pytest.raises(RuntimeError, match="on purpose"):
        line.send_all(in_part)
    assert (slot.released, len(line.outbox.pending)) == (1, 0)
    delattr(broken, method)
    after = [line.send(first) for first in (6, 9)]
    line.arrive()
    assert arrived(peer) == losses_of([before, *after])


def test_numbers_that_a_form_is_not_for_are_told_without_it(line: Line, peer: Peer) -> None:
    for first in (0, 3):
        line.send(first)
    more = line.alike.batch(6, 3, [0, 1, 2], False, 6)
    more._rates[1] = [0.5, 0.25]
    line.outbox.add(more)
    line.outbox.send(time.monotonic())
    line.arrive()
    assert line.filled == 1
    assert arrived(peer)[6:] == losses_of([more])
    assert [list(message.learning_rates.values()) for message in peer.of("step")][7] == [0.5, 0.25]
