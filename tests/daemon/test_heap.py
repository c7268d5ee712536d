"""What the garbage collector is spared, and that it may be: steps leave no cycles behind."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
from tests.messages import Trainer, layers

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_rules import Engine, load

STEPS = 100


def test_steps_leave_nothing_behind_that_only_the_collector_could_free() -> None:
    hub = Hub(Book("d"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
    trainer, rng = Trainer(), np.random.default_rng(0)
    hub.receive(b"", trainer.hello(layers(4, 64)), 0.0)

    def train(first: int) -> None:
        for step in range(first, first + STEPS):
            now = float(step)
            losses = {"total": 1.0, "recon": 0.8, "vq": 0.2 if step % 7 else float("nan")}
            hub.receive(b"", trainer.step(step, losses=losses, gradient_norm=1.0), now)
            hub.receive(b"", trainer.codes(step, rng.integers(0, 64, (4, 2, 50))), now)
            books = {str(layer): rng.normal(size=(64, 4)).astype(np.float32) for layer in range(4)}
            sizes = {str(layer): rng.random(64).astype(np.float32) for layer in range(4)}
            hub.receive(b"", trainer.codebooks(step, codebook=books, cluster_size=sizes), now)
            sample = rng.normal(size=(2, 40, 8)).astype(np.float32)
            hub.receive(b"", trainer.reconstruction(step, sample, sample * np.float32(0.9)), now)
            hub.tick(now)
            hub.snapshot()

    train(1)
    gc.collect()
    gc.disable()
    try:
        train(1 + STEPS)
        found = gc.collect()
    finally:
        gc.enable()
    assert found < STEPS


def test_what_exists_when_the_heap_is_settled_is_never_walked_again() -> None:
    program = """
import gc
from vqwatch_daemon import heap
before = len(gc.get_objects())
heap.settle()
print(gc.get_freeze_count() > 0.9 * before, len(gc.get_objects()) < 0.1 * before, gc.get_threshold() == heap.THRESHOLDS)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True"] * 3
