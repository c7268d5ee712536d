"""The model of the example: a transformer encoder, eight EMA codebooks of 256 codes each, a transformer decoder.

It has the shape of the monitoring proposal's DocumentRQVAE (buffers ``embedding`` and ``ema_cluster_size`` in every
quantizer), small enough to train on two CPU cores. Knows no data, no optimizer and no vqwatch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from distributed import sum_over_ranks, take_from_first_rank
from torch import Tensor, nn
from torch.nn import functional


class Output(NamedTuple):
    """What a forward pass gives: ``[B, T, D]``, ``[B, T, Q]`` (-1 where masked), and three scalar losses."""

    reconstruction: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class VectorQuantizerEMA(nn.Module):
    """One codebook, learned by exponential moving averages (van den Oord et al. 2017, appendix A.1).

    Filled with vectors of the first batch it sees. A code whose average count per step falls below
    ``dead_code_threshold`` is re-dealt to a vector of the present batch, at most ``replaced_per_step`` of them in a
    step, so that the decoder can follow; counts and sums are re-dealt with it, or the next update would undo it.
    """

    embedding: Tensor
    ema_cluster_size: Tensor
    ema_w: Tensor
    num_updates: Tensor

    def __init__(self, size: int, dim: int, decay: float = 0.9, dead_code_threshold: float = 0.2) -> None:
        super().__init__()
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        self.replaced_per_step = 4
        self.synchronized = True
        self.register_buffer("embedding", torch.zeros(size, dim))
        self.register_buffer("ema_cluster_size", torch.zeros(size))
        self.register_buffer("ema_w", torch.zeros(size, dim))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantized ``[B, T, D]`` (zero where masked) and indices ``[B, T]`` (-1 where masked)."""
        vectors = inputs[mask].detach()
        if self.training and self.num_updates == 0:
            self.initialize(vectors)
        chosen = self.nearest(vectors)
        indices = torch.full(mask.shape, -1, dtype=torch.long, device=inputs.device)
        indices[mask] = chosen
        quantized = torch.zeros_like(inputs)
        quantized[mask] = self.embedding[chosen]
        if self.training:
            self.update(vectors, chosen)
            self.replace_dead_codes(vectors)
        return quantized, indices

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code for each of ``[N, D]``."""
        distances = self.embedding.square().sum(1) - 2 * vectors @ self.embedding.T
        return distances.argmin(1)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, rounds: int = 5) -> None:
        """Fill the codebook by k-means over ``[N, D]`` vectors, counts and sums included."""
        size = len(self.embedding)
        self.embedding.copy_(vectors[torch.randperm(len(vectors)).repeat(1 + size // len(vectors))[:size]])
        for _ in range(rounds):
            chosen = functional.one_hot(self.nearest(vectors), size).to(vectors)
            counts = chosen.sum(0)
            used = counts > 0
            self.embedding[used] = (chosen.T @ vectors)[used] / counts[used, None]
        self.ema_cluster_size.copy_(counts.clamp(min=1.0))
        if self.synchronized:
            take_from_first_rank(self.embedding)
            take_from_first_rank(self.ema_cluster_size)
        self.ema_w.copy_(self.embedding * self.ema_cluster_size[:, None])

    @torch.no_grad()
    def update(self, vectors: Tensor, chosen: Tensor) -> None:
        """Move counts, sums and codes towards this batch's assignments."""
        assigned = functional.one_hot(chosen, len(self.embedding)).to(vectors)
        counts, sums = assigned.sum(0), assigned.T @ vectors
        if self.synchronized:
            sum_over_ranks(counts)
            sum_over_ranks(sums)
        self.ema_cluster_size.lerp_(counts, 1 - self.decay)
        self.ema_w.lerp_(sums, 1 - self.decay)
        self.embedding.copy_(self.ema_w / self.ema_cluster_size.clamp(min=1e-5)[:, None])
        self.num_updates += 1

    @torch.no_grad()
    def replace_dead_codes(self, vectors: Tensor) -> None:
        """Re-deal the least used codes below the threshold to random vectors of this batch, each with a fair share."""
        least = self.ema_cluster_size.argsort()[: self.replaced_per_step]
        dead = least[self.ema_cluster_size[least] < self.dead_code_threshold]
        if len(dead) == 0:
            return
        fresh = vectors[torch.randint(len(vectors), (len(dead),))]
        if self.synchronized:
            take_from_first_rank(fresh)
        share = self.ema_cluster_size.mean()
        self.embedding[dead] = fresh
        self.ema_cluster_size[dead] = share
        self.ema_w[dead] = fresh * share


class ResidualQuantizer(nn.Module):
    """A stack of quantizers, each for what the ones before it left over; gradients pass straight through."""

    def __init__(self, layers: int, size: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantizerEMA(size, dim) for _ in range(layers))

    def forward(self, latents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized ``[B, T, D]``, indices ``[B, T, Q]`` and the commitment loss, a mean over valid frames."""
        residual = latents * mask[..., None]
        total = torch.zeros_like(residual)
        indices, losses = [], []
        for layer in self.layers:
            quantized, chosen = layer(residual, mask)
            losses.append((residual - quantized)[mask].square().mean())
            total = total + quantized
            residual = residual - quantized
            indices.append(chosen)
        straight = latents + (total - latents).detach()
        return straight, torch.stack(indices, dim=-1), torch.stack(losses).mean()


class LucidrainsQuantizer(nn.Module):
    """The same stack from ``vector-quantize-pytorch``, an EMA codebook with k-means start and dead-code expiry."""

    def __init__(self, layers: int, size: int, dim: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ  # an optional library

        self.vq = ResidualVQ(
            dim=dim, codebook_size=size, num_quantizers=layers, decay=0.9, kmeans_init=True, kmeans_iters=5,
            threshold_ema_dead_code=0.2, commitment_weight=1.0,
        )  # fmt: skip
        for layer in self.vq.layers:
            layer._codebook.reset_cluster_size = 2.0  # the default, the threshold itself, kills again what misses once

    def forward(self, latents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized ``[B, T, D]``, indices ``[B, T, Q]`` and the commitment loss, a mean over layers."""
        quantized, indices, losses = self.vq(latents, mask=mask)
        return quantized, indices, losses.mean()


class MoshiQuantizer(nn.Module):
    """The same stack from ``moshi`` (Mimi): a code is its sum over its count, a dead one has 10 % of a fair share."""

    def __init__(self, layers: int, size: int, dim: int) -> None:
        super().__init__()
        from moshi.quantization import ResidualVectorQuantizer  # an optional library

        self.rvq = ResidualVectorQuantizer(dimension=dim, n_q=layers, bins=size, decay=0.9)

    def forward(self, latents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized ``[B, T, D]``, indices ``[B, T, Q]`` and the commitment loss, a mean over layers."""
        result = self.rvq(latents[mask].T[None], frame_rate=1)  # it knows no mask
        for layer in self.rvq.vq.layers:
            layer._codebook.embedding_sum.detach_()  # a replaced code holds on to the graph of the batch it came from
        quantized = torch.zeros_like(latents)
        quantized[mask] = result.x[0].T
        indices = torch.full((*mask.shape, result.codes.shape[1]), -1, device=latents.device)
        indices[mask] = result.codes[0].T
        return quantized, indices, result.penalty


QUANTIZERS = {"ema": ResidualQuantizer, "lucidrains": LucidrainsQuantizer, "moshi": MoshiQuantizer}


class DocumentRQVAE(nn.Module):
    """Frames in, codes between, frames out; attention lets every frame see its document."""

    def __init__(
        self,
        dim: int,
        *,
        length: int = 64,
        width: int = 96,
        blocks: int = 1,
        latent_dim: int = 20,
        layers: int = 8,
        size: int = 256,
        commitment: float = 0.25,
        quantizer: str = "ema",
    ) -> None:
        super().__init__()
        self.commitment = commitment
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.encoder_in = nn.Linear(dim, width)
        self.encoder = _transformer(width, blocks)
        self.encoder_out = nn.Linear(width, latent_dim)
        self.quantizer: nn.Module = QUANTIZERS[quantizer](layers, size, latent_dim)
        self.decoder_in = nn.Linear(latent_dim, width)
        self.decoder = _transformer(width, blocks)
        self.decoder_out = nn.Linear(width, dim)

    def forward(self, features: Tensor, mask: Tensor) -> Output:
        """Encode, quantize and decode ``[B, T, D]`` with its mask ``[B, T]``; losses are means over valid frames."""
        latents = self.encode(features, mask)
        quantized, codes, commitment = self.quantizer(latents, mask)
        reconstruction = self.decode(quantized, mask)
        recon = functional.mse_loss(reconstruction[mask], features[mask])
        vq = self.commitment * commitment
        return Output(reconstruction, codes, {"total": recon + vq, "recon": recon, "vq": vq})

    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return latents ``[B, T, latent_dim]``."""
        hidden = self.encoder_in(features) + self.positions[: features.shape[1]]
        return self.encoder_out(self.encoder(hidden, src_key_padding_mask=~mask))

    def decode(self, quantized: Tensor, mask: Tensor) -> Tensor:
        """Return reconstructed features ``[B, T, D]`` from quantized latents."""
        hidden = self.decoder_in(quantized) + self.positions[: quantized.shape[1]]
        return self.decoder_out(self.decoder(hidden, src_key_padding_mask=~mask))


def _transformer(width: int, blocks: int) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        width, nhead=4, dim_feedforward=2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
