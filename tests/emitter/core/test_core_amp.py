"""Mixed precision with a GradScaler: gradient norms are those of the gradients, not of the scaled ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.emitter.core.hand import Model, Peer, settle
from torch import Tensor

import vqwatch

Attach = Callable[..., vqwatch.Emitter]
EVERYTHING = dict.fromkeys(("codes", "clusters", "codebooks", "reconstruction", "gradients", "energies"), 1)


class HalfModel(Model):
    """Computes in float16 but for the codebooks, as the libraries do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        assert hidden.dtype == torch.float16
        with torch.autocast("cpu", enabled=False):
            residual, total, indices = hidden.float(), torch.zeros(()), []
            for layer in self.layers:
                quantized, chosen = layer(residual)
                total, residual = total + quantized, residual - quantized
                indices.append(chosen)
        return self.decoder(hidden + (total - hidden).detach()), torch.stack(indices, -1), residual


class ScaledLoop:
    """A loop of that model, written as torch's documentation of mixed precision has it."""

    def __init__(self, scale: float, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = HalfModel()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.skipped: list[bool] = []
        self.norms: list[float] = []

    def loss(self) -> tuple[Tensor, Tensor, Tensor]:
        features = torch.randn(3, 5, 8)
        with torch.autocast("cpu", torch.float16):
            reconstructed, codes, residual = self.model(features)
            loss = (reconstructed.float() - features).square().mean() + residual.square().mean()
        return loss, codes, reconstructed

    def step(self) -> dict[str, Any]:
        loss, codes, reconstructed = self.loss()
        weights = list(self.model.encoder.parameters())
        unscaled = torch.autograd.grad(loss, weights, retain_graph=True)
        self.norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in unscaled)))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        self.skipped.append(self.scaler.get_scale() < before)
        return {"losses": {"total": loss}, "codes": codes, "reconstructed": reconstructed, "original": reconstructed}

    def state(self) -> list[Tensor]:
        return [*self.model.state_dict().values(), torch.get_rng_state(), torch.tensor(self.scaler.get_scale())]


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_norms_are_those_before_scaling_and_a_skipped_steps_is_not_finite(
    attached: Attach, peer: Peer, fused: bool
) -> None:
    loop = ScaledLoop(2.0**24, fused=fused)
    watch = attached(loop.model, loop.optimizer, every=EVERYTHING)
    for step in range(20):
        watch.step(step, **loop.step())
    settle(watch, peer)
    assert 2 <= sum(loop.skipped) <= 15, loop.skipped
    for message, norm, skipped in zip(peer.of("step"), loop.norms, loop.skipped, strict=True):
        assert math.isfinite(message.losses["total"])
        if skipped:
            assert not math.isfinite(message.gradient_norm)
        else:
            assert message.gradient_norms["encoder"] == pytest.approx(norm, rel=0.01)
    assert (peer.kinds()["codes"], watch.dropped) == (20, {})


def test_training_with_a_scaler_is_bit_identical_with_and_without(attached: Attach, peer: Peer) -> None:
    states = []
    for watching in (True, False):
        loop = ScaledLoop(2.0**20)
        watch = attached(loop.model, loop.optimizer, every=EVERYTHING) if watching else None
        for step in range(20):
            told = loop.step()
            if watch is not None:
                watch.step(step, **told)
        assert any(loop.skipped)
        states.append(loop.state())
    assert all(torch.equal(with_it, without) for with_it, without in zip(*states, strict=True))
    peer.take(100)
    assert peer.kinds()["step"] == 20
