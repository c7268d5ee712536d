"""A small real training that tells a logger what it does: ``logged_training.py none|vqwatch|wandb FOLDER``.

The same residual autoencoder, told to nobody, to vqwatch or to Weights & Biases. Prints "service PID" where the logger
has a process beside the training, the number of every step, "stepped" after the last, and one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from tests.emitter.core.hand import Loop

Tell = Callable[[int, dict[str, Any]], None]
End = Callable[[], dict[str, int]]
"""Says goodbye; returns what was left out on the way."""

HISTOGRAMS = 8
"""How many codebooks a training of usual size shows the use of, each a histogram of 256 codes."""


def to_nobody(_folder: str) -> tuple[Tell, End]:
    """Tell nobody."""
    return lambda _step, _told: None, dict


def to_vqwatch(_folder: str) -> tuple[Tell, End]:
    """Tell vqwatch everything at every step, a megabyte each; the endpoint comes from the environment."""
    import vqwatch
    from vqwatch.schedule import EVERYTHING

    watch = vqwatch.attach(LOOP.model, LOOP.optimizer, run="compared", budget=math.inf, every=EVERYTHING)
    assert watch.flush(10.0)
    sample = torch.zeros(64, 125, 16)

    def tell(step: int, told: dict[str, Any]) -> None:
        watch.step(step, losses=told["losses"], codes=told["codes"], original=sample, reconstructed=sample)

    def end() -> dict[str, int]:
        watch.close()
        return watch.dropped

    return tell, end


def to_wandb(folder: str) -> tuple[Tell, End]:
    """Tell Weights & Biases, offline: the losses, and which codes were used, as its users do."""
    import wandb

    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(console="off", x_disable_stats=True))
    (service,) = psutil.Process().children()
    print("service", service.pid, flush=True)

    def tell(_step: int, told: dict[str, Any]) -> None:
        used = np.bincount(told["codes"].flatten().numpy(), minlength=256), np.arange(257)
        histograms = {f"codes/{layer}": wandb.Histogram(np_histogram=used) for layer in range(HISTOGRAMS)}
        run.log({**{name: loss.item() for name, loss in told["losses"].items()}, **histograms})

    def end() -> dict[str, int]:
        run.finish()
        return {}

    return tell, end


LOGGERS = {"none": to_nobody, "vqwatch": to_vqwatch, "wandb": to_wandb}
LOOP = Loop()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("logger", choices=LOGGERS)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=450)
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    random.seed(0)
    tell, end = LOGGERS[chosen.logger](chosen.folder)
    seconds: list[float] = []
    of_processor: list[float] = []
    for step in range(1, chosen.steps + 1):
        told = LOOP.step()
        began, worked = time.perf_counter(), time.thread_time()
        tell(step, told)
        seconds.append(time.perf_counter() - began)
        of_processor.append(time.thread_time() - worked)
        print(step, flush=True)
    print("stepped", flush=True)
    dropped = end()
    digest = hashlib.sha256()
    for value in LOOP.model.state_dict().values():
        digest.update(value.numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr(random.getstate()).encode())
    result = {"digest": digest.hexdigest(), "dropped": dropped, "seconds": seconds, "of_processor": of_processor}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
