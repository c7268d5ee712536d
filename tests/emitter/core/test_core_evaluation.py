"""A validation pass: its batches arrive, in pieces where they are large, or are counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import Model, Peer, array, settle

import vqwatch

Attach = Callable[..., vqwatch.Emitter]


def test_an_evaluation_pass_arrives_sample_for_sample(attached: Attach, peer: Peer) -> None:
    watch = attached(Model())
    batches = [(torch.randn(size, 6, 8), torch.randn(size, 6, 8), torch.rand(size, 6) > 0.3) for size in (5, 2, 1)]
    codes = [torch.randint(0, 16, (len(x), 6, 2)) for x, _, _ in batches]
    with watch.evaluation(40) as ev:
        for (original, reconstructed, mask), assigned in zip(batches, codes, strict=True):
            ev.update(original=original, reconstructed=reconstructed, mask=mask, codes=assigned, scalars={"mine": 1.0})
    settle(watch, peer)
    parts = peer.of("evaluation")
    assert [(part.phase, part.batch) for part in parts] == [
        ("begin", 0), ("batch", 0), ("batch", 1), ("batch", 2), ("end", 3),
    ]  # fmt: skip
    for part, (original, reconstructed, mask), assigned in zip(parts[1:4], batches, codes, strict=True):
        assert np.array_equal(array(part.original), original.numpy())
        assert np.array_equal(array(part.reconstructed), reconstructed.numpy())
        assert np.array_equal(array(part.mask), mask.numpy())
        assert np.array_equal(array(part.codes), assigned.movedim(-1, 0).numpy())
        assert (part.layers, part.scalars, part.step) == (("0", "1"), {"mine": 1.0}, 40)


def test_a_large_validation_batch_is_sent_in_pieces(attached: Attach, peer: Peer) -> None:
    watch = attached()
    x = torch.randn(40, 64, 256)
    with watch.evaluation(0) as ev:
        ev.update(
            original=x, reconstructed=2 * x, codes=torch.zeros(40, 64, 2, dtype=torch.long), scalars={"mine": 2.0}
        )
        settle(watch, peer)
    settle(watch, peer)
    pieces = [part for part in peer.of("evaluation") if part.phase == "batch"]
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate([array(part.original) for part in pieces]), x.numpy())
    assert sum(part.codes.shape[1] for part in pieces) == 40
    assert [part.scalars for part in pieces] == [{"mine": 2.0}] + [{}] * (len(pieces) - 1)


def test_a_pass_that_fails_is_abandoned(attached: Attach, peer: Peer) -> None:
    watch = attached()
    with pytest.raises(KeyError), watch.evaluation(0):
        raise KeyError
    settle(watch, peer)
    assert [part.phase for part in peer.of("evaluation")] == ["begin", "abandon"]


@pytest.mark.alone
def test_an_evaluation_waits_no_longer_than_it_may_and_pushes_out_no_steps(attached: Attach, peer: Peer) -> None:
    watch = attached(backlog_bytes=6 << 20)
    watch.step(0, losses={"total": 1.0})
    x = torch.randn(8, 128, 1024)
    started = time.monotonic()
    with watch.evaluation(1, wait=0.2) as ev:
        for _ in range(3):
            ev.update(original=x, reconstructed=x)
    assert 0.1 < time.monotonic() - started < 3.0
    assert watch.dropped["evaluation:backlog"] > 0
    settle(watch, peer)
    assert [message.step for message in peer.of("step")] == [0]


def test_the_batch_that_does_not_fit_is_counted_and_the_pass_goes_on(attached: Attach, peer: Peer) -> None:
    watch = attached()
    with watch.evaluation(1) as ev:
        ev.update(
            original=torch.randn(2, 3, 4),
            reconstructed=torch.randn(2, 3, 5),
            codes=torch.zeros(2, 3, 2, dtype=torch.long),
        )
        ev.update(original=torch.randn(2, 3, 4), reconstructed=torch.randn(2, 3, 4), codes=torch.zeros(2, 3, 2))
    settle(watch, peer)
    batches = [part for part in peer.of("evaluation") if part.phase == "batch"]
    assert [(part.original is None, part.codes is None) for part in batches] == [(True, False), (False, True)]
    assert watch.dropped == {"evaluation:shape": 1, "evaluation:dtype": 1}
