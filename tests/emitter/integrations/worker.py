"""One rank of a gloo group: ``worker.py MODE RANK RANKS FOLDER``. Trains under DDP and writes what it did."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from libraries import library
from receiver import meet
from small import Autoencoder

import vqwatch
from vqwatch.integrations import stop_together
from vqwatch.schedule import EVERYTHING


class Encodec(nn.Module):
    """An encoder before encodec's quantizer, whose averages no rank shares with another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        quantization = library("encodec.quantization", "encodec")
        self.quantizer = quantization.ResidualVectorQuantizer(8, 2, 16, kmeans_init=False, threshold_ema_dead_code=0)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self.quantizer(self.encoder(features).transpose(1, 2), 50)
        return {"loss": result.quantized.square().mean() + result.penalty}


def wrapped(mode: str) -> nn.Module:
    return DistributedDataParallel(Encodec() if mode == "encodec" else Autoencoder(), broadcast_buffers=False)


def train(rank: int, mode: str) -> int:
    """Train and return how many steps were taken."""
    torch.manual_seed(0)
    model = wrapped(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(100 + rank)
    few = mode != "stop"
    watch = vqwatch.attach(model, optimizer, run="ddp", budget=float("inf"), every=EVERYTHING if few else None)
    meet(watch)
    step = 0
    for step in range(1, 7 if few else 5001):
        loss = model(torch.randn(2, 5, 6))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        number = step if few else 2 * step - 1  # none that could be divided by ten
        watch.step(number, losses={"total": loss})
        if stop_together(watch, number, every=10):
            break
    watch.flush(20)
    watch.close(20)
    return step


def main() -> None:
    mode, rank, ranks, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"{mode}-store"), ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    steps = train(rank, mode)
    distributed.destroy_process_group()
    (folder / f"{mode}-{rank}.json").write_text(json.dumps({"steps": steps}))


if __name__ == "__main__":
    main()
