"""The training that the overhead is measured on: the proposal's residual autoencoder, at two sizes. Knows no monitor.

"proposal" is the proposal's model: 8+8 transformer layers of width 1024, 8 EMA codebooks of 256, B=16, T=500, in
bfloat16 autocast. On a host that launches slowly the device waits for it even so; "gpu-bound" is the same at B=48,
where it does not. "launch-bound" is 1+1 layers at B=4, where the host cannot launch as fast as the device computes.
"cpu" is for machines without an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Size:
    """A workload: layers on each side, width, batch, frames, codebooks and codes in each."""

    name: str
    layers: int
    width: int
    batch: int
    frames: int
    codebooks: int = 8
    codes: int = 256


SIZES = {
    "gpu-bound": Size("gpu-bound", 8, 1024, 48, 500),
    "proposal": Size("proposal", 8, 1024, 16, 500),
    "launch-bound": Size("launch-bound", 1, 1024, 4, 500),
    "cpu": Size("cpu", 1, 64, 4, 64),
}


class VectorQuantizer(nn.Module):
    """One EMA codebook in the proposal's form: buffers ``embedding`` and ``ema_cluster_size``."""

    embedding: Tensor
    ema_cluster_size: Tensor
    ema_w: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("embedding", torch.randn(codes, width))
        self.register_buffer("ema_cluster_size", torch.ones(codes))
        self.register_buffer("ema_w", self.embedding.clone())

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantized ``[N, D]`` and indices ``[N]``."""
        indices = (self.embedding.square().sum(1) - 2 * inputs.detach() @ self.embedding.T).argmin(1)
        quantized = self.embedding[indices]
        if self.training:
            with torch.no_grad():
                counts = torch.zeros_like(self.ema_cluster_size).index_add_(0, indices, torch.ones_like(inputs[:, 0]))
                sums = torch.zeros_like(self.ema_w).index_add_(0, indices, inputs.detach())
                self.ema_cluster_size.lerp_(counts, 1 - self.decay)
                self.ema_w.lerp_(sums, 1 - self.decay)
                self.embedding.copy_(self.ema_w / self.ema_cluster_size.clamp(min=1e-5)[:, None])
        return quantized, indices


class Autoencoder(nn.Module):
    """Encoder, residual quantizers, decoder."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        heads = max(1, size.width // 64)

        def stack() -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(
                size.width, heads, 2 * size.width, 0.0, batch_first=True, norm_first=True
            )
            return nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)

        self.encoder, self.decoder = stack(), stack()
        self.layers = nn.ModuleList(VectorQuantizer(size.codes, size.width) for _ in range(size.codebooks))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction ``[B, T, D]``, the commitment loss, and codes ``[B, T, L]``."""
        latents = self.encoder(features).float()
        residual = latents.reshape(-1, latents.shape[-1])
        total = torch.zeros_like(residual)
        indices = []
        commitment = torch.zeros((), device=features.device)
        with torch.autocast(features.device.type, enabled=False):
            for layer in self.layers:
                quantized, chosen = layer(residual)
                commitment = commitment + functional.mse_loss(residual, quantized)
                residual = residual - quantized
                total = total + quantized
                indices.append(chosen.view(latents.shape[:-1]))
        straight = latents + (total.view_as(latents) - latents).detach()
        return self.decoder(straight).float(), commitment / len(indices), torch.stack(indices, -1)


class Training:
    """A model, its optimizer and a few batches on one device; every step is one optimizer step."""

    def __init__(self, size: Size, device: torch.device, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.size = size
        self.device = device
        with device:  # initialised there: on the host it takes seconds
            self.model = Autoencoder(size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        self.batches = [torch.randn(size.batch, size.frames, size.width, device=device) for _ in range(4)]
        lengths = torch.randint(size.frames // 2, size.frames, (len(self.batches), size.batch, 1))
        self.masks = list((torch.arange(size.frames) < lengths).to(device))
        self.count = 0

    def step(self) -> dict[str, object]:
        """Train one step; return what ``Emitter.step`` takes, all of it still on the device."""
        turn = self.count % len(self.batches)
        features, mask = self.batches[turn], self.masks[turn]
        self.count += 1
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            reconstructed, commitment, codes = self.model(features)
        recon = _masked_mse(reconstructed, features, mask)
        total = recon + 0.25 * commitment
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {
            "losses": {"total": total, "recon": recon, "vq": commitment}, "codes": codes, "original": features,
            "reconstructed": reconstructed, "mask": mask, "grad_norm": norm,
        }  # fmt: skip


def _masked_mse(reconstructed: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    error = (reconstructed - features).square().mean(-1)
    return (error * mask).sum() / mask.sum()
