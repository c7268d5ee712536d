"""The keys of the proposal: its own, those in the guide, and those that the sinks write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.sinks.names import KEYS, named

GUIDE = Path(__file__).parents[3] / "docs" / "moving-over.md"

PROPOSED = {
    "codebook/layer_3_utilization": "codebook_utilization_ratio",
    "codebook/layer_3_perplexity": "codebook_perplexity",
    "codebook/layer_3_dead_codes": "codebook_dead_codes",
    "codebook/avg_utilization": "codebook_utilization_mean_ratio",
    "codebook/avg_perplexity": "codebook_perplexity_mean",
    "codebook/worst_layer_utilization": "codebook_utilization_worst_ratio",
    "codebook/dead_code_revival_rate": "ema_revivals_per_step",
    "ema/layer_3_embedding_movement": "ema_movement",
    "ema/layer_3_cluster_size_mean": "ema_cluster_size_mean",
    "ema/layer_3_cluster_size_min": "ema_cluster_size_min",
    "ema/layer_3_cluster_size_std": "ema_cluster_size_std",
    "ema/layer_3_tiny_clusters": "ema_tiny_clusters",
    "ema/num_updates": "ema_updates",
    "recon/mse": "reconstruction_mse",
    "recon/snr_db": "reconstruction_snr_db",
    "recon/cosine_similarity": "reconstruction_cosine_similarity",
    "recon/temporal_consistency": "reconstruction_temporal_consistency",
    "loss_ratio/3": "loss_share_ratio",
    "train/loss_3": "loss",
    "grad_norm/global": "gradient_norm",
    "grad_norm/3": "gradient_norm_by_module",
    "train/lr": "learning_rate",
    "loss_decomposition/recon_vs_vq_ratio": "loss_vq_to_reconstruction_ratio",
    "loss_decomposition/3_trend": "loss_smoothed",
}
"""What the proposal logs, with every label 3."""


@pytest.mark.parametrize("key", PROPOSED)
def test_every_key_of_the_proposal_is_written(key: str) -> None:
    metric = PROPOSED[key]
    labels = ("3",) * len(CATALOGUE[metric].labels)
    assert (key, 1.5) in list(named(metric, {labels: 1.5}))


def test_every_metric_has_keys_and_no_two_share_one() -> None:
    keys = [key for name, metric in CATALOGUE.items() for key, _ in named(name, {(*"abc"[: len(metric.labels)],): 1.0})]
    assert len(keys) == len(set(keys))
    assert len(keys) >= len(CATALOGUE)


def test_the_guide_has_the_same_table() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `vqwatch_(\w+)(?:\{([\w,]+)\})?`", GUIDE.read_text(), re.MULTILINE)
    told = [(key, metric, tuple(labels.split(",")) if labels else ()) for key, metric, labels in rows]
    assert told == [(key.template, key.metric, CATALOGUE[key.metric].labels) for key in KEYS]


def test_folded_series_are_one_value() -> None:
    assert list(named("ema_updates", {("0",): 5.0, ("1",): 7.0})) == [("ema/num_updates", 7.0)]
    assert dict(named("ema_revivals_per_step", {("0",): 1.0, ("1",): 4.0})) == {"codebook/dead_code_revival_rate": 2.5}
