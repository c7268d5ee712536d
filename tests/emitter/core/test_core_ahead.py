"""In which forward passes hooks are wanted, also where steps do not rise by one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.emitter.core.hand import Loop, Peer, settle

import vqwatch
from vqwatch.ahead import HOOKED_AHEAD, Ahead
from vqwatch.schedule import Schedule

Attach = Callable[..., vqwatch.Emitter]


class Wanted:
    """A collector that notes what it was told of the next pass; the first has energies."""

    def __init__(self) -> None:
        self.wants_energies = self.latents = self.soon = True

    def expect(self, energies: bool, latents: bool, soon: bool, _later: bool) -> None:
        self.wants_energies, self.latents, self.soon = energies, latents, soon


@pytest.mark.parametrize("apart", [1, 2, 7, 10, 64])
def test_energies_and_latents_come_however_far_steps_are_apart(attached: Attach, peer: Peer, apart: int) -> None:
    loop = Loop()
    watch = attached(loop.model, every={"codes": 1, "energies": 20, "codebooks": 20})
    steps = [*range(0, 60 * apart, apart)]
    for step in steps:
        watch.step(step, **loop.step())
    settle(watch, peer)
    due = [step for before, step in zip([-1, *steps], steps, strict=False) if before // 20 != step // 20]
    due = [*due[:1], *[step for step in due[1:] if step > apart]]  # after the first, how far the next is is not known
    energies = [message.step for message in peer.of("step") if message.residual_energy]
    latents = [message.step for message in peer.of("codebooks") if ("0", "latents") in message.tensors]
    assert latents == due
    assert set(energies) >= set(due)
    assert len(energies) <= len(due) + 1, "where one was missed, the next pass makes up for it"


@given(st.integers(1, 40), st.integers(0, 40), st.lists(st.integers(1, 30), min_size=60, max_size=90))
def test_no_energies_are_missed_for_longer_than_a_step(every: int, first: int, apart: list[int]) -> None:
    collector: Any = Wanted()
    plan = Schedule({"energies": every, "codebooks": 0}, 1.0)
    ahead = Ahead(plan, collector)
    step, before, had = first, -1, first
    for far in apart:
        if collector.wants_energies:
            had = step
        else:
            due = plan.next_after("energies", had)
            assert step < due or before < due, f"due at {due}, and not at {before} or {step}"
        ahead.look(step, before, busy=False)
        before, step = step, step + far


def test_after_going_back_to_a_checkpoint_energies_come_as_before() -> None:
    collector: Any = Wanted()
    ahead = Ahead(Schedule({"energies": 20}, 1.0), collector)
    steps = [*range(65), *range(10, 65)]
    had = []
    for before, step in zip([-1, *steps], steps, strict=False):
        if collector.wants_energies:
            had.append(step)
        ahead.look(step, before, busy=False)
    assert had == [0, 20, 40, 60, 20, 40, 60]


@pytest.mark.parametrize("apart", [1, 5])
def test_it_is_to_be_asked_again_when_hooks_may_be_put_on_and_at_each_step_from_then_on(apart: int) -> None:
    collector: Any = Wanted()
    plan = Schedule({"energies": 20 * apart, "reconstruction": 0}, 1.0)
    plan.due(0)
    ahead = Ahead(plan, collector)
    asked, soon = [], []
    for call in range(25):
        step = call * apart
        if step + 1 >= ahead.look_at:
            asked.append(call)
            ahead.look(step, step - apart, busy=call in (0, 1))
            soon += [call] if collector.soon else []
    assert asked == [0, 1, 2, 20 - HOOKED_AHEAD, 18, 19, 20]
    assert soon == [17, 18, 19]


def test_it_is_to_be_asked_now_and_then_as_a_cadence_may_get_shorter_meanwhile() -> None:
    collector: Any = Wanted()
    plan = Schedule({"energies": 640, "reconstruction": 50}, 1.0)
    plan.due(0)
    ahead = Ahead(plan, collector)
    ahead.look(0, -1, busy=False)
    assert ahead.look_at == plan.next_special == 50


def test_where_nothing_wants_hooks_it_is_not_asked_for_them() -> None:
    collector: Any = SimpleNamespace(wants_energies=False, expect=lambda *_: None)
    plan = Schedule({"codes": 1}, 1.0)
    plan.due(0)
    ahead = Ahead(plan, collector)
    ahead.look(0, -1, busy=False)
    assert ahead.look_at > 1 << 60
