"""A training that never was: believable readings of a healthy or a collapsing run, for the page to show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vqwatch_daemon.readings import Readings

LAYERS = 8
CODES = 256


class Training:
    """Readings and usage at any step; layer 3 collapses between ``collapse`` and ``collapse + 300``."""

    def __init__(self, seed: int = 0, collapse: int | None = None, layers: int = LAYERS) -> None:
        self._random = np.random.default_rng(seed)
        self._collapse = collapse
        self._layers = layers
        self._order = [self._random.permutation(CODES) for _ in range(layers)]
        self._evaluation: dict[tuple[str, ...], float] = {}

    def _sick(self, step: int) -> float:
        if self._collapse is None or not self._collapse <= step < self._collapse + 300:
            return 0.0
        return min(1.0, (step - self._collapse) / 60)

    def usage(self, step: int) -> dict[str, Any]:
        """Return counts per code, by layer."""
        warm = 1 - math.exp(-step / 150)
        counts = {}
        for layer in range(self._layers):
            used = CODES * (0.35 + 0.5 * warm - 0.025 * layer)
            if layer == 3:
                used = used * (1 - self._sick(step)) + 9 * self._sick(step)
            weights = np.exp(-np.arange(CODES) / (used / 2.2))
            weights[int(used) :] = 0
            counts[str(layer)] = self._random.multinomial(40_000, weights / weights.sum())[self._order[layer]]
        return counts

    def readings(self, step: int) -> Readings:
        """Return every reading that the page shows."""
        noise = self._random.normal
        usage = self.usage(step)
        names = [str(i) for i in range(self._layers)]
        shares = {name: counts / counts.sum() for name, counts in usage.items()}
        used = {name: np.count_nonzero(counts) / CODES for name, counts in usage.items()}
        entropy = {n: float(-(p[p > 0] * np.log(p[p > 0])).sum()) for n, p in shares.items()}
        sick = self._sick(step)
        decay = math.exp(-step / 400)
        recon = 0.08 + 0.9 * decay + 0.4 * sick + abs(noise(0, 0.01))
        vq = 0.06 + 0.12 * math.exp(-step / 250) + 0.9 * sick + abs(noise(0, 0.004))
        snr = 17.5 - 12 * decay - 9 * sick + noise(0, 0.15)
        layered = {
            "codebook_size": dict.fromkeys(names, float(CODES)),
            "codebook_utilization_ratio": used,
            "codebook_perplexity": {n: math.exp(e) for n, e in entropy.items()},
            "codebook_entropy_ratio": {n: e / math.log(CODES) for n, e in entropy.items()},
            "codebook_dead_codes": {n: CODES * (1 - u) for n, u in used.items()},
            "codebook_dead_ratio": {n: 1 - u for n, u in used.items()},
            "codebook_gini_ratio": {n: _gini(counts) for n, counts in usage.items()},
            "ema_revivals_per_step": {n: abs(noise(0, 0.3)) + (12 * sick if n == "3" else 0) for n in names},
            "ema_relative_movement_ratio": {n: 0.002 * (1 + 5 * decay) * math.exp(noise(0, 0.1)) for n in names},
            "ema_tiny_clusters": {n: round(CODES * (1 - used[n]) * 0.6) for n in names},
            "codebook_embedding_variance": {n: 0.5 / (1 + int(n)) * math.exp(noise(0, 0.02)) for n in names},
            "codebook_effective_rank": {n: 40 - 2 * int(n) + noise(0, 0.2) for n in names},
            "codebook_nonfinite_values": dict.fromkeys(names, 0.0),
            "residual_energy_ratio": {n: 0.62 ** (int(n) + 1) for n in names},
            "residual_gain_db": {n: 2.1 - 0.1 * int(n) + noise(0, 0.03) for n in names},
        }
        readings: Readings = {m: {(n,): float(v) for n, v in values.items()} for m, values in layered.items()}
        scalars = {
            "codebook_utilization_mean_ratio": float(np.mean(list(used.values()))),
            "codebook_utilization_worst_ratio": min(used.values()),
            "codebook_perplexity_mean": float(np.mean([math.exp(e) for e in entropy.values()])),
            "codebook_bitrate_efficiency_ratio": float(np.mean(list(entropy.values())) / math.log(CODES)),
            "identifier_unique_ratio": 0.93 - 0.3 * sick,
            "reconstruction_mse": recon / 8,
            "reconstruction_snr_db": snr,
            "reconstruction_cosine_similarity": 0.93 - 0.4 * decay - 0.2 * sick + noise(0, 0.003),
            "reconstruction_temporal_consistency": 0.88 - 0.3 * decay + noise(0, 0.004),
            "reconstruction_spectral_distance_db": 2.2 + 6 * decay + noise(0, 0.05),
            "loss_vq_to_reconstruction_ratio": vq / recon,
            "gradient_norm": (0.6 + 1.8 * decay) * math.exp(noise(0, 0.15)) + 6 * sick,
            "step": float(step),
            "steps_per_second": 24 + noise(0, 0.3),
            "message_delay_seconds": 0.0012 * math.exp(noise(0, 0.2)),
        }
        readings.update({metric: {(): float(value)} for metric, value in scalars.items()})
        readings["loss"] = {("total",): recon + vq, ("reconstruction",): recon, ("vq",): vq}
        readings["loss_share_ratio"] = {("reconstruction",): recon / (recon + vq), ("vq",): vq / (recon + vq)}
        modules = ("encoder", "quantizer", "decoder")
        readings["gradient_norm_by_module"] = {
            (m,): (i + 1) * 0.3 * math.exp(noise(0, 0.1)) for i, m in enumerate(modules)
        }
        readings["learning_rate"] = {("0",): 3e-4 * min(1, step / 200)}
        readings["emitter_overhead_ratio"] = {(str(rank),): 0.0021 * math.exp(noise(0, 0.1)) for rank in range(2)}
        pairs = [(a, b) for a in names for b in names if a < b]
        readings["codebook_usage_correlation"] = {p: 0.6 / (1 + abs(int(p[0]) - int(p[1]))) - 0.15 for p in pairs}
        readings["codebook_mutual_information_nats"] = {p: 0.3 / (int(p[1]) - int(p[0])) ** 2 for p in pairs}
        if step % 200 == 0 or not self._evaluation:
            for metric, mean in (("snr_db", snr), ("mse", recon / 8), ("cosine_similarity", 0.93 - 0.4 * decay)):
                for stat, value in (
                    ("mean", mean),
                    ("std", abs(mean) * 0.05),
                    ("min", mean * 0.8),
                    ("max", mean * 1.1),
                ):
                    self._evaluation[metric, stat] = float(value)
        readings["evaluation"] = dict(self._evaluation)
        return readings


def _gini(counts: Any) -> float:
    ordered = np.sort(counts).astype(float)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))
