"""A small residual quantizer, and a tap that keeps what its hooks tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqwatch import codebooks


class Quantizer(nn.Module):
    """The proposal's shape: buffers ``embedding`` and ``ema_cluster_size``, returns (quantized, loss, indices)."""

    def __init__(self, size: int = 8, dim: int = 4) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.randn(size, dim))
        self.register_buffer("ema_cluster_size", torch.ones(size))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.cdist(x, self.embedding).argmin(-1)
        quantized = self.embedding[indices]
        if mask is not None:
            indices = indices.masked_fill(~mask, -1)
        return x + (quantized - x).detach(), (x - quantized).square().mean(), indices


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = self.encoder(x)
        total, codes = torch.zeros_like(residual), []
        for layer in self.layers:
            quantized, _, indices = layer(residual)
            residual, total = residual - quantized, total + quantized
            codes.append(indices)
        return total, torch.stack(codes, -1)


class Ear:
    """A tap that keeps what it is told."""

    def __init__(self, wants_residuals: bool = False) -> None:
        self.wants_residuals = wants_residuals
        self.wants_codes = True
        self.heard: list[tuple[str, Tensor]] = []
        self.left: list[tuple[str, Tensor, Tensor]] = []

    def codes(self, layer: str, indices: Tensor) -> None:
        self.heard.append((layer, indices))

    def residual(self, layer: str, before: Tensor, after: Tensor) -> None:
        self.left.append((layer, before.clone(), after.clone()))

    @property
    def layers(self) -> list[str]:
        return [layer for layer, _ in self.heard]


def listening(model: nn.Module, ear: Ear) -> codebooks.Quantizers:
    found = codebooks.find(model)
    found.install(ear)
    return found
