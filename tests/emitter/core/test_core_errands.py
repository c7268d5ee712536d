"""What calls do for the steps before them, and that those which ask for nothing would have had nothing to do."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch.errands import (
    ACCOUNT_STEPS,
    FREED,
    FREED_BESIDE_SENDING,
    LISTEN_SECONDS,
    MANY_PENDING,
    MOST_UNHEARD_CALLS,
    Errands,
)
from vqwatch.ordinary import Ordinary

NEVER = 1 << 62


class Steps(Ordinary):
    """Ordinary steps of which only the numbers are kept; what is done with them is noted."""

    def __init__(self, most: int, patience: float) -> None:
        self.done: list[str] = []
        self.copied: list[int] = []
        self.freed: list[int] = []
        self.gradient_parts = 0
        self.keeper: Any = SimpleNamespace(held=[], last=-1, most=most, reused=False, since=0.0)
        self._patience_seconds = patience
        self._looked: Any = None
        self._begun: Any = None

    @property
    def full(self) -> bool:
        return False

    def capturing(self) -> bool:
        return False

    def let_go(self, most: int) -> None:
        self.freed.append(most)

    def take_gradients(self) -> float:
        self.done.append("gradients")
        self.gradient_parts -= 1
        return 0.25

    def pace(self) -> None:
        self.done.append("pace")

    def copy(self, in_part: bool = False, late: bool = False) -> None:
        keeper = self.keeper
        self.done.append("copy")
        if not in_part or self._begun:
            self.copied += keeper.held
            keeper.held, keeper.reused, self._looked, self._begun = [], False, None, None
        elif self._looked:
            self._begun = True
        else:
            self._looked = True


class Training:
    """Steps that are kept, one after the other, and an outbox and a link that note what is asked of them."""

    def __init__(self, most: int = 15, patience: float = 0.1) -> None:
        self.step = -1
        self.now = 100.0
        self.steps = Steps(most, patience)
        self.pending: deque[int] = deque()
        self.arrived, self.seconds = True, 0.0
        self.behind = self.asked_for_more = False
        outbox: Any = self
        self.errands = Errands(outbox, outbox, outbox)
        self.errands.listen(self.now)
        self.errands.account(self.now, None)
        self.measured: list[tuple[float, ...]] = []
        self.steps.done.clear()

    def send(self, _now: float, in_part: bool) -> float | None:
        self.steps.done.append("send")
        if not self.arrived:
            return None
        self.pending.popleft()
        if not in_part:
            self.pending.clear()
        return self.seconds

    def turn(self, _now: float) -> None:
        self.steps.done.append("listen")
        self.behind = self.asked_for_more

    def observe(self, *measured: float) -> None:
        self.steps.done.append("account")
        self.measured.append(measured)

    def keep(self, seconds: float, until: int = NEVER, busy: bool = False) -> tuple[bool, list[str]]:
        """Keep a step; return whether the call asked what there is to do, and what was done or would have been."""
        self.step += 1
        self.now += seconds
        keeper, errands, before = self.steps.keeper, self.errands, len(self.steps.copied)
        if not keeper.held:
            keeper.since = self.now
        keeper.held.append(self.step)
        keeper.last = self.step
        errands.steps += 1
        asks = self.step >= errands.calm_step or self.now >= errands.calm_until or keeper.reused
        self.steps.done.clear()
        self.enough = errands.run(self.steps, self.now, busy)
        if len(self.steps.copied) > before:
            self.pending.append(self.step)
        errands.rest(self.steps, self.now, until)
        return asks, [*self.steps.done]


CALLS = st.lists(
    st.tuples(
        st.sampled_from([0.002, 0.01, 0.09, 0.7, 2.5]), st.booleans(), st.sampled_from(["", "", "", "special", "busy"]),
        st.integers(0, 9),
    ),
    min_size=40, max_size=120,
)  # fmt: skip


@given(CALLS, st.sampled_from([1, 4, 15]), st.sampled_from([0.1, 0.3]))
def test_a_call_that_does_not_ask_would_have_found_nothing_to_do(calls: Any, most: int, patience: float) -> None:
    training = Training(most, patience)
    next_special = 3
    for seconds, training.arrived, kind, chance in calls:
        training.asked_for_more = chance < 3
        special = training.step + 1 >= next_special and kind != ""
        if special:
            next_special = training.step + 2 + chance
            training.steps.gradient_parts += kind == "special"
        elif training.step + 1 >= next_special:
            next_special = training.step + 2
        training.steps.keeper.reused = chance == 9
        asks, done = training.keep(seconds, next_special, busy=special and kind == "busy")
        assert asks or special or done == [], done


def test_most_calls_ask_nothing() -> None:
    training = Training()
    asked = [training.keep(0.005)[0] for _ in range(300)]
    assert asked.count(True) < 150
    assert training.steps.copied[:100] == list(range(100))


def test_each_call_does_one_thing() -> None:
    training = Training(most=8)
    done = [training.keep(0.005)[1] for _ in range(200)]
    assert {tuple(found) for found in done} == {(), ("copy",), ("send",), ("account", "pace")}
    counts = Counter(found[0] for found in done if found)
    assert counts["copy"] == 3 * len(range(0, 200, 10)), "eight steps, and two that come while they are copied"
    assert counts["send"] == 19, "the last batch waits"
    assert counts["account"] > 200 // (2 * ACCOUNT_STEPS)


def test_it_tells_whether_a_call_has_done_enough() -> None:
    training = Training(most=8)
    told = [(training.keep(0.005)[1] != [], training.enough) for _ in range(200)]
    assert told == [(True, True) if did else (False, False) for did, _ in told]
    training.keep(0.005, busy=True)
    assert training.enough, "nothing was left, but it was busy"
    at_once = Training(most=1)
    assert at_once.keep(0.005)[1] == ["copy"]
    assert not at_once.enough, "each call has as much to do"


def test_gradients_are_told_apart_from_what_no_cadence_can_save() -> None:
    training = Training(patience=100.0)
    training.steps.gradient_parts = 2
    done = [training.keep(0.001)[1] for _ in range(3)]
    assert (done, training.errands.in_kinds) == ([["gradients"], ["gradients"], []], 0.5)


def test_where_much_waits_one_call_does_all() -> None:
    training = Training(most=4)
    training.pending.extend(range(MANY_PENDING))
    training.steps.gradient_parts = 1
    training.keep(0.001)
    for _ in range(2):
        training.pending.extend(range(MANY_PENDING))
        training.keep(0.001)
    training.pending.extend(range(MANY_PENDING))
    assert training.keep(0.001)[1] == ["copy", "send"]
    assert training.pending == deque([training.step]), "what was copied just now has not arrived"


def test_calls_that_do_little_else_free_what_was_copied() -> None:
    training = Training(most=1)
    training.steps.keeper.most = 2
    freed = []
    for training.seconds in (0.0, 0.01, 0.01):
        training.pending.append(0)
        training.keep(0.001)
        freed.append([*training.steps.freed])
        training.steps.freed.clear()
    assert freed == [[FREED], [], [FREED_BESIDE_SENDING]], "a part made, copied, sent"
    training.pending.clear()
    training.steps.keeper.most = 15
    assert training.keep(LISTEN_SECONDS, busy=True)[1] == []
    assert training.steps.freed == []
    training.steps._patience_seconds = 100.0
    assert training.keep(0.001)[1] == ["listen", "account", "pace"]
    assert training.steps.freed == [FREED]


def test_a_busy_call_leaves_the_rest_to_the_next_once() -> None:
    training = Training(most=2)
    training.keep(0.005)
    assert training.keep(0.005, busy=True)[1] == []
    asks, done = training.keep(0.005, busy=True)
    assert (asks, done) == (True, ["copy"])


def test_it_listens_when_it_is_time_and_at_once_when_it_could_not_for_long() -> None:
    training = Training(most=15, patience=100.0)
    assert training.keep(LISTEN_SECONDS)[1] == ["listen", "account", "pace"]
    training.steps.gradient_parts = 100
    assert training.keep(LISTEN_SECONDS)[1] == ["gradients"]
    found = [training.keep(0.001)[1] for _ in range(MOST_UNHEARD_CALLS)]
    assert found == [["gradients"]] * (MOST_UNHEARD_CALLS - 1) + [["listen", "account", "pace"]]


@pytest.mark.parametrize(("behind", "listens"), [(True, ["listen"]), (False, [])])
def test_it_listens_often_where_messages_are_to_be_sent_again(behind: bool, listens: list[str]) -> None:
    training = Training(patience=100.0)
    training.behind = behind
    training.keep(0.001)
    assert training.keep(0.06) == (behind, listens)


def test_a_pause_is_no_time_between_steps_and_what_was_before_is_told() -> None:
    training = Training(patience=100.0)
    for _ in range(3):
        for _ in range(4):
            training.keep(0.0625)
            training.errands.own_seconds += 0.03125
        training.errands.account(training.now, training.steps)
        training.now += 0.25
        training.errands.skip(training.now)
    assert training.measured == [(0.03125, 0.0, 0.0625, 4)] * 3
    training.errands.own_seconds += 1.0
    training.errands.skip(training.now)
    training.errands.account(training.now, training.steps)
    assert len(training.measured) == 3, "no step since"
    training.keep(0.0625)
    training.errands.account(training.now, training.steps)
    assert training.measured[3] == (0.0, 0.0, 0.0625, 1)
