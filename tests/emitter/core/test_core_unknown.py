"""A model whose quantizer nobody knows: it is named with the way to teach it, and everything else is watched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import Peer, array, settle
from torch import Tensor, nn

import vqwatch
from vqwatch.codebooks import Adapter, register

Attach = Callable[..., vqwatch.Emitter]


class HouseMadeQuantizer(nn.Module):
    """Rows that no family keeps like this."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.cdist(x, self.prototypes).argmin(-1)
        return self.prototypes[chosen], chosen


class HouseMade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.bottleneck = HouseMadeQuantizer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bottleneck(self.encoder(x))


@pytest.fixture
def taught() -> Iterator[None]:
    forget = register(
        Adapter(
            "house-made",
            lambda layer: isinstance(layer, HouseMadeQuantizer),
            lambda layer: {"codebook": layer.prototypes},
            "learned",
        )
    )
    yield
    forget()


def train(attached: Attach, peer: Peer, give_codes: bool) -> Tensor:
    """Take one step; return its codes."""
    torch.manual_seed(0)
    model = HouseMade()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = attached(model, optimizer)
    x = torch.randn(2, 5, 8)
    output, chosen = model(x)
    loss = (output - x).square().mean() + model.encoder(x).square().mean()
    loss.backward()
    codes = {"codes": chosen[..., None]} if give_codes else {}
    watch.step(0, losses={"total": loss}, original=x, reconstructed=output, **codes)
    settle(watch, peer)
    assert watch.dropped == {}
    return chosen


def test_it_is_named_and_everything_else_is_watched(
    attached: Attach, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vqwatch"):
        chosen = train(attached, peer, give_codes=True)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "bottleneck" in said
    assert "vqwatch.codebooks.register(Adapter(" in said
    (step,) = peer.of("step")
    assert step.losses["total"] > 0
    assert step.learning_rates == {"0": 0.1}
    assert step.gradient_norms.keys() == {"encoder", "bottleneck"}
    assert np.array_equal(array(peer.of("codes")[0].indices)[0], chosen.numpy())
    assert peer.kinds()["reconstruction"] == 1


@pytest.mark.usefixtures("taught")
def test_five_lines_teach_it(attached: Attach, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vqwatch"):
        chosen = train(attached, peer, give_codes=False)
    assert caplog.records == []
    (layer,) = peer.of("hello")[0].layers
    assert (layer.family, layer.path, layer.size, layer.dim) == ("house-made", "bottleneck", 16, 8)
    assert np.array_equal(array(peer.of("codes")[0].indices)[0], chosen.numpy())
    assert ("0", "codebook") in peer.of("codebooks")[0].tensors
