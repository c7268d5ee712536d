"""What one training step costs the daemon: decoding, counting, every reading, every shipped rule.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.daemon

The standard step: scalars (3 losses, gradient norm, a learning rate) and codes 16 x 500 x 8 in 256, as the emitter
sends them: bundles of fifteen steps told together, 16 bits a code, and at each twentieth step, five times as often as
it does, residual energies, which are told alone. ``--alone`` sends each step by itself, with energies, as a training on
the CPU does that wants them all. Processor time of one core, no socket; ``--profile`` shows where it goes. A step's
time is a fifteenth of its bundle's.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.messages import codes_of_steps

from vqwatch.schedule import MOST_TOGETHER
from vqwatch.wire import (
    HEAD_BYTES,
    Bundled,
    Codes,
    Frame,
    Hello,
    Layer,
    Origin,
    Step,
    Tensor,
    bundle,
    decode_each,
    encode,
    encode_step,
    unbundle,
)
from vqwatch_daemon import heap
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_rules import Engine, load

LAYERS = tuple(Layer(str(index), "ema", 256, 1024, decay=0.99, threshold=2.0) for index in range(8))
NAMES = tuple(layer.name for layer in LAYERS)
ORIGIN = Origin("benchmark", 0, "s")
TOGETHER = MOST_TOGETHER
WARM_STEPS = 320


def scalars(step: int, energies: bool) -> Step:
    """Return what a step tells in numbers."""
    losses = {"total": 1.0 + 0.1 * (step % 7), "recon": 0.8, "vq": 0.2 + 0.01 * (step % 5)}
    energy = {name: 0.5 ** (row + 1) for row, name in enumerate(NAMES)} if energies else {}
    entered = 1.0 if energies else None
    return Step(ORIGIN, step + 1, 1, moment(step), step, losses, 1.5, {}, {"0": 1e-3}, entered, energy)


def moment(step: int) -> int:
    """Return when a step was, in nanoseconds: twenty a second."""
    return int((1_000 + 0.05 * step) * 1e9)


def codes(step: int, indices: NDArray[Any]) -> Codes:
    """Return a step's codes."""
    return Codes(ORIGIN, step, moment(step), step, NAMES, Tensor("i16", indices.shape, indices.tobytes()))


def together(steps: Sequence[Step], of_codes: Sequence[Codes]) -> list[Frame]:
    """Return the bundle of some steps and their codes, as the emitter makes it."""
    index: list[Bundled] = []
    for plain, group in groupby(steps, lambda step: not step.residual_energy):
        alike = list(group)
        if plain and len(alike) > 1:
            fields = {
                "losses": {name: [step.losses[name] for step in alike] for name in alike[0].losses},
                "gradient_norm": [step.gradient_norm for step in alike],
                "learning_rates": {"0": [step.learning_rates["0"] for step in alike]},
            }
            times, numbers = [step.time_ns for step in alike], [step.step for step in alike]
            index.append((bytes(encode_step(ORIGIN, alike[0].seq, 1, times, numbers, fields)[0]), ()))
        else:
            index += [(bytes(encode(step)[0]), ()) for step in alike]
    header, tensors = codes_of_steps(of_codes)
    size = memoryview(tensors[0].data).nbytes
    index.append((header, [(at * size, size) for at in range(len(tensors))]))
    frames = bundle(index, memoryview(b"".join([bytes(HEAD_BYTES), *(tensor.data for tensor in tensors)])))
    assert frames is not None
    return frames


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    hub = Hub(Book("d"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
    hub.receive(b"p", Hello(ORIGIN, 1, 1, 0, 1, LAYERS), 1_000.0)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (8, 16, 500), dtype=np.int16) for _ in range(16)]
    count = 1 if options.alone else TOGETHER
    sent: list[list[Sequence[Frame]]] = []
    for first in range(1, options.steps + 1, count):
        steps = [scalars(step, options.alone or step % 20 == 0) for step in range(first, first + count)]
        of_codes = [codes(step.step, batches[step.step % 16]) for step in steps]
        sent.append([encode(steps[0]), encode(of_codes[0])] if options.alone else [together(steps, of_codes)])
    heap.settle()
    profile = cProfile.Profile()
    times = []
    for number, messages in enumerate(sent):
        if options.profile and number * count > WARM_STEPS:
            profile.enable()
        now = 1_000.0 + 0.05 * number * count
        began = time.process_time()
        for frames in messages:
            for parts in unbundle(frames):
                for message in decode_each(parts):
                    hub.receive(b"p", message, now)
        times.append((time.process_time() - began) / count)
        profile.disable()
    warm = np.array(times[WARM_STEPS // count :]) * 1e3
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
