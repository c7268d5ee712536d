"""A training without torch, for faults: it starts in no time, and tells what they did to it.

Prints "half" when half of its steps are done, "stepped" after the last, and one line of JSON before it ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import vqwatch


def loss(step: int, rank: int) -> float:
    """Return a loss that differs from rank to rank, and whose sum over ranks no float holds exactly."""
    return step % 7 + 0.1 * rank


def resident_kb() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def threads() -> int:
    """Return how many threads this process has, in Python or not."""
    return len(list(Path("/proc/self/task").iterdir()))


def fork_and_use(watch: Any, step: int) -> None:
    """Do what a DataLoader worker does: fork, and use everything there by accident."""
    child = os.fork()
    if child == 0:
        watch.step(step, losses={"total": 1.0})
        watch.close(1.0)
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.004)
    parser.add_argument("--start", type=Path, help="a file that will hold the Unix time of step 0, for several ranks")
    parser.add_argument("--until", type=Path, help="a file that will hold the number of the last step")
    parser.add_argument("--close", type=float, default=15.0)
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--tensors", action=argparse.BooleanOptionalAction, default=True)
    chosen = parser.parse_args()

    began = time.perf_counter()
    watch = vqwatch.attach(run="tiny", rank=chosen.rank, world_size=chosen.ranks, budget=math.inf)
    attaching = time.perf_counter() - began
    threads_before = threads()
    noise = np.random.default_rng(0)
    weights = np.zeros(64)
    while chosen.start is not None and not chosen.start.exists():
        watch.flush(0.05)
        time.sleep(0.02)
    start = time.time() if chosen.start is None else float(chosen.start.read_text())
    seconds: list[float] = []
    memory: list[int] = []
    step, last = 0, chosen.steps
    while step < last:
        step += 1
        weights += 1e-3 * noise.normal(size=64)
        sample = noise.normal(size=(2, 16, 32)).astype(np.float32)
        codes = noise.integers(0, 256, (8, 4, 100)).astype(np.int16)
        more = {"codes": codes, "original": sample, "reconstructed": sample} if chosen.tensors else {}
        began = time.perf_counter()
        watch.step(step, losses={"total": loss(step, chosen.rank)}, grad_norm=math.nan, **more)
        seconds.append(time.perf_counter() - began)
        if step == last // 2:
            if chosen.fork:
                fork_and_use(watch, step)
            memory.append(resident_kb())
            print("half", flush=True)
        if chosen.until is not None:
            last = int(chosen.until.read_text()) if chosen.until.exists() else step + 1
        time.sleep(max(0.0, start + step * chosen.pace - time.time()))
    memory.append(resident_kb())
    print("stepped", flush=True)
    began = time.perf_counter()
    watch.close(chosen.close)
    closing = time.perf_counter() - began
    half = len(seconds) // 2
    print(
        json.dumps(
            {
                "steps": step,
                "digest": hashlib.sha256(weights.tobytes()).hexdigest(),
                "p50_before": float(np.median(seconds[:half])),
                "p50_after": float(np.median(seconds[half:])),
                "p99": float(np.quantile(seconds, 0.99)),
                "longest": max(seconds),
                "grown_kb": memory[-1] - memory[0],
                "attaching": attaching,
                "closing": closing,
                "threads_before": threads_before,
                "threads_left": threads(),
                "dropped": watch.dropped,
                "acknowledged": watch._link.backlog.first - 1 if hasattr(watch, "_link") else 0,
                "sent": dict(watch._link.sent) if hasattr(watch, "_link") else {},
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
