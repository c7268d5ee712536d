"""Stand-ins for quantizers that no package index has: same attributes, shapes, returns and update rules, own code.

Each class says which project it stands for. What matters for the emitter is kept (where tensors live, what is
replaced or changed in place, what a call returns, which methods are called); everything else is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the index of the nearest row for each of ``vectors`` [..., D]."""
    return torch.cdist(vectors.reshape(-1, rows.shape[-1]), rows).argmin(-1).reshape(vectors.shape[:-1])


def straight_through(vectors: Tensor, quantized: Tensor) -> Tensor:
    return vectors + (quantized - vectors).detach()


def losses(vectors: Tensor, quantized: Tensor) -> Tensor:
    return functional.mse_loss(quantized.detach(), vectors) + functional.mse_loss(quantized, vectors.detach())


# --- the proposal (SpeechGR) ------------------------------------------------------------------------------------


class VectorQuantizerEMA(nn.Module):
    """The proposal's layer: buffers ``embedding``, ``ema_cluster_size``, ``ema_w`` and ``num_updates``."""

    def __init__(self, size: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("embedding", torch.randn(size, dim))
        self.register_buffer("ema_cluster_size", torch.ones(size))
        self.register_buffer("ema_w", self.embedding.clone())
        self.register_buffer("num_updates", torch.zeros(1, dtype=torch.long))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = nearest(inputs, self.embedding)
        if self.training:
            flat = inputs.detach().reshape(-1, inputs.shape[-1])
            onehot = functional.one_hot(indices.reshape(-1), len(self.embedding)).to(flat)
            self.num_updates += 1
            self.ema_cluster_size.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
            self.ema_w.mul_(self.decay).add_(onehot.t() @ flat, alpha=1 - self.decay)
            self.embedding.copy_(self.ema_w / (self.ema_cluster_size + 1e-5)[:, None])
        quantized = self.embedding[indices]
        loss = 0.25 * functional.mse_loss(quantized.detach(), inputs)
        return straight_through(inputs, quantized), loss, indices


class Residual(nn.Module):
    """A residual stack of layers that return (quantized, loss, indices); codes [..., Q] as LC-Rec's and SpeechGR's."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, vectors: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        residual, total, loss, codes = vectors, torch.zeros_like(vectors), torch.zeros(()), []
        for layer in self.layers:
            quantized, cost, indices = layer(residual, *args)
            residual, total, loss = residual - quantized, total + quantized, loss + cost
            codes.append(indices)
        return total, loss, torch.stack(codes, -1)


# --- taming-transformers ----------------------------------------------------------------------------------------


class VectorQuantizer(nn.Module):
    """taming's first: images [B, C, h, w], and (perplexity, one-hot, indices [B*h*w, 1]) as the third result."""

    def __init__(self, size: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta = size, dim, beta
        self.embedding = nn.Embedding(size, dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        last = z.permute(0, 2, 3, 1).contiguous()
        indices = nearest(last, self.embedding.weight).reshape(-1, 1)
        onehot = functional.one_hot(indices[:, 0], self.n_e).to(z)
        quantized = (onehot @ self.embedding.weight).view(last.shape)
        perplexity = torch.exp(-(onehot.mean(0) * torch.log(onehot.mean(0) + 1e-10)).sum())
        result = straight_through(last, quantized).permute(0, 3, 1, 2).contiguous()
        return result, losses(last, quantized), (perplexity, onehot, indices)


class VectorQuantizer2(VectorQuantizer):
    """taming's second: (None, None, indices [B*h*w]) as the third result."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:  # type: ignore[override]
        result, loss, (_, _, indices) = super().forward(z)
        return result, loss, (None, None, indices[:, 0])


class GumbelQuantize(nn.Module):
    """taming's and Karpathy's: codes are drawn from logits; ``embed`` instead of ``embedding``."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, size, 1)
        self.embed = nn.Embedding(size, dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        onehot = functional.gumbel_softmax(self.proj(z), dim=1, hard=True)
        quantized = torch.einsum("bnhw,nd->bdhw", onehot, self.embed.weight)
        return quantized, onehot.mean() * 0, (None, None, onehot.argmax(1))


class EmbeddingEMA(nn.Module):
    """taming's table for averages: everything is a Parameter without gradient."""

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        rows = torch.randn(size, dim)
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.embed_avg = nn.Parameter(rows.clone(), requires_grad=False)


class EMAVectorQuantizer(nn.Module):
    """taming's layer around :class:`EmbeddingEMA` (whose original cannot be constructed)."""

    def __init__(self, size: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.embedding = EmbeddingEMA(size, dim, decay)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        table, last = self.embedding, z.permute(0, 2, 3, 1).contiguous()
        indices = nearest(last, table.weight)
        quantized = table.weight[indices]
        if self.training:
            with torch.no_grad():
                onehot = functional.one_hot(indices.reshape(-1), len(table.weight)).to(z)
                table.cluster_size.mul_(table.decay).add_(onehot.sum(0), alpha=1 - table.decay)
                table.embed_avg.mul_(table.decay).add_(
                    onehot.t() @ last.reshape(-1, last.shape[-1]), alpha=1 - table.decay
                )
                table.weight.copy_(table.embed_avg / (table.cluster_size + 1e-5)[:, None])
        result = straight_through(last, quantized).permute(0, 3, 1, 2)
        return result, functional.mse_loss(quantized, last), (None, None, indices)


# --- rq-vae-transformer -----------------------------------------------------------------------------------------


class VQEmbedding(nn.Embedding):
    """kakaobrain's: an Embedding of K + 1 rows, the last of them padding; restarts codes below a count of 1."""

    def __init__(self, size: int, dim: int, decay: float = 0.99) -> None:
        super().__init__(size + 1, dim, padding_idx=size)
        self.n_embed, self.decay, self.restart_unused_codes = size, decay, True
        self.weight.requires_grad_(False)
        self.register_buffer("cluster_size_ema", torch.zeros(size))
        self.register_buffer("embed_ema", self.weight[:-1].detach().clone())

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        indices = nearest(inputs, self.weight[:-1])
        embeds = super().forward(indices)
        if self.training:
            with torch.no_grad():
                flat = inputs.reshape(-1, inputs.shape[-1])
                onehot = functional.one_hot(indices.reshape(-1), self.n_embed).to(flat)
                self.cluster_size_ema.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
                self.embed_ema.mul_(self.decay).add_(onehot.t() @ flat, alpha=1 - self.decay)
                used = (self.cluster_size_ema >= 1).float()
                drawn = flat[torch.randint(len(flat), (self.n_embed,))]
                self.embed_ema.mul_(used[:, None]).add_(drawn * (1 - used[:, None]))
                self.cluster_size_ema.mul_(used).add_(1 - used)
                self.weight[:-1] = self.embed_ema / self.cluster_size_ema[:, None]
        return embeds, indices


class RQBottleneck(nn.Module):
    """kakaobrain's stack: subtracts in place from the tensor that the layers were given; may share one codebook."""

    def __init__(self, size: int, dim: int, depth: int, shared_codebook: bool = False) -> None:
        super().__init__()
        first = VQEmbedding(size, dim)
        self.codebooks = nn.ModuleList(
            [first if shared_codebook or i == 0 else VQEmbedding(size, dim) for i in range(depth)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual, total, codes = x.detach().clone(), torch.zeros_like(x), []
        for codebook in self.codebooks:
            quantized, indices = codebook(residual)
            residual.sub_(quantized)
            total.add_(quantized)
            codes.append(indices)
        return straight_through(x, total), functional.mse_loss(x, total.detach()), torch.stack(codes, -1)


# --- LC-Rec and LETTER ------------------------------------------------------------------------------------------


class SinkhornVectorQuantizer(nn.Module):
    """LC-Rec's layer: training indices are balanced over the batch, so they are not the nearest rows."""

    def __init__(self, size: int, dim: int, sk_epsilon: float = 0.05) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.sk_epsilon, self.initted = size, dim, sk_epsilon, True
        self.embedding = nn.Embedding(size, dim)

    def forward(self, x: Tensor, use_sk: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        distances = torch.cdist(x, self.embedding.weight).detach()
        if use_sk and self.sk_epsilon > 0:
            plan = torch.exp(-(distances - distances.min()) / self.sk_epsilon / distances.max()).double()
            for _ in range(5):
                plan = plan / plan.sum(0, keepdim=True)
                plan = plan / plan.sum(1, keepdim=True)
            indices = plan.argmax(-1)
        else:
            indices = distances.argmin(-1)
        quantized = self.embedding(indices)
        return straight_through(x, quantized), losses(x, quantized), indices


class LabelledVectorQuantizer(SinkhornVectorQuantizer):
    """LETTER's layer: wants labels too."""

    def forward(self, x: Tensor, labels: Tensor, use_sk: bool = True) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, use_sk)


# --- RQ-VAE-Recommender -----------------------------------------------------------------------------------------


class QuantizeOutput(NamedTuple):
    embeddings: Tensor
    ids: Tensor
    loss: Tensor


class Quantize(nn.Module):
    """EdoardoBotta's layer: what is compared with the input is ``out_proj`` of the rows."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.out_proj = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Identity())
        self.kmeans_initted = True

    @property
    def weight(self) -> Tensor:
        return self.embedding.weight

    def forward(self, x: Tensor, temperature: float) -> QuantizeOutput:
        codebook = self.out_proj(self.embedding.weight)
        ids = nearest(x, codebook)
        quantized = codebook[ids]
        return QuantizeOutput(straight_through(x, quantized), ids, losses(x, quantized))


class RqVae(nn.Module):
    """EdoardoBotta's stack: its compiled forward returns losses only; the ids stay inside."""

    def __init__(self, size: int, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Quantize(size, dim) for _ in range(depth))

    def get_semantic_ids(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual, total, loss, ids = x, torch.zeros_like(x), torch.zeros(()), []
        for layer in self.layers:
            output = layer(residual, temperature=0.2)
            residual, total, loss = residual - output.embeddings, total + output.embeddings, loss + output.loss
            ids.append(output.ids)
        return total, loss, torch.stack(ids, -1)

    def forward(self, x: Tensor) -> Tensor:
        total, loss, _ = self.get_semantic_ids(x)
        return functional.mse_loss(total, x) + loss


# --- GRID -------------------------------------------------------------------------------------------------------


class MiniBatchKMeans(nn.Module):
    """GRID's layer: not called but told to ``model_step``, which calls ``predict_step``; waits for a full buffer."""

    def __init__(self, size: int, dim: int, init_buffer_size: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.zeros(size, dim))
        self.cluster_counts = torch.zeros(size)
        self.init_buffer, self.init_buffer_size = torch.zeros(0, dim), init_buffer_size
        self.is_initialized, self.is_initial_step = False, False

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        assignments = self.predict_step(batch, return_embeddings=False)
        assert isinstance(assignments, Tensor)
        onehot = functional.one_hot(assignments, len(self.centroids))
        self.cluster_counts += onehot.sum(0)
        return assignments, onehot.float().t() @ batch

    def model_step(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.is_initial_step:
            self.is_initial_step, self.is_initialized = False, True
        if not self.is_initialized:
            return self.initialization_step(batch)
        assignments, sums = self.forward(batch)
        quantized = self.centroids[assignments]
        return assignments, quantized, functional.mse_loss(quantized, batch.detach()) + sums.sum() * 0

    def initialization_step(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.init_buffer = torch.cat([self.init_buffer, batch.detach()])
        if len(self.init_buffer) < self.init_buffer_size:
            return torch.zeros(len(batch), dtype=torch.long), torch.zeros_like(batch), self.centroids.sum() * 0
        self.centroids.data.copy_(self.init_buffer[torch.randperm(len(self.init_buffer))[: len(self.centroids)]])
        self.is_initial_step = True
        assignments = nearest(batch, self.centroids)
        return assignments, self.centroids[assignments], self.centroids.sum() * 0

    def predict_step(self, batch: Tensor, return_embeddings: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        assignments = nearest(batch, self.centroids.data)
        return (assignments, self.centroids.data[assignments]) if return_embeddings else assignments


class ResidualQuantization(nn.Module):
    """GRID's stack: trains a layer only once those before it are initialised; its own forward is called by name.

    ``given`` keeps what each layer got in the last forward, for comparison.
    """

    def __init__(self, size: int, dim: int, depth: int, init_buffer_size: int) -> None:
        super().__init__()
        self.quantization_layer_list = nn.ModuleList(MiniBatchKMeans(size, dim, init_buffer_size) for _ in range(depth))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual, total, loss, ids = embeddings, torch.zeros_like(embeddings), torch.zeros(()), []
        layers = list(self.quantization_layer_list)
        self.given: list[Tensor] = []
        for i, layer in enumerate(layers):
            self.given.append(residual.detach())
            before = layers[i - 1] if i else None
            train = before is None or before.is_initialized or before.is_initial_step
            if layer.is_initialized and not layers[-1].is_initialized:
                train = False
            if train:
                indices, quantized, cost = layer.model_step(residual)
                loss = loss + cost
            else:
                indices, quantized = layer.predict_step(residual)
            ids.append(indices)
            total, residual = total + quantized, residual - quantized
        return torch.stack(ids, -1), total, loss

    def model_step(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(embeddings)


# --- jukebox ----------------------------------------------------------------------------------------------------


class BottleneckBlock(nn.Module):
    """jukebox's: buffer ``k`` is replaced at each step, ``k_sum`` and ``k_elem`` are plain attributes."""

    def __init__(self, k_bins: int, emb_width: int, mu: float = 0.99) -> None:
        super().__init__()
        self.k_bins, self.emb_width, self.mu, self.threshold, self.init = k_bins, emb_width, mu, 1.0, False
        self.k_sum: Tensor | None = None
        self.k_elem: Tensor | None = None
        self.register_buffer("k", torch.zeros(k_bins, emb_width))

    def forward(self, x: Tensor, update_k: bool = True) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        flat = x.permute(0, 2, 1).reshape(-1, self.emb_width)
        if update_k and not self.init:
            self.init = True
            self.k = flat.detach()[torch.randperm(len(flat))][: self.k_bins]
            self.k_sum, self.k_elem = self.k, torch.ones(self.k_bins)
        indices = nearest(flat, self.k)
        quantized = self.k[indices]
        metrics = {}
        if update_k:
            with torch.no_grad():
                onehot = functional.one_hot(indices, self.k_bins).to(flat)
                old, drawn = self.k, flat[torch.randperm(len(flat))][: self.k_bins]
                self.k_sum = self.mu * self.k_sum + (1 - self.mu) * (onehot.t() @ flat)
                self.k_elem = self.mu * self.k_elem + (1 - self.mu) * onehot.sum(0)
                used = (self.k_elem[:, None] >= self.threshold).float()
                self.k = used * self.k_sum / self.k_elem[:, None] + (1 - used) * drawn
                metrics = {"dk": (self.k - old).norm(), "used_curr": (onehot.sum(0) >= 1).sum()}
        loss = functional.mse_loss(quantized, flat)
        n, _, t = x.shape
        passed = straight_through(flat, quantized).view(n, t, -1).permute(0, 2, 1).contiguous()
        return indices.view(n, t), passed, loss, metrics
