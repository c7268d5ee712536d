"""Several processes that are the ranks of one group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from receiver import Receiver


def run_ranks(receiver: Receiver, ranks: int, arguments: Callable[[int], list[str]]) -> list[str]:
    """Run a Python program on every rank until all end by themselves; return what each wrote to standard error."""
    environment = {**os.environ, "VQWATCH_ENDPOINT": receiver.endpoint, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, *arguments(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        said = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * ranks, "\n".join(said)
    return said
