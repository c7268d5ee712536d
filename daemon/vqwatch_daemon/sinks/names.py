"""Under which keys readings are written: the monitoring proposal's where it has one, so that existing panels go on.

One table, read by the sinks, by ``docs/moving-over.md`` (a test compares them) and by nobody else. What the proposal
does not name is ``vqwatch/<catalogue name>``, followed by the label values: ``vqwatch/codebook_gini_ratio/0``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.readings import Series

PREFIX: Final = "vqwatch"


class Key(NamedTuple):
    """A key of the proposal: ``{layer}`` and so on stand for labels.

    With ``fold`` all series become one value: "max", "mean", or "first" by label.
    """

    metric: str
    template: str
    fold: str = ""


KEYS: Final = (
    Key("codebook_utilization_ratio", "codebook/layer_{layer}_utilization"),
    Key("codebook_perplexity", "codebook/layer_{layer}_perplexity"),
    Key("codebook_dead_codes", "codebook/layer_{layer}_dead_codes"),
    Key("codebook_utilization_slope", "codebook/layer_{layer}_utilization_trend"),
    Key("codebook_dead_ratio", "codebook/layer_{layer}_dead_code_ratio"),
    Key("codebook_utilization_mean_ratio", "codebook/avg_utilization"),
    Key("codebook_perplexity_mean", "codebook/avg_perplexity"),
    Key("codebook_utilization_worst_ratio", "codebook/worst_layer_utilization"),
    Key("codebook_usage_correlation", "codebook/layer_usage_correlation/{layer}_{other_layer}"),
    Key("ema_revivals_per_step", "codebook/dead_code_revival_rate", "mean"),
    Key("ema_movement", "ema/layer_{layer}_embedding_movement"),
    Key("ema_cluster_size_mean", "ema/layer_{layer}_cluster_size_mean"),
    Key("ema_cluster_size_min", "ema/layer_{layer}_cluster_size_min"),
    Key("ema_cluster_size_std", "ema/layer_{layer}_cluster_size_std"),
    Key("ema_tiny_clusters", "ema/layer_{layer}_tiny_clusters"),
    Key("ema_updates", "ema/num_updates", "max"),
    Key("reconstruction_mse", "recon/mse"),
    Key("reconstruction_snr_db", "recon/snr_db"),
    Key("reconstruction_cosine_similarity", "recon/cosine_similarity"),
    Key("reconstruction_temporal_consistency", "recon/temporal_consistency"),
    Key("loss", "train/loss_{component}"),
    Key("loss_share_ratio", "loss_ratio/{component}"),
    Key("loss_smoothed", "loss_decomposition/{component}_trend"),
    Key("loss_vq_to_reconstruction_ratio", "loss_decomposition/recon_vs_vq_ratio"),
    Key("gradient_norm", "grad_norm/global"),
    Key("gradient_norm_by_module", "grad_norm/{module}"),
    Key("learning_rate", "train/lr", "first"),
    Key("learning_rate", "train/lr_{group}"),
    Key("evaluation", "evaluation/{metric}_{stat}"),
)
"""The proposal's keys, sections 1.2, 1.3, 2.2, 3.2, 3.3, 4.1, 4.2 and 5.1."""

ALERTS: Final[Mapping[str, str]] = {"VqGradientSpike": "gradient_spike", "VqLossNotFinite": "nan_loss"}
"""The two alerts that the proposal logs (4.1), by the alert that took their place."""

_BY_METRIC: Final[Mapping[str, tuple[Key, ...]]] = {
    metric: tuple(key for key in KEYS if key.metric == metric) for metric in {key.metric for key in KEYS}
}


def _first(series: Series) -> float:
    return series[min(series)]


_FOLDS: Final[Mapping[str, Callable[[Series], float]]] = {
    "max": lambda series: max(series.values()),
    "mean": lambda series: sum(series.values()) / len(series),
    "first": _first,
}


def named(metric: str, series: Series) -> Iterator[tuple[str, float]]:
    """Yield the keys of one metric's series with their values.

    >>> dict(named("codebook_perplexity", {("0",): 201.5, ("1",): 190.0}))
    {'codebook/layer_0_perplexity': 201.5, 'codebook/layer_1_perplexity': 190.0}
    >>> dict(named("codebook_gini_ratio", {("0",): 0.25}))
    {'vqwatch/codebook_gini_ratio/0': 0.25}
    """
    if not series:
        return
    for key in _BY_METRIC.get(metric, ()):
        if key.fold:
            yield key.template, _FOLDS[key.fold](series)
            continue
        names = CATALOGUE[metric].labels
        for labels, value in series.items():
            yield key.template.format(**dict(zip(names, labels, strict=True))), value
    if metric not in _BY_METRIC:
        for labels, value in series.items():
            yield "/".join((PREFIX, metric, *labels)), value


def alert_key(name: str) -> str:
    """Return the key under which an alert is 1 while it fires, else 0."""
    return f"alerts/{ALERTS.get(name, name)}"


def usage_key(layer: str) -> str:
    """Return the key of a layer's histogram of code usage."""
    return f"codebook/layer_{layer}_usage"


HEATMAP: Final = "codebook/usage_heatmap"
CORRELATION: Final = "codebook/layer_usage_correlation"
EVALUATION_STEP: Final = "evaluation/step"
