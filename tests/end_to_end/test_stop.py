"""``action: stop``: the daemon ends a training by an alert, where the user allowed it, whatever loop it runs in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.end_to_end.stopping import LOOPS, MOST_STEPS, NAN_FROM
from tests.servers import wait_for
from tests.watching import Daemon

Start = Callable[..., Daemon]


def command(loop: str, daemon: Daemon) -> list[str]:
    return [sys.executable, "-m", "tests.end_to_end.stopping", loop, daemon.endpoint]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_loss_ends_the_training_where_that_is_allowed(start_daemon: Start, loop: str) -> None:
    daemon = start_daemon("--allow-stop")
    ran = subprocess.run(command(loop, daemon), capture_output=True, text=True, check=False, timeout=120.0)
    assert ran.returncode == 0, ran.stderr
    ended = int(ran.stdout.rsplit("ended at step ", 1)[1])
    assert NAN_FROM < ended < MOST_STEPS
    assert daemon.alerts("firing", alertname="VqLossNotFinite", run=loop)
    ended_well = {"layers": "2", "run": loop, "state": "finished", "world_size": "1"}
    wait_for(lambda: daemon.value("vqwatch_run_info", **ended_well), 10.0, "the goodbye")


def test_nothing_is_stopped_unless_the_user_asks_for_it(start_daemon: Start) -> None:
    daemon = start_daemon()
    training = subprocess.Popen(command("plain", daemon), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: daemon.alerts("firing", alertname="VqLossNotFinite", run="plain"), 60.0, "the alert")
        daemon.wait_for_step("plain", NAN_FROM + 300)
    finally:
        training.kill()
        training.wait()
