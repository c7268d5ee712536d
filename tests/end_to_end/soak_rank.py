"""One rank of the soak: the real emitter at the standard load, without the training.

The standard load: codes of 16 x 500 vectors through 8 codebooks of 256 codes of width 1024 and scalars at every step;
codebooks and a sample of frames at the emitter's own cadences, which are not stretched (no budget), so that the load is
the same on any machine. Prints one line of JSON when it ends.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tests.benchmarks.workload import VectorQuantizer
from torch import nn

import vqwatch

LAYERS, CODES, WIDTH = 8, 256, 1024
BATCH, FRAMES, FRAMES_SHOWN = 16, 500, (4, 500, WIDTH)
MOVES_EVERY = 10


class Codebooks(nn.Module):
    """The quantizers alone, moved by statistics as in a training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantizer(CODES, WIDTH) for _ in range(LAYERS))

    @torch.no_grad()
    def move(self, step: int, codes: np.ndarray) -> None:
        """Let the codebooks' statistics follow the codes; the vectors move a little now and then."""
        for number, layer in enumerate(self.layers):
            counts = torch.from_numpy(np.bincount(codes[..., number].ravel(), minlength=CODES).astype(np.float32))
            layer.ema_cluster_size.lerp_(counts, 1 - layer.decay)
            if step % MOVES_EVERY == 0:
                layer.embedding.mul_(1 + 1e-3 * math.sin(step + number))


def main() -> None:
    """Speak until the file with the number of the last step is there and that step is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--start", type=Path, required=True, help="a file that will hold the Unix time of step 0")
    parser.add_argument("--until", type=Path, required=True, help="a file that will hold the number of the last step")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # codebooks are the same on every rank
    chance = np.random.default_rng(chosen.rank)
    model = Codebooks()
    batches = [chance.integers(0, CODES, (BATCH, FRAMES, LAYERS), dtype=np.int16) for _ in range(8)]
    original = chance.normal(size=FRAMES_SHOWN).astype(np.float32)
    shown = [original + np.float32(0.1) * chance.normal(size=FRAMES_SHOWN).astype(np.float32) for _ in range(4)]
    watch = vqwatch.attach(model, run="soak", rank=chosen.rank, world_size=chosen.ranks, endpoint=chosen.endpoint,
                           budget=math.inf)  # fmt: skip
    while not chosen.start.exists():  # nobody begins before everybody is there
        watch.flush(0.05)
        time.sleep(0.02)
    start = float(chosen.start.read_text())
    seconds: list[float] = []
    step, last = 0, math.inf
    while step < last:
        step += 1
        codes = batches[step % len(batches)]
        model.move(step, codes)
        losses = {"total": 1.0 + 0.1 * (step % 7), "recon": 0.8, "vq": 0.2}
        began = time.perf_counter()
        watch.step(step, losses=losses, codes=codes, original=original, reconstructed=shown[step % len(shown)],
                   grad_norm=1.5, lr=1e-3)  # fmt: skip
        seconds.append(time.perf_counter() - began)
        if chosen.until.exists():
            last = int(chosen.until.read_text())
        time.sleep(max(0.0, start + step / chosen.rate - time.time()))
    watch.close(30.0)
    print(json.dumps({
        "steps": step, "p50": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99)),
        "longest": max(seconds), "dropped": watch.dropped, "sent": dict(watch._link.sent),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
