"""What goes by in a pause is no part of the steps around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.emitter.core.hand import Loop, Peer, array, settle

import vqwatch

Attach = Callable[..., vqwatch.Emitter]


def test_a_pause_holds_it_still_and_what_happened_meanwhile_is_not_told(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer)
    with watch.pause():
        loop.step()
        watch.step(0, losses={"total": 1.0})
    told = loop.step()
    watch.step(1, losses={"total": 2.0})
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [1]
    (codes,) = peer.of("codes")
    assert np.array_equal(array(codes.indices), told["codes"].movedim(-1, 0).numpy())


@pytest.mark.parametrize("inner", [False, True], ids=["one", "one inside another"])
def test_forward_passes_in_a_pause_are_no_part_of_the_step_around_it(attached: Attach, peer: Peer, inner: bool) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer, every={"energies": 1, "codebooks": 1, "reconstruction": 0})
    watch.step(0, losses={"total": 0.0})
    told = loop.step()
    with watch.pause():
        loop.step()
        if inner:
            with watch.pause():
                loop.step()
            loop.step()
    watch.step(1, losses=told["losses"])
    pause = watch.pause()
    loop.step()
    pause.resume()
    pause.resume()
    watch.step(2, losses={"total": 0.0})
    again = loop.step()
    watch.step(3, losses={"total": 0.0})
    settle(watch, peer)
    codes = {message.step: array(message.indices) for message in peer.of("codes")}
    assert sorted(codes) == [1, 3]
    for step, of_step in ((1, told), (3, again)):
        assert np.array_equal(codes[step].reshape(2, -1), of_step["codes"].movedim(-1, 0).reshape(2, -1).numpy())
    energies = {message.step: dict(message.residual_energy) for message in peer.of("step") if message.residual_energy}
    assert sorted(energies) == [1, 3], "nor are they what a step without a forward pass left over"


def test_pauses_that_overlap_end_with_the_last(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer)
    watch.step(0, losses={"total": 0.0})
    told = loop.step()
    first, second = watch.pause(), watch.pause()
    first.resume()
    loop.step()
    watch.step(1, losses={"total": 1.0})
    second.resume()
    watch.step(2, losses={"total": 2.0})
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [0, 2]
    (codes,) = peer.of("codes")
    assert np.array_equal(array(codes.indices).reshape(2, -1), told["codes"].movedim(-1, 0).reshape(2, -1).numpy())


def test_a_pause_of_one_that_was_closed_or_never_began_does_nothing(attached: Attach) -> None:
    loop = Loop()
    watch = attached(loop.model, loop.optimizer)
    before = watch.pause()
    watch.close(0.0)
    before.resume()
    nobody = vqwatch.attach(loop.model, endpoint="")
    for emitter in (watch, nobody):
        with emitter.pause():
            loop.step()
        emitter.step(0, losses={"total": 1.0})
    assert watch.dropped == {}
