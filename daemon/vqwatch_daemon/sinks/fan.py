"""All sinks of a daemon as one observer: thins what happens, and gives it to every outlet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from vqwatch_daemon.readings import Readings
from vqwatch_daemon.sinks.outlet import Outlet
from vqwatch_daemon.sinks.records import End, Record, Usage, Values, change
from vqwatch_daemon.sinks.thinning import Thinner
from vqwatch_rules import Transition

LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "wandb": ("wandb", "PIL"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "jsonl": (),
}
"""What has to be installed for a sink; the extra of the same name brings it."""

MOST_RUNS: Final = 256
END_SECONDS: Final = 5.0
"""How long after the last goodbye a run is over: what was under way still comes."""


class Wanted(Protocol):
    """The settings that say which sinks there are."""

    @property
    def sinks(self) -> Mapping[str, str]:
        """Return kind -> target of the sinks asked for."""
        ...

    @property
    def sink_interval_seconds(self) -> float:
        """Return how often a metric goes to the sinks at most."""
        ...


def missing_library(kind: str) -> str:
    """Return what has to be installed for a sink before it can work, "" when nothing has."""
    missing = [name for name in LIBRARIES[kind] if find_spec(name) is None]
    return f"--{kind} needs {' and '.join(missing)}: pip install 'vqwatch[{kind}]'" if missing else ""


class Sinks:
    """An observer of the hub. Nothing here waits: thinning, and an append to each queue."""

    def __init__(self, outlets: Mapping[str, Outlet], interval: float) -> None:
        self.outlets = dict(outlets)
        self._thinner = Thinner(interval)
        self._last: dict[str, float] = {}
        self._finished: dict[str, float] = {}  # since when, for runs that were live
        self._live: set[str] = set()
        self._ended: set[str] = set()

    @classmethod
    def of(cls, settings: Wanted) -> Sinks:
        """Start the outlets that the settings ask for."""
        outlets = {kind: Outlet(kind, target) for kind, target in settings.sinks.items()}
        return cls(outlets, settings.sink_interval_seconds)

    def readings(self, run: str, step: int, now: float, readings: Readings) -> None:
        """Readings of one step changed together."""
        self._last[run] = now
        self._follow(run, step, now, readings)
        if run in self._ended:
            return
        for held_step, passed in self._thinner.offer(run, step, now, readings):
            self._put(Values(run, held_step, now, passed))
        if len(self._last) > MOST_RUNS:
            self._last = dict(sorted(self._last.items(), key=lambda item: item[1])[-MOST_RUNS // 2 :])
            self._thinner.forget(set(self._last))
            self._live &= self._last.keys()
            self._ended &= self._last.keys()

    def _follow(self, run: str, step: int, now: float, readings: Readings) -> None:
        """Say so, once, when a run that was live has ended; one that comes back, or is evaluated, goes on."""
        state = next((labels[0] for labels in readings.get("run_info", ())), "")
        if state == "live" or "evaluation" in readings:
            self._live.add(run)
            self._ended.discard(run)
            self._finished.pop(run, None)
        elif state == "finished" and run in self._live and now - self._finished.setdefault(run, now) >= END_SECONDS:
            self._end(run, step, now)

    def _end(self, run: str, step: int, now: float) -> None:
        self._live.remove(run)
        self._ended.add(run)
        del self._finished[run]
        for held_step, held in self._thinner.rest(run):
            self._put(Values(run, held_step, now, held))
        self._put(End(run, step, now))

    def usage(self, run: str, step: int, now: float, counts: Mapping[str, NDArray[Any]]) -> None:
        """How often each code was used, by layer."""
        if run in self._ended:
            return
        self._put(Usage(run, step, now, {layer: values.copy() for layer, values in counts.items()}))

    def transition(self, transition: Transition) -> None:
        """An alert changed its state; those about the daemon itself belong to no run and stay here."""
        found = change(transition)
        if found is not None and found.run and found.run not in self._ended:
            self._put(found)

    def _put(self, record: Record) -> None:
        for outlet in self.outlets.values():
            outlet.put(record)

    def own_readings(self) -> Readings:
        """Return what the daemon says of its sinks."""
        counts = {kind: outlet.counts() for kind, outlet in self.outlets.items()}
        return {
            "sink_written_total": {(kind,): float(count.written) for kind, count in counts.items()},
            "sink_dropped_total": {
                (kind, reason): float(getattr(count, reason))
                for kind, count in counts.items()
                for reason in ("full", "refused", "closed")
            },
            "sink_failures_total": {(kind,): float(count.failures) for kind, count in counts.items()},
            "sink_queue_records": {(kind,): float(count.queued) for kind, count in counts.items()},
            "sink_up": {(kind,): float(count.up) for kind, count in counts.items()},
        }

    def close(self, timeout: float) -> None:
        """Write what is held back and queued, all sinks side by side, at most ``timeout`` seconds; then give up."""
        for run in self._thinner.runs:
            for step, readings in self._thinner.rest(run):
                self._put(Values(run, step, self._last.get(run, 0.0), readings))
        deadline = time.monotonic() + timeout
        for outlet in self.outlets.values():
            outlet.finish(deadline)
        for outlet in self.outlets.values():
            outlet.join(deadline + 1.0)
