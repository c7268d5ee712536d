"""What one training step costs the daemon: decoding, counting, every reading, every shipped rule.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.daemon

The standard step: scalars (3 losses, gradient norm, 8 residual energies) and codes 16 x 500 x 8 in 256,
as frames with the 16 bits a code that the emitter sends.
Processor time of one core, no socket; ``--profile`` shows where it goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Codes, Hello, Layer, Origin, Step, Tensor, decode, encode
from vqwatch_daemon import heap
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_rules import Engine, load

LAYERS = tuple(Layer(str(index), "ema", 256, 1024, decay=0.99, threshold=2.0) for index in range(8))
NAMES = tuple(layer.name for layer in LAYERS)
ORIGIN = Origin("benchmark", 0, "s")


def frames(step: int, indices: NDArray[Any]) -> list[list[Any]]:
    """Return the two messages of a standard step."""
    losses = {"total": 1.0 + 0.1 * (step % 7), "recon": 0.8, "vq": 0.2 + 0.01 * (step % 5)}
    energy = {name: 0.5 ** (row + 1) for row, name in enumerate(NAMES)}
    now = int((1_000 + 0.05 * step) * 1e9)
    scalars = Step(ORIGIN, step + 1, 1, now, step, losses, 1.5, {}, {"0": 1e-3}, 1.0, energy, None, {}, {}, 0.001)
    codes = Codes(ORIGIN, step, now, step, NAMES, Tensor("i16", indices.shape, indices.tobytes()))
    return [encode(scalars), encode(codes)]


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    hub = Hub(Book("d"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
    hub.receive(b"p", Hello(ORIGIN, 1, 1, 0, 1, LAYERS), 1_000.0)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (8, 16, 500), dtype=np.int16) for _ in range(16)]
    messages = [frames(step, batches[step % 16]) for step in range(1, options.steps + 1)]
    heap.settle()
    profile = cProfile.Profile()
    times = []
    for step, pair in enumerate(messages, start=1):
        if options.profile and step > 300:
            profile.enable()
        began = time.process_time()
        for message in pair:
            hub.receive(b"p", decode(message), 1_000.0 + 0.05 * step)
        times.append(time.process_time() - began)
        profile.disable()
    warm = np.array(times[300:]) * 1e3
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(35)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "ms_per_step_median": round(float(np.median(warm)), 3),
        "ms_per_step_mean": round(float(warm.mean()), 3),
        "ms_per_step_fastest_tenth": round(float(np.percentile(warm, 10)), 3),
        "ms_per_step_p99": round(float(np.percentile(warm, 99)), 3),
        "steps_per_second": round(1e3 / float(warm.mean())),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
