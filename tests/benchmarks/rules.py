"""How long the rule engine takes per step: the shipped pack, 8 layers, healthy readings with noise.

    python tests/benchmarks/rules.py

Prints the median and the 99th percentile of `Engine.observe` for the readings of an ordinary step (codes, losses,
reconstruction), for a step that also brings a codebook snapshot, and for one with every layer's alert firing.
"""

from __future__ import annotations

import random
import statistics
import time

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_rules import Engine, LayerFacts, RunFacts, load

LAYERS = [str(layer) for layer in range(8)]
EVERY_STEP = {
    "codebook_size": 256.0,
    "codebook_utilization_ratio": 0.8,
    "codebook_perplexity": 170.0,
    "codebook_entropy_ratio": 0.93,
    "codebook_dead_ratio": 0.1,
    "codebook_utilization_slope": 0.0,
    "codebook_window_samples": 400_000.0,
    "codebook_effective_samples": 300_000.0,
    "codebook_zero_index_ratio": 0.004,
    "residual_gain_db": 1.5,
    "ema_updates": 5000.0,
}
SNAPSHOT = {
    "codebook_nonfinite_values": 0.0,
    "ema_relative_movement_ratio": 0.004,
    "ema_cluster_size_min": 1.0,
    "ema_cluster_size_mean": 30.0,
    "codebook_embedding_variance": 0.3,
    "ema_revivals_per_step": 0.1,
    "ema_revival_churn_ratio": 0.001,
    "ema_threshold_to_uniform_ratio": 0.1,
    "ema_unreplaced_ratio": 0.0,
    "codebook_norm_to_latent_ratio": 0.9,
    "codebook_rank_divergence_ratio": 0.0,
    "codebook_reinitialised_ratio": 0.0,
    "codebook_near_duplicate_ratio": 0.01,
}
SINGLE = {
    "codebook_utilization_mean_ratio": 0.8,
    "reconstruction_snr_db": 17.0,
    "reconstruction_cosine_similarity": 0.95,
    "reconstruction_temporal_consistency": 0.9,
    "reconstruction_spectral_distance_db": 4.0,
    "gradient_norm": 1.0,
    "loss_vq_to_reconstruction_ratio": 1.0,
    "stalled_ratio": 1.0,
    "step": 1.0,
}


def readings(noise: random.Random, *, snapshot: bool, factor: float = 1.0) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what one step brings; ``factor`` scales utilization, perplexity and entropy."""

    def near(value: float) -> float:
        return value * (1.0 + 0.01 * noise.random())

    per_layer = {**EVERY_STEP, **(SNAPSHOT if snapshot else {})}
    out: dict[str, dict[tuple[str, ...], float]] = {
        name: {(layer,): near(value) for layer in LAYERS} for name, value in per_layer.items()
    }
    for name in ("codebook_utilization_ratio", "codebook_perplexity", "codebook_entropy_ratio"):
        out[name] = {labels: value * factor for labels, value in out[name].items()}
    out |= {name: {(): near(value)} for name, value in SINGLE.items()}
    for name in ("loss", "loss_smoothed"):
        out[name] = {("total",): near(0.1), ("recon",): near(0.05), ("vq",): near(0.05)}
    return out


def timed(engine: Engine, start: int, steps: list[dict[str, dict[tuple[str, ...], float]]]) -> list[float]:
    """Feed the steps from ``start`` on and return the microseconds of CPU time that each took."""
    out = []
    for step, one in enumerate(steps, start):
        before = time.thread_time_ns()
        engine.observe("bench", step, 1.7e9 + step * 0.025, one)
        out.append((time.thread_time_ns() - before) / 1e3)
    return out


def main() -> None:
    """Measure and print."""
    noise = random.Random(0)
    engine = Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()}))
    engine.describe("bench", RunFacts(1, {layer: LayerFacts("ema", 256, 64, 0.99) for layer in LAYERS}))
    state = engine._run("bench")
    plain = [readings(noise, snapshot=False) for _ in range(1000)]
    both = [readings(noise, snapshot=True) for _ in range(1000)]
    sick = [readings(noise, snapshot=False, factor=0.1) for _ in range(1000)]

    def touched(one: dict[str, dict[tuple[str, ...], float]]) -> int:
        return len(
            {watch.rule.alert for name in one if name in state.channels for watch in state.channels[name].watches}
        )

    timed(engine, 6000, both)
    rows = [
        ("ordinary step", touched(plain[0]), timed(engine, 7000, plain)),
        ("with a snapshot", touched(both[0]), timed(engine, 8000, both)),
        ("codes of all layers sick", touched(sick[0]), timed(engine, 9000, sick)),
    ]
    print(f"{len(engine.ruleset.rules)} rules, {len(state.watches)} severities, {len(LAYERS)} layers")
    print(f"{'readings':26} {'rules':>5} {'metrics':>7} {'p50 us':>8} {'p99 us':>8}")
    for (name, rules, times), one in zip(rows, (plain[0], both[0], sick[0]), strict=True):
        p99 = statistics.quantiles(times, n=100)[98]
        print(f"{name:26} {rules:5} {len(one):7} {statistics.median(times):8.1f} {p99:8.1f}")
    before = time.perf_counter()
    for second in range(100):
        engine.tick(1.7e9 + 300 + second)
    print(f"tick: {(time.perf_counter() - before) * 1e4:.1f} us; alerts now: {len(engine.alerts())}")


if __name__ == "__main__":
    main()
