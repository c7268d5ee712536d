"""The monitors that the proposal would run inside the training loop: the rival of every benchmark here.

Written for this purpose after the proposal's description: the same formulas, faults included, on torch tensors, and a
Python number for every value, each of which waits for the device. Nothing of the product imports it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

HISTORY = 100
TREND_POINTS = 10


class CodebookUse:
    """Per layer and batch: utilization, perplexity, codes used fewer than five times; their history and its trend."""

    def __init__(self, layers: int, codes: int) -> None:
        self.layers = layers
        self.codes = codes
        self.readings: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))

    def update(self, indices: Tensor) -> None:
        """Take one batch of indices [N, layers]."""
        for layer in range(self.layers):
            counts = torch.bincount(indices[:, layer].flatten(), minlength=self.codes)
            used = (counts > 0).sum().item()
            shares = counts.float() / counts.sum()
            shares = shares[shares > 0]
            perplexity = torch.exp(-(shares * shares.log()).sum()).item()
            rare = (counts < 5).sum().item()
            for name, value in (("utilization", used / self.codes), ("perplexity", perplexity), ("dead", rare)):
                self.readings[f"{layer}/{name}"].append(value)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the latest utilization and dead ratio, the mean perplexity and the utilization's trend by layer."""
        found = {}
        for layer in range(self.layers):
            utilization = list(self.readings[f"{layer}/utilization"])
            long_enough = len(utilization) > TREND_POINTS
            found[str(layer)] = {
                "utilization": utilization[-1] if utilization else 0.0,
                "trend": float(np.polyfit(range(len(utilization)), utilization, 1)[0]) if long_enough else 0.0,
                "perplexity": float(np.mean(self.readings[f"{layer}/perplexity"])),
                "dead_ratio": self.readings[f"{layer}/dead"][-1] / self.codes,
            }
        return found


class EmaBuffers:
    """Per layer: how far the codebook moved since the last call, and its cluster sizes."""

    def __init__(self, quantizers: list[Any]) -> None:
        self.quantizers = quantizers
        self.before: list[Tensor | None] = [None] * len(quantizers)

    def update(self) -> dict[str, float]:
        """Read every quantizer's ``embedding`` [K, D] and ``ema_cluster_size`` [K]."""
        found: dict[str, float] = {}
        for layer, quantizer in enumerate(self.quantizers):
            before = self.before[layer]
            if before is not None:
                found[f"{layer}/movement"] = torch.norm(quantizer.embedding - before, dim=1).mean().item()
            self.before[layer] = quantizer.embedding.clone().detach()
            sizes = quantizer.ema_cluster_size.cpu().numpy()
            found[f"{layer}/size_mean"] = sizes.mean()
            found[f"{layer}/size_min"] = sizes.min()
            found[f"{layer}/size_std"] = sizes.std()
            found[f"{layer}/tiny"] = (sizes < 0.01).sum()
        return found


def reconstruction(original: Tensor, reconstructed: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Return MSE, SNR, cosine and temporal consistency of [B, T, D] with masked frames set to zero."""
    if mask is None:
        values: Any = original.numel()
    else:
        original, reconstructed = original * mask.unsqueeze(-1), reconstructed * mask.unsqueeze(-1)
        values = mask.sum() * original.size(-1)
    found = {"mse": (functional.mse_loss(reconstructed, original, reduction="sum") / values).item()}
    signal, noise = (original**2).sum() / values, ((original - reconstructed) ** 2).sum() / values
    found["snr_db"] = (10 * torch.log10(signal / (noise + 1e-10))).item()
    cosines = functional.cosine_similarity(original.flatten(0, 1), reconstructed.flatten(0, 1), dim=-1)
    found["cosine"] = (cosines.mean() if mask is None else (cosines * mask.flatten()).sum() / mask.sum()).item()
    if original.size(1) > 1:
        steps = [torch.norm(x[:, 1:] - x[:, :-1], dim=-1).flatten(0, 1) for x in (original, reconstructed)]
        found["temporal"] = functional.cosine_similarity(steps[0], steps[1], dim=0).item()
    return found


def evaluation(samples: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Return mean, std, min and max over samples of every reconstruction reading."""
    collected: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in reconstruction(*sample).items():
            collected[name].append(value)
    return {
        name: {"mean": np.mean(v), "std": np.std(v), "min": np.min(v), "max": np.max(v)}
        for name, v in collected.items()
    }


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]
) -> dict[str, Any]:
    """Return loss shares, the gradient norm of every parameter and of all, the learning rate, and two flags."""
    total = losses["total"]
    found: dict[str, Any] = {f"share/{name}": losses[name] / total for name in ("recon", "vq")}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient/{name}"] = parameter.grad.norm().item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    found["gradient"] = norm.item()
    found["learning_rate"] = optimizer.param_groups[0]["lr"]
    if norm > 10:
        found["gradient_spike"] = True
    if torch.isnan(total):
        found["nan_loss"] = True
    return found


def loss_ratios(losses: dict[str, Tensor]) -> dict[str, float]:
    """Return the loss shares and VQ over reconstruction loss as numbers."""
    total, recon, vq = losses["total"], losses["recon"], losses["vq"]
    return {
        "recon": (recon / total).item(),
        "vq": (vq / total).item(),
        "vq_to_recon": (vq / (recon + 1e-8)).item(),
    }
