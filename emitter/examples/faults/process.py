"""Faults of the process: it stands still, it is gone, or it says nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from faults.site import Site

STALL_SECONDS = 20.0


@contextmanager
def stall(_site: Site) -> Iterator[None]:
    """The loop hangs for twenty seconds in the middle of a step.

    A data loader that waits for a file system, a collective that waits for a rank, a GPU that is throttled.
    """
    time.sleep(STALL_SECONDS)
    yield


@contextmanager
def kill(_site: Site) -> Iterator[None]:
    """The process is killed: no exception, no goodbye.

    The out-of-memory killer, a preempted machine, a scheduler that lost patience.
    """
    os.kill(os.getpid(), signal.SIGKILL)
    yield


@contextmanager
def silent_rank(site: Site) -> Iterator[None]:
    """The rank trains on and says nothing more.

    Its network is gone, or its emitter; the other ranks go on, so that the run's readings look complete.
    """
    if site.watch is None:
        yield
        return
    pause = site.watch.pause()
    yield
    pause.resume()
