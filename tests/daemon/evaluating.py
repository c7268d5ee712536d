"""A small model with two codebooks and its validation batches, as a user's module for ``vqwatch evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIZE, DIM = 16, 6


class Quantizer(nn.Module):
    """A codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(3)))


class Model(nn.Module):
    """Gives back its input times a learned scale, and codes that follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.layers = nn.ModuleList([Quantizer(), Quantizer()])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return reconstruction [B, T, D], codes [B, T, 2] and losses."""
        first = (features[..., 0].abs() * 7).long() % SIZE
        second = (features[..., 1].abs() * 5).long() % (SIZE // 2)
        codes = torch.stack([first, second], dim=-1).masked_fill(~mask[..., None], -1)
        return features * self.scale, codes, {"recon": (features - features * self.scale)[mask].square().mean()}


def build() -> Model:
    """Return the untrained model."""
    return Model()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of different size with ragged masks."""
    generator = torch.Generator().manual_seed(0)
    for size in (5, 1, 8):
        features = torch.randn(size, 9, DIM, generator=generator)
        lengths = torch.randint(2, 10, (size, 1), generator=generator)
        yield features, torch.arange(9) < lengths


def broken_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one batch with a sample that is not finite."""
    features = torch.ones(4, 9, DIM)
    features[2, 3, 1] = float("nan")
    yield features, torch.ones(4, 9, dtype=torch.bool)


def named_forward(model: Model, batch: Any) -> dict[str, Any]:
    """Return what the model makes of a batch, under names of its own choice."""
    features, mask = batch
    recon, codes, _ = model(features, mask)
    return {"original": features, "recon": recon, "indices": [codes[..., 0], codes[..., 1]], "mask": mask}
