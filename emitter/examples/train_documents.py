"""Train a residual-VQ autoencoder on the standard library's documentation, watched by vqwatch.

    vqwatch daemon &
    python train_documents.py --steps 2000

Five lines are vqwatch's: the import, ``attach``, ``step``, the question whether to stop, and ``close``. Without a
daemon they do nothing and the training is the same to the last bit. Faults can be put in to see their alerts:
``--fault collapse@300:450`` breaks the codebooks at step 300 and mends them at step 450; ``--list-faults`` names all.
Under ``torchrun`` every rank trains on batches of its own and gradients and codebook statistics are averaged.

For ``vqwatch evaluate --model train_documents:build_model --data train_documents:validation_batches`` this module has
the two functions of those names.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import documents
import torch
from distributed import average_gradients, join, leave
from faults import CATALOGUE, Schedule, summary
from model import QUANTIZERS, DocumentRQVAE
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import vqwatch

LENGTH = 64
LR_FLAT_STEPS = 100
LOOK_EVERY = {"codebooks": 5, "reconstruction": 5}  # arrays are small here: ten times as often as by default


def build_model(quantizer: str = "ema", length: int = LENGTH) -> DocumentRQVAE:
    """Return the untrained model, for this script and for ``vqwatch evaluate --model``."""
    return DocumentRQVAE(documents.DIM, length=length, quantizer=quantizer)


def validation_batches(batch_size: int = 16, length: int = LENGTH) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every held-out document once: features ``[B, T, D]`` and mask ``[B, T]``; the last batch may be smaller."""
    _, held_out = documents.load()
    windows = held_out.windows(length)
    for at in range(0, len(windows), batch_size):
        yield documents.pad(windows[at : at + batch_size], length)


def falling(step: int) -> float:
    """Return the factor of the learning rate: 1 at first, then the inverse square root of the step."""
    return min(1.0, math.sqrt(LR_FLAT_STEPS / (step + 1)))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default=None, help="the run's name (default: VQWATCH_RUN, or one made up)")
    parser.add_argument(
        "--endpoint", default=None, help="the daemon's socket (default: VQWATCH_ENDPOINT or the local one)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="documents in a batch")
    parser.add_argument("--length", type=int, default=LENGTH, help="frames of a document in a batch")
    parser.add_argument("--quantizer", choices=sorted(QUANTIZERS), default="ema")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rate", type=float, default=0.0, help="at most this many steps a second (0: no limit)")
    parser.add_argument("--budget", type=float, default=0.01, help="share of a step that watching may take (inf: any)")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME@FROM:TO", help="may be given repeatedly")
    parser.add_argument("--list-faults", action="store_true", help="name the faults and leave")
    parser.add_argument("--checkpoint", type=Path, default=None, help="write the model's state here at the end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train for as many steps as asked, or until the daemon asks to stop."""
    options = parse(argv)
    if options.list_faults:
        print("\n".join(f"{name:20} {summary(fault)}" for name, fault in CATALOGUE.items()))
        return
    torch.set_num_threads(options.threads)
    rank = join()
    corpus, _ = documents.load()
    torch.manual_seed(options.seed)
    model = build_model(options.quantizer, options.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, falling)
    batches = documents.batches(corpus, options.batch_size, options.length, options.seed + rank)

    watch = vqwatch.attach(
        model, optimizer, run=options.run, endpoint=options.endpoint, every=LOOK_EVERY, budget=options.budget
    )
    faults = Schedule(options.fault, model, optimizer, watch)
    for step, (features, mask) in enumerate(islice(batches, options.steps)):
        began = time.monotonic()
        faults.at(step)

        reconstruction, codes, losses = model(features, mask)
        optimizer.zero_grad()
        losses["total"].backward()
        average_gradients(model)
        norm = clip_grad_norm_(model.parameters(), 1.0)
        if norm.isfinite():
            optimizer.step()
        schedule.step()

        watch.step(
            step, losses=losses, codes=codes, original=features, reconstructed=reconstruction, mask=mask, grad_norm=norm
        )
        if watch.stop_requested:
            break
        if step % 100 == 0:
            print(
                f"step {step}: " + ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items()), flush=True
            )
        if options.rate:
            time.sleep(max(0.0, began + 1 / options.rate - time.monotonic()))
    watch.close()
    leave()
    if options.checkpoint is not None:
        torch.save(model.state_dict(), options.checkpoint)


if __name__ == "__main__":
    main()
