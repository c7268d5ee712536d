"""Records as a daemon makes them, and an outlet that is seen through to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from vqwatch_daemon.sinks.outlet import Counts, Outlet
from vqwatch_daemon.sinks.records import Change, Record, Usage, Values

START = 1_790_000_000.0


def values(step: int, run: str = "demo", **loss: float) -> Values:
    """Return the readings of one step of a run with two layers."""
    return Values(
        run,
        step,
        START + step,
        {
            "codebook_utilization_ratio": {("0",): 0.75, ("1",): 0.5},
            "codebook_utilization_mean_ratio": {(): 0.625},
            "codebook_gini_ratio": {("0",): 0.25},
            "codebook_usage_correlation": {("0", "1"): -0.125},
            "ema_movement": {("0",): 0.03125},
            "reconstruction_snr_db": {(): 14.5 + step},
            "loss": {("total",): loss.get("total", 1.5)},
            "loss_share_ratio": {("recon",): 0.875},
            "gradient_norm": {(): 0.5},
            "learning_rate": {("0",): 0.001, ("1",): 0.002},
            "evaluation": {("mse", "mean"): 0.25},
        },
    )


def usage(step: int, run: str = "demo") -> Usage:
    """Return the usage of two codebooks of different size."""
    return Usage(run, step, START + step, {"0": np.array([3, 0, 1, 4]), "1": np.array([5, 9])})


def fired(step: int, run: str = "demo", state: str = "firing") -> Change:
    """Return an alert that began or ended to fire."""
    labels = {"alertname": "VqGradientSpike", "severity": "warning", "run": run}
    return Change(run, step, START + step, "VqGradientSpike", "warning", state, labels, "A spike.", 12.5)


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.01)


Deliver = Callable[..., Counts]


@pytest.fixture
def deliver() -> Deliver:
    """``deliver(kind, target, records)`` has a sink write records and end; returns the outlet's counts."""

    def run(kind: str, target: str, records: list[Record]) -> Counts:
        outlet = Outlet(kind, target)
        for record in records:
            outlet.put(record)
        deadline = time.monotonic() + 90.0
        outlet.finish(deadline)
        outlet.join(deadline + 1.0)
        return outlet.counts()

    return run


@pytest.fixture
def open_outlet() -> Iterator[Callable[..., Outlet]]:
    """``open_outlet(kind, target, **options)`` starts an outlet that the end of the test gives up."""
    with ExitStack() as stack:

        def start(kind: str, target: str, **options: Any) -> Outlet:
            outlet = Outlet(kind, target, **options)
            stack.callback(outlet.join, 0.0)
            stack.callback(outlet.finish, 0.0)
            return outlet

        yield start
