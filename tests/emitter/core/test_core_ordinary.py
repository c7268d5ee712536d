"""The ordinary way through an emitter, on the host: there every step that it kept goes on the general way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.emitter.core.hand import Loop, Peer, settle

import vqwatch
from vqwatch.ordinary import Ordinary

Attach = Callable[..., vqwatch.Emitter]


class HostStream:
    """All that keeping a step asks of a device: which stream is current, and whether there is room."""

    cuda_stream = 0
    few_left = False

    def current_stream(self) -> HostStream:
        return self

    def raw_current(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def no_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch without CUDA raises when it is asked."""
    monkeypatch.setattr("vqwatch.ordinary._is_capturing", lambda: False)


class Noting(Ordinary):
    """Notes which steps it kept."""

    def __init__(self, watch: vqwatch.Emitter) -> None:
        dropped = watch.complaints.dropped
        stream: Any = HostStream()
        super().__init__(watch._plan, stream, watch._collector, watch._outbox, [], dropped, watch._take_held)
        self.kept: list[int] = []

    def keep(self, step: int, losses: Any, codes: Any, mask: Any, grad_norm: Any, now: float) -> bool:
        kept = super().keep(step, losses, codes, mask, grad_norm, now)
        if kept:
            self.kept.append(step)
        return kept


def test_after_going_back_to_a_checkpoint_steps_are_kept_again(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": torch.tensor(0.0)})
    watch._ordinary = ordinary = Noting(watch)
    for step in (100, 101, 5, 6, 7):
        watch.step(step, losses={"total": torch.tensor(float(step))})
    settle(watch, peer)
    assert ordinary.kept == [100, 101, 6, 7]
    assert [(message.step, message.losses["total"]) for message in peer.of("step")] == [
        (0, 0.0), (100, 100.0), (101, 101.0), (5, 5.0), (6, 6.0), (7, 7.0),
    ]  # fmt: skip


def test_steps_kept_after_going_back_wait_no_longer_than_others(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": torch.tensor(0.0)})
    watch._ordinary = ordinary = Noting(watch)
    kept = []
    for step in (100, 5, 6, 7, 8, 9, 10, 11):
        ordinary.keeper.most, ordinary._patience_seconds = 3, 60.0
        watch.step(step, losses={"total": torch.tensor(float(step))})
        kept.append(len(ordinary.keeper.held))
    assert kept == [1, 0, 1, 2, 0, 1, 2, 0]
    settle(watch, peer)


def test_a_step_that_no_message_can_hold_is_refused_and_no_step_is_lost(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": torch.tensor(0.0)})
    watch._ordinary = ordinary = Noting(watch)
    for step in (1, 2**63, 2, 2**80, 3):
        watch.step(step, losses={"total": torch.tensor(float(step))})
    settle(watch, peer)
    assert ordinary.kept == [1, 2, 3]
    assert [message.step for message in peer.of("step")] == [0, 1, 2, 3]
    assert watch.dropped == {"step:step": 2}


def test_memory_that_is_used_again_is_noticed_in_the_same_call(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": torch.tensor(0.0)})
    watch._ordinary = ordinary = Noting(watch)
    ordinary.keeper.most, ordinary._patience_seconds = 10, 60.0
    loss = torch.tensor(1.0)
    for step in (1, 2):
        watch.step(step, losses={"total": torch.tensor(0.5), "last": loss})
    assert watch.dropped == {}
    watch.step(3, losses={"total": loss})
    watch.step(4, losses={"total": loss})
    assert (watch.dropped, ordinary.kept) == ({"scalars:overwritten": 1}, [1, 2, 3, 4])
    settle(watch, peer)
    assert [(message.step, message.losses) for message in peer.of("step")][3:] == [(3, {}), (4, {"total": 1.0})]


def test_hooks_are_put_on_and_taken_off_by_calls_that_have_time(
    attached: Attach, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    watch = attached(loop.model, every={"codes": 1, "energies": 20, "codebooks": 0})
    watch.step(0, **loop.step())
    watch._ordinary = ordinary = Noting(watch)
    run, busy = watch._errands.run, {20, 21, 37, 38, 39}

    def busy_at_some(steps: Ordinary, now: float, _busy: bool) -> bool:
        run(steps, now, False)
        return steps.keeper.last in busy

    monkeypatch.setattr(watch._errands, "run", busy_at_some)
    hooked = {}
    for step in range(1, 43):
        ordinary.keeper.most, ordinary._patience_seconds = 5, 60.0
        hooked[step] = sum(len(layer._forward_hooks) for layer in loop.model.layers)
        told = loop.step()
        watch.step(step, losses=told["losses"], codes=told["codes"])
    settle(watch, peer)
    assert [step for step, hooks in hooked.items() if hooks] == [18, 19, 20, 21, 22, 40]
    assert [message.step for message in peer.of("step") if message.residual_energy] == [0, 20, 40]


def test_latents_that_no_codebooks_came_for_are_not_told_with_later_ones(
    attached: Attach, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    watch = attached(loop.model, every={"codes": 1, "energies": 0, "codebooks": 20})
    entered: list[torch.Tensor] = []
    loop.model.layers[0].register_forward_pre_hook(lambda _module, args: entered.append(args[0].detach().clone()))
    watch.step(0, **loop.step())
    watch._ordinary = ordinary = Noting(watch)
    ordinary.keeper.most, ordinary._patience_seconds = 50, 60.0
    taken: dict[int, torch.Tensor] = {}

    def take(_ordinary: Ordinary, due: frozenset[str], *_arrays: Any) -> bool:
        if "codebooks" in due:
            taken[ordinary.keeper.last] = watch._collector._latents["0"].clone()
        return False

    monkeypatch.setattr(watch, "_take_beside", take)
    for step in (10, 15, 25):  # at 10, 20 was thought to be next
        told = loop.step()
        watch.step(step, losses=told["losses"], codes=told["codes"])
    assert [*taken] == [25]
    assert torch.equal(taken[25], entered[-1].reshape(-1, 8))
    settle(watch, peer)


def test_hooks_that_are_on_stay_where_they_are_wanted_later_than_was_thought(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, every={"codes": 1, "energies": 20, "codebooks": 0})
    hooked = {}
    for step in range(43):
        if step == 19:
            watch._plan.every["energies"] = 40
        hooked[step] = sum(len(layer._forward_hooks) for layer in loop.model.layers)
        watch.step(step, **loop.step())
    assert [step for step, hooks in hooked.items() if hooks] == [0, *range(18, 41)]
    settle(watch, peer)
    assert [message.step for message in peer.of("step") if message.residual_energy] == [0, 40]


@pytest.mark.parametrize(
    ("steps", "general", "had"),
    [(range(0, 430, 10), [], [0, 20, 40]), (range(14), [4], [0, 8]), (range(0, 140, 10), [40], [0, 80])],
)
def test_energies_come_when_they_are_due_however_far_steps_are_apart(
    attached: Attach, peer: Peer, steps: range, general: list[int], had: list[int]
) -> None:
    """Where some steps are kept, and the others told their learning rate, with which they go the general way."""
    loop = Loop()
    every = had[-1] - had[-2]
    watch = attached(loop.model, every={"codes": 1, "energies": every, "codebooks": 0})
    watch.step(0, **loop.step())
    watch._ordinary = ordinary = Noting(watch)
    for step in steps[1:]:
        ordinary.keeper.most, ordinary._patience_seconds = 50, 60.0
        told = loop.step()
        watch.step(step, losses=told["losses"], codes=told["codes"], lr=0.5 if step in general else None)
    settle(watch, peer)
    assert ordinary.kept == [step for step in steps[1:] if step not in general]
    assert [message.step for message in peer.of("step") if message.residual_energy][: len(had)] == had


def test_a_cadence_that_gets_shorter_counts_at_once(
    attached: Attach, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = attached()
    watch.step(0, losses={"total": torch.tensor(0.0)})
    watch._ordinary = ordinary = Noting(watch)
    ordinary.keeper.most, ordinary._patience_seconds = 20, 60.0
    watch._ahead.look_at, watch._plan.next_special = 1 << 40, 5  # as a review leaves them: hooks are looked after later
    taken: list[int] = []
    monkeypatch.setattr(watch, "_take_beside", lambda *_: taken.append(ordinary.keeper.last))
    for step in range(1, 9):
        watch.step(step, losses={"total": torch.tensor(float(step))})
    assert taken == [5]
    settle(watch, peer)


class Parts:
    """A collector and a schedule, as far as gradients go: three parts of them, each of which takes its time."""

    tapped: tuple[()] = ()
    wants_codes = True
    last = -1

    def __init__(self) -> None:
        self.norms: dict[str, Any] = {}
        self.taken: list[int | None] = []
        self.costs: list[float] = []

    def gradient_parts(self, whole: bool) -> int:
        return 1 if whole else 3

    def gradient_norms(self, part: int | None) -> None:
        self.taken.append(part)
        time.sleep(0.01)

    def spent(self, costs: dict[str, float]) -> None:
        (seconds,) = costs.values()
        self.costs.append(seconds)


def test_a_capture_of_gradients_costs_what_its_parts_took_and_is_finished_before_the_next() -> None:
    parts: Any = Parts()
    stream: Any = HostStream()
    ordinary = Ordinary(parts, stream, parts, parts, [], Counter(), lambda _held: None)
    took, norm = [], torch.tensor(1.0)
    for step in range(6):
        assert ordinary.keep(step, {}, None, None, norm, 0.0)
        ordinary.want_gradients()
        took.append(ordinary.take_gradients())
    assert parts.taken == [2, 1, 0] * 2
    assert parts.costs == pytest.approx([sum(took[:3]), sum(took[3:])])


def test_where_a_step_has_no_norm_all_gradients_are_taken_at_once() -> None:
    parts: Any = Parts()
    stream: Any = HostStream()
    ordinary = Ordinary(parts, stream, parts, parts, [], Counter(), lambda _held: None)
    for step, norm in enumerate((torch.tensor(1.0), None)):
        assert ordinary.keep(step, {}, None, None, norm, 0.0)
        ordinary.want_gradients()
        ordinary.take_gradients()
    assert (parts.taken, ordinary.gradient_parts, len(parts.costs)) == ([2, None], 0, 1)
