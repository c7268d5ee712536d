"""For every shipped rule: readings that raise it, and readings just this side of it.

A case changes some readings of a healthy world. The same table drives the engine and, as input series, promtool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_rules import Alert, Engine, LayerFacts, RuleSet, RunFacts, load

METRICS: Mapping[str, tuple[str, ...]] = {name: metric.labels for name, metric in CATALOGUE.items()}
RUN = "documents"
START = 6000
NOW = 1_700_000_000.0
FACTS = RunFacts(2, {name: LayerFacts("ema", 256, 64, 0.99, 2.0) for name in ("0", "1")})

Value = float | None | Callable[[int], float]
Key = tuple[str, tuple[str, ...]]
World = dict[str, dict[tuple[str, ...], float]]

PER_LAYER = {
    "codebook_size": 256.0,
    "codebook_utilization_ratio": 0.8,
    "codebook_perplexity": 170.0,
    "codebook_dead_ratio": 0.1,
    "codebook_entropy_ratio": 0.92,
    "codebook_utilization_slope": 0.0,
    "codebook_window_samples": 40_000.0,
    "codebook_effective_samples": 30_000.0,
    "codebook_zero_index_ratio": 0.01,
    "codebook_nonfinite_values": 0.0,
    "ema_relative_movement_ratio": 0.004,
    "ema_cluster_size_min": 0.5,
    "ema_cluster_size_mean": 16.0,
    "codebook_embedding_variance": 0.4,
    "ema_revivals_per_step": 0.2,
    "ema_revived_codes_total": 50.0,
    "ema_revivals_exact": 1.0,
    "ema_revival_churn_ratio": 0.001,
    "ema_threshold_to_uniform_ratio": 0.12,
    "ema_expired_codes": 3.0,
    "ema_unreplaced_ratio": 0.0,
    "ema_revival_survival_ratio": 0.9,
    "codebook_norm_to_latent_ratio": 0.8,
    "codebook_rank_divergence_ratio": 0.0,
    "codebook_reinitialised_ratio": 0.0,
    "codebook_near_duplicate_ratio": 0.01,
    "residual_gain_db": 1.2,
    "ema_updates": 6000.0,
}
PER_RUN: dict[Key, float] = {
    ("codebook_utilization_mean_ratio", ()): 0.8,
    ("reconstruction_snr_db", ()): 18.0,
    ("reconstruction_cosine_similarity", ()): 0.95,
    ("reconstruction_temporal_consistency", ()): 0.9,
    ("reconstruction_temporal_correlation", ()): 0.7,
    ("reconstruction_spectral_distance_db", ()): 4.0,
    ("loss", ("total",)): 0.12,
    ("loss", ("recon",)): 0.07,
    ("loss", ("vq",)): 0.05,
    ("loss_smoothed", ("total",)): 0.12,
    ("loss_smoothed", ("recon",)): 0.07,
    ("loss_smoothed", ("vq",)): 0.05,
    ("gradient_norm", ()): 0.8,
    ("loss_vq_to_reconstruction_ratio", ()): 0.7,
    ("stalled_ratio", ()): 1.0,
    ("sessions_gone", ()): 0.0,
    ("rank_lag_steps", ("0",)): 0.0,
    ("rank_lag_steps", ("1",)): 1.0,
    ("rank_silent_seconds", ("0",)): 0.1,
    ("rank_silent_seconds", ("1",)): 0.1,
    ("emitter_overhead_ratio", ("0",)): 0.004,
    ("emitter_dropped_total", ("0", "codes", "backlog")): 7.0,
    ("messages_lost_total", ("0",)): 0.0,
    ("run_info", ("running", "2", "2")): 1.0,
}
PER_DAEMON: dict[Key, float] = {
    ("messages_rejected_total", ("truncated",)): 3.0,
    ("messages_rejected_total", ("duplicate",)): 3.0,
    ("alert_delivery_failures_total", ("http://am",)): 0.0,
    ("rule_errors_total", ("VqSnrLow",)): 0.0,
    ("state_safe", ()): 1.0,
    ("kept_steps_ratio", ()): 1.0,
    ("peers_cut_off_total", ()): 1.0,
    ("sink_failures_total", ("wandb",)): 2.0,
    ("sink_dropped_total", ("wandb", "full")): 9.0,
    ("build_info", ("0.1.0", "3.11")): 1.0,
}


@dataclass(frozen=True)
class Case:
    """One severity of one rule. A value is for layer "1", or for the only series; a callable gets the sick step."""

    alert: str
    severity: str
    sick: Mapping[str | Key, Value]
    near: Mapping[str | Key, Value]
    steps: int = 60
    before: int = 5
    """Healthy steps first: rules with a history need one."""
    where: dict[str, str] = field(default_factory=dict)
    """The labels of the alert besides alertname, severity and run; default: layer 1 where the metric has layers."""


def _ramp(start: float, by: float) -> Callable[[int], float]:
    return lambda step: start + by * step


def _from(begin: int, value: float, before: float) -> Callable[[int], float]:
    return lambda step: value if step >= begin else before


def _cases() -> Iterator[Case]:
    layer = {"layer": "1"}
    util, ppl, dead = "codebook_utilization_ratio", "codebook_perplexity", "codebook_dead_ratio"
    yield Case("VqLayerUtilizationLow", "warning", {util: 0.45}, {util: 0.51}, where=layer)
    yield Case("VqLayerUtilizationLow", "critical", {util: 0.3}, {util: 0.41}, where=layer)
    mean = "codebook_utilization_mean_ratio"
    yield Case("VqMeanUtilizationLow", "warning", {mean: 0.49}, {mean: 0.5})
    yield Case("VqCodebookCollapse", "critical", {mean: 0.05}, {mean: 0.1})
    yield Case("VqUtilizationFull", "info", {util: 0.99}, {util: 0.95}, steps=210, where=layer)
    yield Case("VqPerplexityLow", "info", {ppl: 99.0}, {ppl: 100.0}, steps=110, where=layer)
    yield Case("VqPerplexityLow", "critical", {ppl: 49.0}, {ppl: 50.0}, steps=110, where=layer)
    yield Case("VqDeadCodes", "warning", {dead: 0.31}, {dead: 0.3}, where=layer)
    yield Case("VqDeadCodes", "critical", {dead: 0.5}, {dead: 0.4}, where=layer)
    entropy = "codebook_entropy_ratio"
    yield Case("VqEntropyDrop", "warning", {entropy: 0.6}, {entropy: 0.83}, 20, 220, where=layer)
    slope = "codebook_utilization_slope"
    yield Case("VqUtilizationFalling", "info", {slope: -0.003}, {slope: -0.0015}, where=layer)
    zero = "codebook_zero_index_ratio"
    yield Case("VqAllIndicesZero", "critical", {zero: 1.0}, {zero: 0.99}, where=layer)
    yield Case("VqCodebookNotFinite", "critical", {"codebook_nonfinite_values": 64.0}, {}, 3, where=layer)
    moved = "ema_relative_movement_ratio"
    yield Case("VqEmaMovementSpike", "warning", {moved: 0.2}, {moved: 0.03}, 3, 120, where=layer)
    yield Case("VqEmaStalled", "warning", {moved: 0.0}, {moved: 2e-6}, 210, where=layer)
    yield Case("VqEmaUnstable", "warning", {moved: 0.5}, {moved: 0.25}, 110, where=layer)
    yield Case(
        "VqClusterSizeLow", "info", {"ema_cluster_size_min": 0.05}, {"ema_cluster_size_min": 0.1}, 110, where=layer
    )
    variance = "codebook_embedding_variance"
    yield Case("VqEmbeddingCollapse", "critical", {variance: 1e-8}, {variance: 1e-6}, where=layer)
    revivals, churn = "ema_revivals_per_step", "ema_revival_churn_ratio"
    yield Case("VqRevivalRateHigh", "warning", {revivals: 6.0}, {revivals: 5.0}, where=layer)
    yield Case("VqRevivalRateHigh", "critical", {revivals: 11.0}, {revivals: 10.0}, 210, where=layer)
    yield Case("VqRevivalChurn", "warning", {churn: 0.1}, {churn: 0.05}, where=layer)
    yield Case("VqRevivalChurn", "critical", {churn: 0.6}, {churn: 0.3}, where=layer)
    threshold = "ema_threshold_to_uniform_ratio"
    yield Case("VqReplacementThresholdTooHigh", "warning", {threshold: 1.0}, {threshold: 0.5}, where=layer)
    kept = "ema_unreplaced_ratio"
    yield Case("VqReplacementNoOp", "warning", {kept: 0.2}, {kept: 0.05}, 110, where=layer)
    survival = "ema_revival_survival_ratio"
    yield Case("VqRevivedCodesDie", "warning", {survival: 0.1}, {survival: 0.2}, 110, where=layer)
    norm = "codebook_norm_to_latent_ratio"
    yield Case("VqCodebookNormShrunk", "warning", {norm: 0.05}, {norm: 0.1}, where=layer)
    drift = "codebook_rank_divergence_ratio"
    yield Case("VqRanksDrift", "warning", {drift: 0.02}, {drift: 0.01}, where=layer)
    yield Case("VqRanksDrift", "critical", {drift: 0.2}, {drift: 0.1}, where=layer)
    again = "codebook_reinitialised_ratio"
    first = (again, ("0",))
    yield Case("VqCodebookReinitialised", "critical", {again: 0.9, first: 0.8}, {again: 0.9}, 3)
    twins = "codebook_near_duplicate_ratio"
    yield Case("VqNearDuplicateCodes", "warning", {twins: 0.4}, {twins: 0.25}, 110, where=layer)
    gain = "residual_gain_db"
    yield Case("VqLayerRemovesNoEnergy", "warning", {gain: 0.02}, {gain: 0.06}, 210, where=layer)
    yield Case("VqLayerRemovesNoEnergy", "critical", {gain: -0.5}, {gain: 0.0}, 210, where=layer)

    snr = "reconstruction_snr_db"
    yield Case("VqSnrLow", "info", {snr: 14.0}, {snr: 15.0}, 210)
    yield Case("VqSnrLow", "critical", {snr: 9.0}, {snr: 10.0}, 210)
    yield Case("VqSnrDrop", "warning", {snr: 5.0}, {snr: 15.5}, 10, 220)
    cosine = "reconstruction_cosine_similarity"
    yield Case("VqCosineLow", "warning", {cosine: 0.7}, {cosine: 0.8}, 210)
    temporal = "reconstruction_temporal_consistency"
    yield Case("VqTemporalConsistencyDrop", "warning", {temporal: 0.1}, {temporal: 0.82}, 10, 220)
    order = "reconstruction_temporal_correlation"
    yield Case("VqTemporalOrderLost", "warning", {order: 0.0}, {order: 0.42}, 10, 220)
    spectral = "reconstruction_spectral_distance_db"
    yield Case("VqSpectralDistanceSpike", "warning", {spectral: 9.0}, {spectral: 5.0}, 10, 220)

    total, recon, vq = ("loss", ("total",)), ("loss", ("recon",)), ("loss", ("vq",))
    yield Case("VqLossNotFinite", "critical", {total: math.nan}, {total: 1e30}, 2, where={"component": "total"})
    grad = "gradient_norm"
    yield Case("VqGradientNotFinite", "warning", {grad: math.inf}, {grad: 3.0}, 30)
    yield Case("VqGradientNormHigh", "info", {grad: 6.0}, {grad: 5.0}, 30)
    yield Case("VqGradientNormHigh", "critical", {grad: 12.0}, {grad: 10.0}, 30)
    yield Case("VqGradientSpike", "warning", {grad: 8.0}, {grad: 3.0}, 8, 220)
    yield Case("VqGradientVanishing", "critical", {grad: 1e-7}, {grad: 1e-6}, 20)
    yield Case("VqGradientZero", "critical", {grad: 0.0}, {grad: 1e-8}, 20)
    ratio = "loss_vq_to_reconstruction_ratio"
    yield Case("VqLossDominates", "info", {ratio: 6.0}, {ratio: 5.0}, 110)
    yield Case("VqLossDominates", "warning", {ratio: 12.0}, {ratio: 10.0}, 110)
    smooth_recon, smooth_vq = ("loss_smoothed", ("recon",)), ("loss_smoothed", ("vq",))
    yield Case(
        "VqReconstructionLossHigh",
        "info",
        {smooth_recon: 0.2},
        {smooth_recon: 0.1},
        510,
        where={"component": "recon"},
    )
    yield Case("VqQuantizationLossHigh", "info", {smooth_vq: 0.6}, {smooth_vq: 0.5}, 510, where={"component": "vq"})
    yield Case(
        "VqLossesRising",
        "warning",
        {smooth_vq: _ramp(0.05, 0.001), smooth_recon: _ramp(0.07, 0.001)},
        {smooth_vq: _ramp(0.05, 0.001)},
        200,
        120,
    )
    yield Case("VqLossSpike", "warning", {total: 0.5}, {total: 0.2}, 10, 220, where={"component": "total"})
    yield Case("VqQuantizationLossZero", "warning", {vq: 0.0}, {recon: 0.0}, where={"component": "vq"})
    yield Case("VqEmaWarmupComplete", "info", {"ema_updates": 100.0}, {"ema_updates": 99.0}, 3, where=layer)

    yield Case("VqTrainingStalled", "warning", {"stalled_ratio": 50.0}, {"stalled_ratio": 20.0}, 70)
    yield Case("VqTrainingStalled", "critical", {"stalled_ratio": 200.0}, {"stalled_ratio": 100.0}, 610)
    yield Case("VqTrainerGone", "critical", {"sessions_gone": 1.0}, {}, 15)
    lag, silent = ("rank_lag_steps", ("1",)), ("rank_silent_seconds", ("1",))
    yield Case("VqRankLagging", "warning", {lag: 80.0}, {lag: 50.0}, 40, where={"rank": "1"})
    yield Case("VqRankSilent", "warning", {lag: 20.0, silent: 90.0}, {silent: 90.0}, 20, where={"rank": "1"})
    dropped = ("emitter_dropped_total", ("0", "codes", "backlog"))
    labels = {"rank": "0", "kind": "codes", "reason": "backlog"}
    yield Case("VqEmitterDropping", "warning", {dropped: _ramp(7, 10)}, {dropped: _ramp(7, 0.5)}, 60, where=labels)
    overhead = ("emitter_overhead_ratio", ("0",))
    yield Case("VqEmitterOverheadHigh", "warning", {overhead: 0.2}, {overhead: 0.1}, 70, where={"rank": "0"})
    lost = ("messages_lost_total", ("0",))
    yield Case("VqMessagesLost", "warning", {lost: 4.0}, {}, 20, where={"rank": "0"})
    seen = ("codebook_window_samples", ("1",))
    yield Case("VqDaemonBlind", "warning", {seen: None}, {}, 310, 0, where=layer)
    rejected, again_sent = (("messages_rejected_total", (reason,)) for reason in ("truncated", "duplicate"))
    yield Case("VqMessagesRejected", "warning", {rejected: 20.0}, {again_sent: 90.0}, 20, where={"reason": "truncated"})
    failed = ("alert_delivery_failures_total", ("http://am",))
    yield Case("VqAlertsNotDelivered", "warning", {failed: 1.0}, {}, 20, where={"alertmanager": "http://am"})
    broken = ("rule_errors_total", ("VqSnrLow",))
    yield Case("VqRuleFailing", "warning", {broken: 2.0}, {}, 20, where={"rule": "VqSnrLow"})
    yield Case("VqStateNotSafe", "warning", {"state_safe": 0.0}, {"state_safe": _from(15, 0.0, 1.0)}, 70)
    share = "kept_steps_ratio"
    yield Case("VqDaemonShedding", "warning", {share: 0.5}, {share: _from(15, 0.25, 1.0)}, 40)
    yield Case("VqPeersCutOff", "warning", {"peers_cut_off_total": 2.0}, {rejected: 20.0}, 20)
    failures, unwritten = ("sink_failures_total", ("wandb",)), ("sink_dropped_total", ("wandb", "full"))
    yield Case("VqSinkFailing", "warning", {failures: 3.0}, {unwritten: 10.0}, 20, where={"sink": "wandb"})
    unwritten_by = {"sink": "wandb", "reason": "full"}
    yield Case("VqSinkDropping", "warning", {unwritten: 10.0}, {failures: 3.0}, 20, where=unwritten_by)


CASES = tuple(_cases())


def shipped() -> RuleSet:
    """Return the shipped pack, checked against the daemon's own catalogue."""
    return load([], METRICS)


def world(step: int, changes: Mapping[str | Key, Value], sick_for: int | None) -> World:
    """Return all readings at ``step``, healthy but for ``changes`` once ``sick_for`` is a number (of sick steps)."""
    values: dict[Key, float] = {(name, (layer,)): value for name, value in PER_LAYER.items() for layer in FACTS.layers}
    values |= PER_RUN | PER_DAEMON
    values["step", ()] = float(step)
    # A ripple of some thousandths: nothing real is constant.
    ripple = 1.0 + 0.001 * ((step * 7) % 5 - 2)
    for key, value in values.items():
        if not key[0].endswith(("_total", "_size", "_info", "_ratio", "_updates", "_exact", "_safe", "step")):
            values[key] = value * ripple
    if sick_for is not None:
        for given, change in changes.items():
            key = given if isinstance(given, tuple) else (given, ("1",) if given in PER_LAYER else ())
            if change is None:
                del values[key]
            else:
                values[key] = change(sick_for) if callable(change) else change
    out: World = {}
    for (name, labels), value in values.items():
        out.setdefault(name, {})[labels] = value
    return out


def timeline(case: Case, changes: Mapping[str | Key, Value], start: int = START) -> Iterator[tuple[int, World]]:
    """Yield (step, readings): healthy steps first, then sick ones."""
    for index in range(case.before + case.steps):
        sick_for = index - case.before if index >= case.before else None
        yield start + index, world(start + index, changes, sick_for)


def played(
    case: Case, changes: Mapping[str | Key, Value], *, start: int = START, facts: RunFacts = FACTS, without: str = ""
) -> list[Alert]:
    """Play a timeline at one step a second and return the alerts that fire in the end."""
    engine = Engine(shipped_once())
    engine.describe(RUN, facts)
    for step, readings in timeline(case, changes, start):
        now = NOW + step - start
        readings.pop(without, None)
        ours = {name: series for name, series in readings.items() if not CATALOGUE[name].per_run}
        engine.observe(RUN, step, now, {name: series for name, series in readings.items() if name not in ours})
        engine.observe("", 0, now, ours)
        engine.tick(now)
    assert not engine.rule_errors
    return [alert for alert in engine.alerts() if alert.state == "firing"]


_SHIPPED: list[RuleSet] = []


def shipped_once() -> RuleSet:
    """Return the shipped pack, loaded once for all tests."""
    if not _SHIPPED:
        _SHIPPED.append(shipped())
    return _SHIPPED[0]
