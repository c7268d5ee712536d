"""One rank of a gloo group: ``sharded_worker.py RANK RANKS FOLDER``. Trains under every kind of sharding in turn.

Each is a run of its own, named by the kind. Writes what the model itself says: codes and averages of every step.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

import standins
from receiver import meet
from small import Autoencoder

import vqwatch
from vqwatch.schedule import EVERYTHING

STEPS = 4


class ProjectedQuantize(standins.Quantize):
    """RQ-VAE-Recommender's layer in a stack of others."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        output = super().forward(x, 0.2)
        return output.embeddings, output.loss, output.ids


class Mixed(Autoencoder):
    """Two layers moved by averages, one that is learned, and one whose codebook is computed from what is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer.layers.append(standins.SinkhornVectorQuantizer(16, 8))
        self.quantizer.layers.append(ProjectedQuantize(16, 8))


fsdp = functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"))


def in_units(model: Mixed) -> nn.Module:
    """Every quantizer layer is a unit of its own, and the encoder is checkpointed."""
    model.encoder = checkpoint_wrapper(model.encoder)
    kinds = {standins.VectorQuantizerEMA, standins.SinkhornVectorQuantizer}
    return fsdp(model, use_orig_params=True, auto_wrap_policy=ModuleWrapPolicy(kinds))


KINDS: dict[str, Callable[[Mixed], nn.Module]] = {
    "fully_shard": fully_shard,
    "flat": functools.partial(fsdp, use_orig_params=False),
    "original": functools.partial(fsdp, use_orig_params=True),
    "units": in_units,
    "whole": functools.partial(fsdp, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD),
    "original, attached first": functools.partial(fsdp, use_orig_params=True),
    "flat, attached first": functools.partial(fsdp, use_orig_params=False),
    "fully_shard, attached first": fully_shard,
}
ATTACHED_FIRST = [kind for kind in KINDS if kind.endswith("attached first")]


def train(kind: str, rank: int) -> dict[str, Tensor]:
    """Train for some steps; return the codes ``[steps, B, T, L]``, averages, and the weights of the learned layer.

    Also the encoder's gradient norm in each step, of what this rank has of the gradient.
    """
    torch.manual_seed(0)
    model = Mixed()
    layers = list(model.quantizer.layers)
    attach = functools.partial(vqwatch.attach, run=kind, budget=float("inf"), every=EVERYTHING)
    if kind in ATTACHED_FIRST:
        watch = attach(model)
        wrapped = KINDS[kind](model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    else:
        wrapped = KINDS[kind](model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
        watch = attach(wrapped, optimizer)
    torch.manual_seed(100 + rank)
    meet(watch)
    codes, books, sizes, norms = [], [], [], []
    for step in range(1, STEPS + 1):
        output = wrapped(torch.randn(2, 5, 6))
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        norms.append(_norm(model.encoder))
        watch.step(step, losses={"total": output["loss"]})
        codes.append(output["codes"])
        books.append(torch.stack([layer.embedding for layer in layers[:2]]))
        sizes.append(torch.stack([layer.ema_cluster_size for layer in layers[:2]]))
    assert watch.flush(20)
    watch.close(20)
    learned = layers[2].embedding.weight.detach() if kind == "whole" else torch.empty(0)
    return {
        "codes": torch.stack(codes), "books": torch.stack(books), "sizes": torch.stack(sizes), "learned": learned,
        "encoder": torch.stack(norms),
    }  # fmt: skip


def _norm(module: nn.Module) -> Tensor:
    """Return the norm of what this rank has of a module's gradient."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not hasattr(p.grad, "to_local")]
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt() if gradients else torch.zeros(())


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for kind in KINDS:
        np.savez(folder / f"{kind}-{rank}.npz", **{name: v.numpy() for name, v in train(kind, rank).items()})
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
