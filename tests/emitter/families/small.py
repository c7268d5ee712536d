"""A small residual-VQ autoencoder that returns its losses by name, as the integrations' users write them."""

from __future__ import annotations

import standins
import torch
from torch import Tensor, nn
from torch.nn import functional


class Autoencoder(nn.Module):
    """Features [B, T, 6] in; a mapping out, as Hugging Face's and Lightning's steps return them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.quantizer = standins.Residual([standins.VectorQuantizerEMA(16, 8) for _ in range(2)])
        self.decoder = nn.Linear(8, 6)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        quantized, vq, codes = self.quantizer(self.encoder(features))
        reconstructed = self.decoder(quantized)
        recon = functional.mse_loss(reconstructed, features)
        return {
            "loss": recon + vq, "recon": recon, "vq": vq, "codes": codes, "original": features,
            "reconstructed": reconstructed,
        }  # fmt: skip


def features(count: int = 8) -> Tensor:
    return torch.randn(count, 5, 6)
