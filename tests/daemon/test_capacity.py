"""A run takes the memory that docs/capacity.md says, and gives it back when it has been over for long enough."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from tests.messages import Trainer

from vqwatch.wire import Layer
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.window import UsageWindow
from vqwatch_rules import Engine, load

RETENTION_SECONDS = 60.0
STEPS = 30


def window_bytes(window: int, layers: int, codes: int) -> int:
    """The window's part of docs/capacity.md."""
    return window * layers * codes * 4 + layers * codes * 8 + window * layers * 16


def run_bytes(window: int, layers: int, codes: int, dim: int, ranks: int) -> float:
    """What docs/capacity.md says of a whole run."""
    per_code = layers * codes * (8 + 4 * dim)
    return window_bytes(window, layers, codes) + per_code + 1e6 + 0.15e6 * layers + 6e3 * ranks


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that has everything in memory which the first run brings with it, under a trace of what comes later."""
    here = Hub(
        Book("d"),
        Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})),
        retention_seconds=RETENTION_SECONDS,
    )
    train(here, "first", 2, 16, 4, 1)
    gc.collect()
    tracemalloc.start()
    yield here
    tracemalloc.stop()


def train(here: Hub, run: str, layers: int, codes: int, dim: int, ranks: int) -> None:
    stack = tuple(Layer(str(index), "ema", codes, dim, decay=0.99) for index in range(layers))
    rng = np.random.default_rng(0)
    trainers = [Trainer(run, rank, f"{run}{rank}", ranks) for rank in range(ranks)]
    for trainer in trainers:
        here.receive(b"", trainer.hello(stack), 0.0)
    for step in range(1, STEPS + 1):
        for trainer in trainers:
            here.receive(b"", trainer.step(step, losses={"total": 1.0}), float(step))
            here.receive(b"", trainer.codes(step, rng.integers(0, codes, (layers, 64))), float(step))
    codebooks = {str(index): rng.normal(size=(1, codes, dim)).astype(np.float32) for index in range(layers)}
    here.receive(b"", trainers[0].codebooks(STEPS, codebook=codebooks), float(STEPS))
    here.tick(float(STEPS))


@pytest.mark.parametrize(("window", "layers", "codes"), [(100, 8, 256), (2, 1, 4), (1000, 4, 1024)])
def test_the_window_takes_what_its_formula_says(window: int, layers: int, codes: int) -> None:
    made = UsageWindow(window, layers, codes)
    assert made.nbytes == window_bytes(window, layers, codes)


@pytest.mark.parametrize(
    ("layers", "codes", "dim", "ranks"), [(8, 256, 64, 1), (8, 256, 4, 32), (4, 1024, 64, 1), (2, 64, 256, 4)]
)
def test_a_run_takes_no_more_than_the_formula_says(hub: Hub, layers: int, codes: int, dim: int, ranks: int) -> None:
    before = tracemalloc.get_traced_memory()[0]
    train(hub, "run", layers, codes, dim, ranks)
    taken = tracemalloc.get_traced_memory()[0] - before
    stated = run_bytes(100, layers, codes, dim, ranks)
    print(f"{taken / 1e6:.2f} MB, stated {stated / 1e6:.2f} MB")
    assert 0.4 * stated < taken <= 1.1 * stated


def test_a_run_that_is_over_gives_its_memory_back(hub: Hub) -> None:
    before = tracemalloc.get_traced_memory()[0]
    train(hub, "run", 8, 256, 64, 4)
    taken = tracemalloc.get_traced_memory()[0] - before
    hub.tick(STEPS + 300.0 + RETENTION_SECONDS)
    assert "run" not in hub.runs
    gc.collect()
    left = tracemalloc.get_traced_memory()[0] - before
    print(f"{taken / 1e6:.2f} MB taken, {left / 1e3:.0f} kB left")
    assert left < 0.05 * taken
