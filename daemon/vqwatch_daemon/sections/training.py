"""Losses, gradients and residual energies of one run: step scalars in, training readings out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

from vqwatch.wire import Step
from vqwatch_daemon.metrics import training
from vqwatch_daemon.metrics.residuals import residuals
from vqwatch_daemon.metrics.trend import Trend
from vqwatch_daemon.readings import Readings, known, one
from vqwatch_daemon.sections.exact import ExactSum
from vqwatch_daemon.sections.gather import Gather

TREND_READINGS: Final = 100
TREND_EVERY: Final = 10
"""Steps between two readings of the trend, and losses that it is fitted to."""

WAITING_STEPS: Final = 4096
"""Steps that may wait for a rank: many, for ranks that come back after the daemon was away replay one after another."""

RECONSTRUCTION_NAMES: Final = ("recon*", "rec", "rec_*")
VQ_NAMES: Final = ("vq*", "commit*", "quant*")
"""Names of loss components that count as reconstruction and as VQ loss; the first that fits is taken."""

_Values = dict[str, dict[str, float]]
_NO_VALUES: Final[dict[str, float]] = {}


class _Mean:
    """Means over the ranks of one step, value by value; a rank that did not report a value does not count for it.

    Sums are exact, so the order in which ranks were heard changes nothing. The first rank's values are kept as they
    are until a second rank comes: most runs have one.
    """

    __slots__ = ("_counts", "_only", "_sums")

    def __init__(self) -> None:
        self._only: _Values | None = None
        self._sums: dict[str, dict[str, ExactSum]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, values: _Values) -> None:
        if self._only is None and not self._sums:
            self._only = values
            return
        self._merge_first()
        self._merge(values)

    def _merge_first(self) -> None:
        if self._only is not None:
            self._merge(self._only)
            self._only = None

    def _merge(self, values: _Values) -> None:
        for group, entries in values.items():
            sums = self._sums.setdefault(group, {})
            for name, value in entries.items():
                if name not in sums:
                    sums[name] = ExactSum()
                sums[name].add(value)
                self._counts[group, name] = self._counts.get((group, name), 0) + 1

    def compute(self) -> _Values:
        if self._only is not None:
            return self._only
        return {
            group: {name: total.value / self._counts[group, name] for name, total in entries.items()}
            for group, entries in self._sums.items()
        }

    def state(self) -> list[list[Any]]:
        self._merge_first()
        return [
            [group, name, total.state(), self._counts[group, name]]
            for group, entries in self._sums.items()
            for name, total in entries.items()
        ]

    def restore(self, state: Iterable[Sequence[Any]]) -> None:
        for group, name, terms, count in state:
            self._sums.setdefault(group, {})[name] = ExactSum(terms)
            self._counts[group, name] = count


class Training:
    """What the scalars of a run's steps say, merged over ranks."""

    def __init__(self) -> None:
        self._layers: tuple[str, ...] = ()
        self._gather = Gather(WAITING_STEPS)
        self._means: dict[int, _Mean] = {}
        self._smoothed: dict[str, training.Smoothed] = {}
        self._trend: dict[str, Trend] = {}
        self._nonfinite: dict[str, int] = {}
        self._modules: dict[str, float] = {}
        self._steps = 0

    def add(self, message: Step, awaited: AbstractSet[int], now: float) -> list[tuple[int, Readings]]:
        """Take one rank's scalars; return the readings of each step that is complete with them.

        Non-finite values are counted at once, whichever ranks are still to come.
        """
        values = _values(message)
        bad = self._count_nonfinite(values)
        if self.is_late(message.step):
            return [(message.step, bad)] if bad else []
        self._means.setdefault(message.step, _Mean()).add(values)
        rank = message.origin.rank
        complete = [(step, self._read(step)) for step in self._gather.add(message.step, rank, awaited, now)]
        if bad and not complete:
            return [(message.step, bad)]
        if bad:
            complete[-1][1].update(bad)
        return complete

    def is_late(self, step: int) -> bool:
        """Return whether a step has been read already: what comes for it now is not in its means."""
        return self._gather.is_late(step)

    def settle(self, awaited: AbstractSet[int]) -> list[tuple[int, Readings]]:
        """Return the readings of steps that are complete now that only these ranks are awaited."""
        return [(step, self._read(step)) for step in self._gather.settle(awaited)]

    def overdue(self, now: float, patience_seconds: float) -> list[tuple[int, Readings]]:
        """Return the readings of steps that wait for a rank which does not come."""
        return [(step, self._read(step)) for step in self._gather.overdue(now, patience_seconds)]

    def _count_nonfinite(self, values: _Values) -> Readings:
        found = False
        for group, source in (("loss", "loss"), ("gradient", "gradient"), ("energy", "residual")):
            self._nonfinite.setdefault(source, 0)
            given = values.get(group, _NO_VALUES).values()
            if math.isfinite(sum(given)):  # then each of them is
                continue
            count = sum(not math.isfinite(value) for value in given)
            if count:
                self._nonfinite[source] += count
                found = True
        return self.nonfinite() if found else {}

    def count_nonfinite(self, source: str, count: int) -> Readings:
        """Count non-finite values that another section met; return the counters."""
        self._nonfinite[source] = self._nonfinite.get(source, 0) + count
        return self.nonfinite()

    def nonfinite(self) -> Readings:
        """Return the counters of non-finite values by source."""
        return {"nonfinite_total": {(source,): float(count) for source, count in self._nonfinite.items()}}

    def _read(self, step: int) -> Readings:
        values = self._means.pop(step).compute()
        self._steps += 1
        readings: Readings = {"step": one(step)}
        if self._steps == 1:
            readings.update(self.nonfinite())
        losses = values.get("loss", {})
        if losses:
            readings.update(self._losses(step, losses))
        if "gradient" in values:
            readings["gradient_norm"] = {(): values["gradient"]["norm"]}
        if "modules" in values:
            self._modules.update(values["modules"])  # a step may tell of some modules only
            readings["gradient_norm_by_module"] = _labelled(self._modules)
        if "rates" in values:
            readings["learning_rate"] = _labelled(values["rates"])
        if "update" in values:
            readings["update_to_weight_ratio"] = {(): values["update"]["ratio"]}
        if "energy" in values:
            readings.update(self._energies(values["energy"]))
        return readings

    def _losses(self, step: int, losses: dict[str, float]) -> Readings:
        smoothed = {}
        for name, value in losses.items():
            smoothed[name,] = self._smoothed.setdefault(name, training.Smoothed()).update(step, value)
            self._trend.setdefault(name, Trend(TREND_READINGS)).update(step, smoothed[name,])
        readings: Readings = {
            "loss": _labelled(losses),
            "loss_smoothed": known(smoothed, smoothed.values()),
            "loss_share_ratio": _finite(training.loss_shares(losses)),
        }
        if self._steps % TREND_EVERY == 0:
            readings["loss_slope"] = _finite({name: trend.slope for name, trend in self._trend.items()})
        names = tuple(losses)
        vq, reconstruction = _first(names, VQ_NAMES), _first(names, RECONSTRUCTION_NAMES)
        if vq is not None and reconstruction is not None:
            readings["loss_vq_to_reconstruction_ratio"] = one(training.ratio(losses[vq], losses[reconstruction]))
        return readings

    def _energies(self, energies: dict[str, float]) -> Readings:
        """Read the stack in its own order; a layer without an energy was dropped out at this step."""
        entering = energies.pop("", math.nan)
        found = residuals(entering, [energies.get(name, math.nan) for name in self._layers])
        labels = [(name,) for name in self._layers]
        return {
            "residual_energy_ratio": known(labels, found.energy_ratio),
            "residual_gain_db": known(labels, found.gain_db),
        }

    def lay_out(self, layers: Iterable[str]) -> None:
        """The residual stack has these layers from now on; everything else goes on."""
        self._layers = tuple(layers)

    def rewind(self, step: int) -> None:
        """Training has gone back to a checkpoint: steps from ``step`` on will come again."""
        self._gather.rewind(step)
        self._means = {known_step: mean for known_step, mean in self._means.items() if known_step < step}
        self._smoothed.clear()
        self._trend.clear()
        self._modules.clear()

    def state(self) -> dict[str, Any]:
        """Return counters, trends and the steps that wait for ranks, fit for JSON."""
        return {
            "nonfinite": dict(self._nonfinite),
            "modules": dict(self._modules),
            "steps": self._steps,
            "gather": self._gather.state(),
            "means": [[step, mean.state()] for step, mean in self._means.items()],
            "smoothed": {name: series.state() for name, series in self._smoothed.items()},
            "trend": {name: trend.state() for name, trend in self._trend.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._nonfinite = {name: int(count) for name, count in state["nonfinite"].items()}
        self._modules = dict(state["modules"])
        self._steps = int(state["steps"])
        self._gather.restore(state["gather"])
        for step, raw in state["means"]:
            self._means[step] = _Mean()
            self._means[step].restore(raw)
        for name, raw in state["smoothed"].items():
            self._smoothed[name] = training.Smoothed()
            self._smoothed[name].restore(raw)
        for name, raw in state["trend"].items():
            self._trend[name] = Trend(TREND_READINGS)
            self._trend[name].restore(raw)


def _values(message: Step) -> _Values:
    values: _Values = {}
    if message.losses:
        values["loss"] = dict(message.losses)
    if message.gradient_norm is not None:
        values["gradient"] = {"norm": message.gradient_norm}
    if message.gradient_norms:
        values["modules"] = dict(message.gradient_norms)
    if message.learning_rates:
        values["rates"] = dict(message.learning_rates)
    if message.update_ratio is not None:
        values["update"] = {"ratio": message.update_ratio}
    if message.input_energy is not None:
        values["energy"] = {"": message.input_energy, **message.residual_energy}
    return values


def _labelled(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _finite(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items() if math.isfinite(value)}


@lru_cache(maxsize=256)
def _first(names: tuple[str, ...], patterns: tuple[str, ...]) -> str | None:
    for pattern in patterns:
        for name in names:
            if fnmatchcase(name, pattern):
                return name
    return None
