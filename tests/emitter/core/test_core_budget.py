"""The budget keeps itself: a link that is slow is used less, and as before once it is not slow any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.emitter.core.hand import Loop, Peer, settle

import vqwatch

Attach = Callable[..., vqwatch.Emitter]
BUDGET = 0.1
EVERY = {"codes": 1, "codebooks": 5, "reconstruction": 5, "clusters": 0, "energies": 0, "gradients": 0}


class SlowLink:
    """Makes an emitter's link take its time with each message that need not arrive."""

    def __init__(self, watch: vqwatch.Emitter, seconds: float) -> None:
        self.seconds = seconds
        self._send = watch._link.best_effort
        watch._link.best_effort = self.best_effort  # type: ignore[method-assign]

    def best_effort(self, *arguments: Any, **named: Any) -> Any:
        time.sleep(self.seconds)
        return self._send(*arguments, **named)


class Trainer:
    """Trains, 10 ms a step, and notes what the calls of ``step()`` take of all time."""

    def __init__(self, watch: vqwatch.Emitter, loop: Loop, peer: Peer) -> None:
        self.steps = 0
        self._watch, self._loop, self._peer = watch, loop, peer

    def train(self, steps: int) -> float:
        began, own = time.perf_counter(), 0.0
        for _ in range(steps):
            time.sleep(0.01)
            told = self._loop.step()
            self._peer.take()
            before = time.perf_counter()
            self._watch.step(self.steps, **told)
            own += time.perf_counter() - before
            self.steps += 1
        return own / (time.perf_counter() - began)


@pytest.mark.alone
def test_a_slow_link_is_used_as_little_as_the_budget_asks_and_as_before_when_it_is_fast(
    attached: Attach, peer: Peer
) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer, budget=BUDGET, every=EVERY)
    link = SlowLink(watch, 0.006)
    trainer = Trainer(watch, loop, peer)
    assert trainer.train(30) > 2 * BUDGET
    trainer.train(200)
    assert trainer.train(100) < 1.3 * BUDGET
    assert watch.overhead is not None
    assert watch.overhead < 1.3 * BUDGET, "as it says itself"
    stretched = {kind: steps // EVERY[kind] for kind, steps in watch.every.items() if kind != "scalars"}
    assert stretched["codes"] > 1
    assert stretched["codebooks"] == stretched["reconstruction"] == 64, "codes last"
    assert watch.every["scalars"] == 1

    link.seconds = 0.0
    for _ in range(20):
        trainer.train(100)
        if watch.every == {"scalars": 1} | {kind: steps for kind, steps in EVERY.items() if steps}:
            break
    assert watch.every["codes"] == 1, watch.every
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [*range(trainer.steps)], "scalars never"
