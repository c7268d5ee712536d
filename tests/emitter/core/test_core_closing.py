"""How watching ends: asked to stop, closed, after an error, with nobody there."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tests.emitter.core.hand import Loop, Model, Peer, settle

import vqwatch

Attach = Callable[..., vqwatch.Emitter]


def test_a_stop_request_reaches_the_loop(attached: Attach, peer: Peer) -> None:
    watch = attached()
    assert not watch.stop_requested
    peer.stop("NanLoss")
    for step in range(100):
        watch.step(step, losses={"total": 1.0})
        if watch.stop_requested:
            break
        time.sleep(0.005)
    assert (watch.stop_requested, watch.stop_reason) == (True, "NanLoss")


def test_closing_says_goodbye_and_how_much_was_sent(attached: Attach, peer: Peer) -> None:
    loop = Loop()
    with attached(loop.model, loop.optimizer) as watch:
        for step in range(3):
            watch.step(step, **loop.step())
        settle(watch, peer)
        watch.close(0.0)
    peer.take(50)
    (goodbye,) = peer.of("goodbye")
    assert (goodbye.step, goodbye.reason, goodbye.sent["codes"]) == (2, "close", 3)
    watch.step(4)
    assert watch.flush() is False


def test_an_error_in_the_block_is_the_reason_of_the_goodbye(peer: Peer) -> None:
    def failing() -> None:
        with vqwatch.attach(endpoint=peer.endpoint) as watch:
            watch.flush(0.1)
            peer.take(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    peer.take(100)
    assert [message.reason for message in peer.of("goodbye")] == ["ZeroDivisionError"]


def test_the_model_is_left_as_it_was_found(attached: Attach) -> None:
    model = Model()
    watch = attached(model)
    assert any(module._forward_hooks for module in model.modules())
    watch.close(0.0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.alone
def test_closing_returns_at_once_where_no_daemon_is(endpoint: str) -> None:
    watch = vqwatch.attach(endpoint=endpoint)
    for step in range(20):
        watch.step(step, losses={"total": 1.0})
    started = time.monotonic()
    watch.close(5.0)
    assert time.monotonic() - started < 0.5
    assert watch.dropped["codes:no_peer"] == 20


@pytest.mark.alone
def test_closing_waits_a_bounded_time_for_a_frozen_daemon(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": 1.0})
    started = time.monotonic()
    watch.close(0.3)
    assert 0.2 < time.monotonic() - started < 1.5
