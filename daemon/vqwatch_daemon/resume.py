"""A restarted daemon goes on where the one before it stopped: the newest good snapshot, then the journal after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from vqwatch_daemon.clock import Clock
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.keeper import Keeper

_log = logging.getLogger(__name__)


class Told(Protocol):
    """Those who remember what Alertmanager was told."""

    def state(self) -> dict[str, Any]:
        """Return what has been told."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it up again; ValueError on what was never written."""
        ...


def state(hub: Hub, told: Told, now: float) -> dict[str, Any]:
    """Return everything that outlives the daemon. Later changes of hub and alerts do not reach it."""
    return {"time": now, "hub": hub.state(), "alertmanagers": told.state()}


def resume(keeper: Keeper, hub: Hub, told: Told, clock: Clock) -> None:
    """Restore ``hub`` and ``told``, replay the journal, and let ``keeper`` write down what happens from here on.

    The time for which there was no daemon counts as nobody's silence. ``clock`` goes on from where the earlier daemon
    was, should the system's be behind it by now.
    """
    started = time.monotonic()
    latest: float | None = None

    def take(saved: dict[str, Any]) -> None:
        nonlocal latest
        hub.restore(saved["hub"])
        latest = float(saved["time"])
        try:
            told.restore(saved["alertmanagers"])
        except ValueError as error:
            _log.warning("state: %s; every alert that fires is told again", error)

    replayed = 0
    for record in keeper.recover(take):
        hub.replay(record)
        latest, replayed = record.now, replayed + 1
    if latest is not None:
        clock.not_before(latest)
    now = clock()
    hub.keeper = keeper
    keeper.snapshot(state(hub, told, now if latest is None else latest), now, time.monotonic())
    if latest is not None:
        clock.skipped()  # it is part of the absence
        hub.absent(now, now - latest)
        _log.info("state: %d runs go on after %.1f s; %d events replayed in %.2f s",
                  len(hub.runs), now - latest, replayed, time.monotonic() - started)  # fmt: skip
