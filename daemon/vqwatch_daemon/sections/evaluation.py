"""Full validation passes of one run: every batch in, statistics over all samples out.

Statistics are over samples, not over batches of unequal size. Code usage is over the whole pass, without window; its
distance to the training window's usage is what hides behind assignments that are balanced in training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Evaluation, Layer
from vqwatch_daemon.arrays import as_array, as_floats, as_mask
from vqwatch_daemon.metrics import codebook, entropy
from vqwatch_daemon.metrics.counting import count_assignments
from vqwatch_daemon.metrics.identifiers import IdentifierSample
from vqwatch_daemon.metrics.reconstruction import reconstruction
from vqwatch_daemon.readings import Readings, one
from vqwatch_daemon.sections.refused import Refused

OPEN_PASSES: Final = 4
"""Passes that may be under way at once; the oldest is given up for a fifth."""

IDENTIFIERS_KEPT: Final = 1 << 18
"""Identifiers of a pass that are compared with each other: all of them up to here, a random sample beyond."""

SCORES: Final = {
    "mse": "mse",
    "snr_db": "snr_db",
    "cosine_similarity": "cosine",
    "temporal_consistency": "temporal",
    "spectral_distance_db": "spectral_db",
}


@dataclass(slots=True)
class Spread:
    """Count, mean, variance and range of values that come in batches; adds up without keeping them (Chan 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in values; nan ones are no evidence and are left out."""
        known = values[~np.isnan(values)].astype(np.float64)
        if not known.size:
            return
        mean = float(known.mean())
        total = self.count + known.size
        shift = mean - self.mean
        self.squares += float(((known - mean) ** 2).sum()) + shift * shift * self.count * known.size / total
        self.mean += shift * known.size / total
        self.count = total
        self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))

    def statistics(self) -> dict[str, float]:
        """Return mean, population standard deviation, minimum and maximum; empty without values."""
        if not self.count:
            return {}
        deviation = (max(self.squares, 0.0) / self.count) ** 0.5
        return {"mean": self.mean, "std": deviation, "min": self.low, "max": self.high}


@dataclass(slots=True)
class Pass:
    """One pass over the validation set, as far as it has come."""

    counts: NDArray[np.int64]
    identifiers: IdentifierSample
    scores: dict[str, Spread] = field(default_factory=dict)
    scalars: dict[str, Spread] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    samples: int = 0


class Evaluations:
    """The validation passes of a run; several ranks may share one."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._rows = {layer.name: row for row, layer in enumerate(layers)}
        self._sizes = np.array([layer.size for layer in layers], np.int64)
        self._passes: dict[tuple[str, int], Pass] = {}
        self._rng = np.random.default_rng(0)

    def add(self, message: Evaluation, training: NDArray[np.int64]) -> Readings | None:
        """Take one part of a pass; return its readings when it has ended on every rank that began it.

        ``training`` [layers, codes] is the training window's usage. Raises :class:`Refused` for what does not fit.
        """
        key = (message.name, message.step)
        if message.phase == "abandon":
            self._passes.pop(key, None)
            return None
        current = self._passes.get(key)
        if current is None:
            current = self._passes[key] = self._begin()
        current.ranks.add(message.origin.rank)
        if message.phase == "batch":
            self._batch(current, message)
        for name, value in message.scalars.items():
            current.scalars.setdefault(name, Spread()).add(np.array([value]))
        if message.phase != "end":
            return None
        current.ended.add(message.origin.rank)
        if current.ended < current.ranks:
            return None
        del self._passes[key]
        return self._read(current, message, training)

    def _begin(self) -> Pass:
        while len(self._passes) >= OPEN_PASSES:
            del self._passes[next(iter(self._passes))]
        counts = np.zeros((len(self._rows), int(self._sizes.max(initial=1))), np.int64)
        return Pass(counts, IdentifierSample(max(1, len(self._rows)), IDENTIFIERS_KEPT, half_life=1e15))

    def _batch(self, current: Pass, message: Evaluation) -> None:
        mask = as_mask(message.mask)
        if message.original is not None and message.reconstructed is not None:
            try:
                found = reconstruction(as_floats(message.original), as_floats(message.reconstructed), mask)
            except ValueError as error:
                raise Refused("mask", str(error)) from error
            current.samples += len(found.samples.mse)
            for name, attribute in SCORES.items():
                current.scores.setdefault(name, Spread()).add(getattr(found.samples, attribute))
        if message.codes is not None:
            self._count(current, message, mask)

    def _count(self, current: Pass, message: Evaluation, mask: NDArray[np.bool_] | None) -> None:
        assert message.codes is not None
        unknown = [name for name in message.layers if name not in self._rows]
        if unknown:
            raise Refused("unknown_layer", f"evaluation codes of {unknown}; announced: {list(self._rows)}")
        rows = [self._rows[name] for name in message.layers]
        indices = as_array(message.codes)
        valid = mask if mask is not None and mask.shape == indices.shape[1:] else None
        taken = count_assignments(indices, [int(self._sizes[row]) for row in rows], valid)
        current.counts[rows, : taken.counts.shape[1]] += taken.counts
        if rows == list(range(len(self._rows))):
            current.identifiers.add(indices, self._rng, valid)

    def state(self) -> dict[str, Any]:
        """Return the passes that are under way, numbers and arrays."""
        return {
            "passes": [
                {
                    "name": name,
                    "step": step,
                    "counts": current.counts.copy(),
                    "identifiers": current.identifiers.state(),
                    "scores": {key: astuple(spread) for key, spread in current.scores.items()},
                    "scalars": {key: astuple(spread) for key, spread in current.scalars.items()},
                    "ranks": sorted(current.ranks),
                    "ended": sorted(current.ended),
                    "samples": current.samples,
                }
                for (name, step), current in self._passes.items()
            ],
            "random": self._rng.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of the same layers returned."""
        for raw in state["passes"]:
            current = self._passes[raw["name"], raw["step"]] = self._begin()
            current.counts[:] = raw["counts"]
            current.identifiers.restore(raw["identifiers"])
            current.scores = {key: Spread(*values) for key, values in raw["scores"].items()}
            current.scalars = {key: Spread(*values) for key, values in raw["scalars"].items()}
            current.ranks, current.ended, current.samples = set(raw["ranks"]), set(raw["ended"]), raw["samples"]
        self._rng.bit_generator.state = state["random"]

    def _read(self, current: Pass, message: Evaluation, training: NDArray[np.int64]) -> Readings:
        series: dict[tuple[str, ...], float] = {}
        spreads = {**current.scores, **current.scalars}
        if current.counts.any():
            spreads.update(self._usage(current.counts, training))
            sample = current.identifiers.compute()
            for name in ("unique_ratio", "collision_ratio", "effective_count"):
                spreads[f"identifier_{name}"] = _spread(np.array([getattr(sample, name)]))
        for name, spread in spreads.items():
            for stat, value in spread.statistics().items():
                series[name, stat] = value
        return {"evaluation": series, "evaluation_step": one(message.step)}

    def _usage(self, counts: NDArray[np.int64], training: NDArray[np.int64]) -> dict[str, Spread]:
        """Return usage over the whole pass as spreads over layers, and the distance to the training's usage."""
        width = counts.shape[1]
        shares = entropy.divide(counts, counts.sum(axis=1, keepdims=True))
        trained = entropy.divide(training[:, :width], training[:, :width].sum(axis=1, keepdims=True))
        return {
            "codebook_utilization_ratio": _spread(codebook.utilization(counts, self._sizes)),
            "codebook_perplexity": _spread(entropy.perplexity(counts)),
            "codebook_usage_gap_ratio": _spread(np.abs(shares - trained).sum(axis=1) / 2),
        }


def _spread(values: NDArray[np.float64]) -> Spread:
    spread = Spread()
    spread.add(values)
    return spread
