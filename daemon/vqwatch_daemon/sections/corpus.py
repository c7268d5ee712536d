"""A whole validation set, batch by batch: statistics over samples, usage over everything. Knows no message and no run.

Scores are kept as sums, codes as counts and a sample of identifiers, so memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics import codebook, entropy
from vqwatch_daemon.metrics.counting import Repeats, count_assignments, count_repeats
from vqwatch_daemon.metrics.identifiers import IdentifierSample
from vqwatch_daemon.metrics.reconstruction import Scores, reconstruction

IDENTIFIERS_KEPT: Final = 1 << 18
"""Identifiers that are compared with each other: all of them up to here, a random sample beyond."""

SCORES: Final = {
    "mse": "mse",
    "snr_db": "snr_db",
    "cosine_similarity": "cosine",
    "temporal_consistency": "temporal",
    "temporal_correlation": "temporal_correlation",
    "spectral_distance_db": "spectral_db",
}
"""Name among the readings -> field of :class:`~vqwatch_daemon.metrics.reconstruction.Scores`."""


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
        """Return mean, population standard deviation, minimum and maximum; empty without values.

        >>> spread = Spread()
        >>> spread.add(np.array([1.0, 3.0])); spread.add(np.array([5.0, float("nan")]))
        >>> spread.statistics()
        {'mean': 3.0, 'std': 1.632993161855452, 'min': 1.0, 'max': 5.0}
        """
        if not self.count:
            return {}
        deviation = (max(self.squares, 0.0) / self.count) ** 0.5
        return {"mean": self.mean, "std": deviation, "min": self.low, "max": self.high}


class Corpus:
    """What a validation pass has shown so far; ``sizes`` [L] are the codebooks' sizes."""

    def __init__(self, sizes: Sequence[int] | NDArray[np.int64]) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        layers = len(self.sizes)
        self.counts = np.zeros((layers, int(self.sizes.max(initial=1))), np.int64)
        self.same = np.zeros(layers, np.int64)
        self.pairs = np.zeros(layers, np.int64)
        self.out_of_range = 0
        self.samples = 0
        self._identifiers = IdentifierSample(max(1, layers), IDENTIFIERS_KEPT, half_life=1e15)
        self._rng = np.random.default_rng(0)
        self._scores: dict[str, Spread] = {}
        self._scalars: dict[str, Spread] = {}

    def compare(
        self, original: NDArray[Any], reconstructed: NDArray[Any], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Take in samples [B, T, D] or [B, D] and their reconstruction. Raises ValueError when shapes do not fit.

        A sample with a value that is not finite has no scores; ``nonfinite_ratio`` is the share of such samples.
        """
        scores: Scores = reconstruction(original, reconstructed, mask).samples
        self.samples += len(scores.mse)
        for name, attribute in SCORES.items():
            self._scores.setdefault(name, Spread()).add(getattr(scores, attribute))
        valid = np.ones(len(scores.mse), bool) if mask is None else mask.reshape(len(mask), -1).any(axis=1)
        spoilt = np.isnan(scores.mse[valid])
        self._scores.setdefault("nonfinite_ratio", Spread()).add(spoilt.astype(np.float64))

    def assign(self, rows: Sequence[int], indices: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> None:
        """Take in codes [len(rows), ...] of the layers with these numbers; ``mask`` counts where its shape fits."""
        chosen = list(rows)
        valid = mask if mask is not None and mask.shape == indices.shape[1:] else None
        taken = count_assignments(indices, [int(self.sizes[row]) for row in chosen], valid)
        self.counts[chosen, : taken.counts.shape[1]] += taken.counts
        self.out_of_range += int(taken.out_of_range.sum())
        repeats = count_repeats(indices, valid)
        self.same[chosen] += repeats.same
        self.pairs[chosen] += repeats.pairs
        if chosen == list(range(len(self.sizes))):
            self._identifiers.add(indices, self._rng, valid)

    def note(self, scalars: Mapping[str, float]) -> None:
        """Take in numbers that somebody else computed, one for each name."""
        for name, value in scalars.items():
            self._scalars.setdefault(name, Spread()).add(np.array([value]))

    @property
    def repeats(self) -> Repeats:
        """How sticky the codes are, for the evidence behind them."""
        return Repeats(self.same, self.pairs)

    def statistics(self, training: NDArray[np.int64] | None = None) -> dict[tuple[str, str], float]:
        """Return (metric, stat) -> value: over samples for scores, over layers for usage.

        ``training`` [L, K] is the usage in the training window; half the summed difference of shares is the gap.
        """
        spreads = {**self._scores, **self._scalars}
        if self.counts.any():
            spreads.update(self._usage(training))
        return {(name, stat): value for name, spread in spreads.items() for stat, value in spread.statistics().items()}

    def _usage(self, training: NDArray[np.int64] | None) -> dict[str, Spread]:
        counts = self.counts
        found = {
            "codebook_utilization_ratio": codebook.utilization(counts, self.sizes),
            "codebook_perplexity": entropy.perplexity(counts),
            "codebook_assignments": counts.sum(axis=1).astype(np.float64),
        }
        if training is not None:
            width = counts.shape[1]
            shares = entropy.divide(counts, counts.sum(axis=1, keepdims=True))
            trained = entropy.divide(training[:, :width], training[:, :width].sum(axis=1, keepdims=True))
            found["codebook_usage_gap_ratio"] = np.abs(shares - trained).sum(axis=1) / 2
        sample = self._identifiers.compute()
        for name in ("unique_ratio", "collision_ratio", "effective_count"):
            found[f"identifier_{name}"] = np.array([getattr(sample, name)])
        return {name: _spread(values) for name, values in found.items()}

    def state(self) -> dict[str, Any]:
        """Return everything, numbers and arrays."""
        return {
            "counts": self.counts.copy(),
            "same": self.same.copy(),
            "pairs": self.pairs.copy(),
            "out_of_range": self.out_of_range,
            "samples": self.samples,
            "identifiers": self._identifiers.state(),
            "random": self._rng.bit_generator.state,
            "scores": {name: astuple(spread) for name, spread in self._scores.items()},
            "scalars": {name: astuple(spread) for name, spread in self._scalars.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of a corpus of the same sizes returned."""
        self.counts[:], self.same[:], self.pairs[:] = state["counts"], state["same"], state["pairs"]
        self.out_of_range, self.samples = state["out_of_range"], state["samples"]
        self._identifiers.restore(state["identifiers"])
        self._rng.bit_generator.state = state["random"]
        self._scores = {name: Spread(*values) for name, values in state["scores"].items()}
        self._scalars = {name: Spread(*values) for name, values in state["scalars"].items()}


def _spread(values: NDArray[np.float64]) -> Spread:
    spread = Spread()
    spread.add(values)
    return spread
