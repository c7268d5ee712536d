"""A training that loads an earlier checkpoint and goes on, in one process: its readings go back with it."""

from __future__ import annotations

from pathlib import Path

from tests.servers import wait_for
from tests.watching import Daemon

import vqwatch


def test_readings_follow_a_training_that_goes_back_within_its_session(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        watch = vqwatch.attach(run="back", endpoint=daemon.endpoint, budget=float("inf"))
        wait_for(lambda: watch.flush(5.0), what="the daemon's welcome")

        def train(first: int, last: int, loss: float) -> None:
            for step in range(first, last):
                watch.step(step, losses={"total": loss})
            assert watch.flush(20.0)

        def value(name: str) -> float | None:
            return daemon.value(f"vqwatch_{name}", run="back")

        train(0, 60, 1.0)
        wait_for(lambda: value("step") == 59.0, what="step 59")
        train(20, 40, 2.0)  # the checkpoint of step 19 again
        wait_for(lambda: value("step") == 39.0, what="step 39, for the second time")
        assert daemon.value("vqwatch_loss", component="total", run="back") == 2.0
        watch.close()
        assert daemon.value("vqwatch_messages_rejected_total", reason="step_repeated") is None
