"""Every metric once: name, kind, unit, labels, help, source and bands.

Exposition, the reference page, rule validation and the dashboards all read this table; a name that is not here cannot
be exported. Names come without the ``vqwatch_`` prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "vqwatch_"

PER_CODE: Final = "codebook_code_assignments_total"
"""The one metric whose series are as many as there are codes: only scraped, and only when asked for."""

_PROPOSAL = "the monitoring proposal"


@dataclass(frozen=True, slots=True)
class Bands:
    """What a value means to the person who looks: inside ``healthy``, else inside ``concerning``, else critical.

    Both are closed intervals (low, high); an open side is None. With ``per_code`` the bounds are shares of the
    codebook's size, because a count of codes means nothing without it.
    """

    healthy: tuple[float | None, float | None]
    concerning: tuple[float | None, float | None]
    per_code: bool = False

    def verdict(self, value: float, codebook_size: int = 1) -> str:
        """Return "healthy", "concerning" or "critical"; a nan is critical.

        >>> Bands(healthy=(15, None), concerning=(10, None)).verdict(12)
        'concerning'
        """
        scale = codebook_size if self.per_code else 1
        for name, (low, high) in (("healthy", self.healthy), ("concerning", self.concerning)):
            if (low is None or value >= low * scale) and (high is None or value <= high * scale) and value == value:
                return name
        return "critical"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it counts in, and what it means.

    ``labels`` come after ``run``, which every metric has that is ``per_run``. ``unit`` is "" for pure numbers.
    """

    name: str
    group: str
    unit: str
    labels: tuple[str, ...]
    help: str
    source: str = ""
    kind: str = "gauge"
    per_run: bool = True
    bands: Bands | None = None

    @property
    def exposed_name(self) -> str:
        """The name that Prometheus sees."""
        return PREFIX + self.name

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels that Prometheus sees, ``run`` first."""
        return ("run", *self.labels) if self.per_run else self.labels


_LAYER = ("layer",)
_PAIR = ("layer", "other_layer")

# The proposal calls use above 95 % critical; moshi, VAR and DAC aim for it, so it is healthy here, and an info alert.
_UTILIZATION = Bands(healthy=(0.6, None), concerning=(0.4, None))
_PERPLEXITY = Bands(healthy=(100 / 256, None), concerning=(50 / 256, None), per_code=True)
_DEAD = Bands(healthy=(None, 0.2), concerning=(None, 0.4))

_CODEBOOK = (
    Metric("codebook_size", "codebook", "codes", _LAYER, "How many codes the codebook has."),
    Metric(
        "codebook_utilization_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Share of the codes that the window used at least once.",
        f"{_PROPOSAL}, 1.1; windowed as LlamaGen does",
        bands=_UTILIZATION,
    ),
    Metric(
        "codebook_utilization_vs_uniform_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Distinct codes seen over the number that uniform use would show in as many independent assignments; 1 is "
        "uniform at any sample size.",
        "occupancy of n draws from K: K(1-(1-1/K)^n)",
    ),
    Metric(
        "codebook_perplexity",
        "codebook",
        "codes",
        _LAYER,
        "Codes effectively in use over the window: exp of the plug-in entropy. Biased low when assignments are few.",
        f"{_PROPOSAL}, 1.1",
        bands=_PERPLEXITY,
    ),
    Metric(
        "codebook_perplexity_unbiased",
        "codebook",
        "codes",
        _LAYER,
        "Codes effectively in use over the window, corrected for the sample's size.",
        "Grassberger 2003",
        bands=_PERPLEXITY,
    ),
    Metric(
        "codebook_entropy_nats",
        "codebook",
        "nats",
        _LAYER,
        "Plug-in entropy of code usage over the window.",
        f"{_PROPOSAL}, 1.1",
    ),
    Metric(
        "codebook_entropy_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Entropy over its largest value, ln K; 1 is uniform use.",
        "moshi's rvq_entropy",
    ),
    Metric(
        "codebook_dead_codes",
        "codebook",
        "codes",
        _LAYER,
        "Codes assigned fewer than 5 times in the window. Absent until that proves anything: (K/0.1) ln(K/0.01) "
        "effective assignments.",
        f"{_PROPOSAL}, 1.1, with a gate on evidence",
    ),
    Metric(
        "codebook_dead_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Dead codes over codebook size, under the same gate.",
        f"{_PROPOSAL}, 7",
        bands=_DEAD,
    ),
    Metric(
        "codebook_alive_codes_estimate",
        "codebook",
        "codes",
        _LAYER,
        "Lower bound of the number of codes in use, from how many were seen once and twice; of use before dead codes "
        "can be told.",
        "Chao 1984",
    ),
    Metric(
        "codebook_gini_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Inequality of code usage: 0 is uniform, near 1 is collapse.",
        "Gini, ascending-sorted form",
    ),
    Metric(
        "codebook_utilization_slope",
        "codebook",
        "ratio per step",
        _LAYER,
        "Least-squares trend of the utilization over the last readings.",
        f"{_PROPOSAL}, 1.2",
    ),
    Metric("codebook_window_samples", "codebook", "assignments", _LAYER, "Assignments in the window."),
    Metric(
        "codebook_effective_samples",
        "codebook",
        "assignments",
        _LAYER,
        "Assignments in the window, divided by how long equal neighbours run beyond chance: the evidence behind "
        "every usage reading.",
    ),
    Metric(
        "codebook_tokens_per_step",
        "codebook",
        "assignments",
        _LAYER,
        "Assignments in a step, over all ranks: the mean of the steps since the last reading that had any.",
    ),
    Metric(
        "codebook_zero_index_ratio",
        "codebook",
        "ratio",
        _LAYER,
        "Share of the assignments since the last reading that went to code 0: 1 is the sign of a codebook full of NaN "
        "(argmin of NaN is 0).",
    ),
    Metric(
        "codebook_assignments_total",
        "codebook",
        "assignments",
        _LAYER,
        "Assignments counted since the run began.",
        kind="counter",
    ),
    Metric(
        PER_CODE,
        "codebook",
        "assignments",
        ("layer", "code"),
        "Assignments to each code since the run began, with `--per-code-series`. They add up over daemons; no rule of "
        "vqwatch's own sees them.",
        kind="counter",
    ),
    Metric(
        "codebook_ignored_assignments_total",
        "codebook",
        "assignments",
        _LAYER,
        "Entries that were no codes: negative or masked.",
        kind="counter",
    ),
    Metric(
        "codebook_invalid_assignments_total",
        "codebook",
        "assignments",
        _LAYER,
        "Indices at or beyond the codebook's size.",
        kind="counter",
    ),
)

_LAYERS = (
    Metric(
        "codebook_utilization_mean_ratio",
        "layers",
        "ratio",
        (),
        "Mean utilization over the layers.",
        f"{_PROPOSAL}, 1.3",
        bands=_UTILIZATION,
    ),
    Metric(
        "codebook_utilization_worst_ratio",
        "layers",
        "ratio",
        (),
        "Utilization of the least used layer.",
        f"{_PROPOSAL}, 1.3",
        bands=_UTILIZATION,
    ),
    Metric("codebook_perplexity_mean", "layers", "codes", (), "Mean perplexity over the layers.", f"{_PROPOSAL}, 1.3"),
    Metric(
        "codebook_bitrate_efficiency_ratio",
        "layers",
        "ratio",
        (),
        "Bits that the codes carry over the bits they cost: summed entropies over summed log codebook sizes.",
        "descript-audio-codec, compute_entropy",
    ),
    Metric(
        "codebook_usage_correlation",
        "layers",
        "correlation",
        _PAIR,
        "Pearson correlation of two layers' usage counts over the window.",
        f"{_PROPOSAL}, 1.3",
    ),
    Metric(
        "codebook_mutual_information_nats",
        "layers",
        "nats",
        _PAIR,
        "What one layer's code tells about another's, less the same for shuffled pairs. Absent when too few pairs "
        "were seen.",
    ),
    Metric(
        "identifier_unique_ratio",
        "layers",
        "ratio",
        (),
        "Distinct identifiers (tuples of all layers' codes) over identifiers seen.",
    ),
    Metric("identifier_collision_ratio", "layers", "ratio", (), "1 minus the unique ratio.", "LC-Rec"),
    Metric(
        "identifier_effective_count",
        "layers",
        "identifiers",
        (),
        "Identifiers effectively in use: inverse of the unbiased Simpson index.",
        "Simpson 1949",
        kind="untyped",  # a gauge; promtool reserves the suffix _count for histograms unless no type is stated
    ),
    Metric("identifier_samples", "layers", "identifiers", (), "Identifiers behind the identifier readings."),
)

_EMA = (
    Metric(
        "ema_movement",
        "ema",
        "distance per step",
        _LAYER,
        "Mean L2 change of a code's embedding per step, between snapshots.",
        f"{_PROPOSAL}, 2.2",
    ),
    Metric(
        "ema_relative_movement_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Change of the codebook over its norm, per step.",
        "jukebox's dk, made relative",
    ),
    Metric("ema_cluster_size_mean", "ema", "assignments", _LAYER, "Mean EMA cluster size.", f"{_PROPOSAL}, 2.2"),
    Metric("ema_cluster_size_min", "ema", "assignments", _LAYER, "Smallest EMA cluster size.", f"{_PROPOSAL}, 2.2"),
    Metric(
        "ema_cluster_size_std",
        "ema",
        "assignments",
        _LAYER,
        "Standard deviation of the EMA cluster sizes.",
        f"{_PROPOSAL}, 2.2",
    ),
    Metric(
        "ema_tiny_clusters", "ema", "codes", _LAYER, "Codes whose EMA cluster size is below 0.01.", f"{_PROPOSAL}, 2.2"
    ),
    Metric(
        "ema_perplexity",
        "ema",
        "codes",
        _LAYER,
        "Perplexity of the EMA cluster sizes: smoother and later than the window's.",
        "moshi's rvq_entropy",
    ),
    Metric(
        "ema_expired_codes",
        "ema",
        "codes",
        _LAYER,
        "Codes whose EMA cluster size is below the family's own replacement threshold.",
    ),
    Metric(
        "ema_revived_codes_total",
        "ema",
        "codes",
        _LAYER,
        "Codes replaced since the run began.",
        f"{_PROPOSAL}, 2.1",
        kind="counter",
    ),
    Metric(
        "ema_revivals_per_step",
        "ema",
        "codes per step",
        _LAYER,
        "Codes replaced per step between the last snapshots.",
        f"{_PROPOSAL}, 2.1",
    ),
    Metric(
        "ema_revivals_exact",
        "ema",
        "boolean",
        _LAYER,
        "1 when revivals follow from the EMA law and the counts of every step, 0 when they are estimated from jumps.",
    ),
    Metric(
        "ema_revival_survival_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Share of the revived codes that were assigned anything 50 to 100 steps later, and not revived again before.",
    ),
    Metric(
        "ema_unreplaced_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Share of the codes that have been below the replacement threshold for 100 steps and were not replaced.",
    ),
    Metric("ema_revival_churn_ratio", "ema", "ratio", _LAYER, "Share of the codebook replaced per step."),
    Metric(
        "ema_threshold_to_uniform_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Replacement threshold over the cluster size that uniform use would give: above 1 the codebook is replaced "
        "for ever.",
    ),
    Metric("ema_updates", "ema", "updates", _LAYER, "Training steps whose assignments were seen.", f"{_PROPOSAL}, 5.1"),
    Metric(
        "codebook_embedding_variance",
        "ema",
        "variance",
        _LAYER,
        "Variance of the embeddings across codes, mean over dimensions.",
        f"{_PROPOSAL}, 2.1",
    ),
    Metric(
        "codebook_effective_rank",
        "ema",
        "dimensions",
        _LAYER,
        "Dimensions that the codes in use span: exp of the entropy of the singular values. At every 4th snapshot.",
    ),
    Metric(
        "codebook_near_duplicate_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Share of the codes with another code at a cosine above 0.99.",
    ),
    Metric("codebook_norm_spread_ratio", "ema", "ratio", _LAYER, "Largest embedding norm over the median."),
    Metric(
        "codebook_norm_to_latent_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Median norm of the codes over the median norm of the vectors that they quantize; far below 1 after a "
        "defective initialisation.",
    ),
    Metric(
        "codebook_latent_mean_distance_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Distance between the means of latents and codes, over the latents' spread.",
        "Huh et al. 2023",
    ),
    Metric(
        "codebook_latent_variance_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Variance of the codes over the variance of the latents.",
        "Huh et al. 2023",
    ),
    Metric(
        "codebook_nonfinite_values",
        "ema",
        "values",
        _LAYER,
        "NaN and infinite values in the codebook and its EMA buffers.",
    ),
    Metric(
        "codebook_reinitialised_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Share of the codes that moved by more than their own norm between two snapshots.",
    ),
    Metric(
        "codebook_rank_divergence_ratio",
        "ema",
        "ratio",
        _LAYER,
        "Largest distance between the codebooks of two ranks, over the codebook's norm; estimated from linear "
        "sketches.",
    ),
)

_RECONSTRUCTION = (
    Metric(
        "reconstruction_mse",
        "reconstruction",
        "squared feature units",
        (),
        "Mean squared error over valid frames.",
        f"{_PROPOSAL}, 3.2",
    ),
    Metric(
        "reconstruction_snr_db",
        "reconstruction",
        "dB",
        (),
        "Signal power over error power, over valid frames.",
        f"{_PROPOSAL}, 3.1",
        bands=Bands(healthy=(15, None), concerning=(10, None)),
    ),
    Metric(
        "reconstruction_cosine_similarity",
        "reconstruction",
        "cosine",
        (),
        "Mean cosine between input and output frames.",
        f"{_PROPOSAL}, 3.1",
        bands=Bands(healthy=(0.8, None), concerning=(0.6, None)),
    ),
    Metric(
        "reconstruction_temporal_consistency",
        "reconstruction",
        "cosine",
        (),
        "Cosine between the frame-to-frame distances of input and output, over pairs of valid frames.",
        f"{_PROPOSAL}, 3.1",
    ),
    Metric(
        "reconstruction_temporal_correlation",
        "reconstruction",
        "correlation",
        (),
        "Pearson correlation of the same distances: 0 where frames lost their order, which leaves the cosine high.",
    ),
    Metric(
        "reconstruction_spectral_distance_db",
        "reconstruction",
        "dB",
        (),
        "Log-spectral distance along time.",
        f"{_PROPOSAL}, 3.1",
    ),
    Metric(
        "residual_energy_ratio",
        "reconstruction",
        "ratio",
        _LAYER,
        "Energy left after the layer over the energy that entered the first.",
    ),
    Metric(
        "residual_gain_db",
        "reconstruction",
        "dB",
        _LAYER,
        "How far the layer lowers the residual energy; near 0 it is useless, below 0 harmful.",
    ),
)

_TRAINING = (
    Metric(
        "loss", "training", "loss", ("component",), "Loss of the latest step, mean over ranks.", f"{_PROPOSAL}, 4.1"
    ),
    Metric(
        "loss_smoothed",
        "training",
        "loss",
        ("component",),
        "Loss, exponentially smoothed with a half-life of 50 steps.",
        f"{_PROPOSAL}, 4.2",
    ),
    Metric(
        "loss_slope",
        "training",
        "loss per step",
        ("component",),
        "Least-squares trend of the smoothed loss over the last readings.",
        f"{_PROPOSAL}, 4.2",
    ),
    Metric(
        "loss_share_ratio", "training", "ratio", ("component",), "Component over the total loss.", f"{_PROPOSAL}, 4.1"
    ),
    Metric(
        "loss_vq_to_reconstruction_ratio",
        "training",
        "ratio",
        (),
        "VQ loss over reconstruction loss.",
        f"{_PROPOSAL}, 4.2",
        bands=Bands(healthy=(0.1, 2), concerning=(None, 10)),
    ),
    Metric(
        "gradient_norm",
        "training",
        "norm",
        (),
        "Global gradient norm before clipping.",
        f"{_PROPOSAL}, 4.1",
        bands=Bands(healthy=(0.1, 5), concerning=(1e-6, 10)),
    ),
    Metric(
        "gradient_norm_by_module",
        "training",
        "norm",
        ("module",),
        "Gradient norm of a top-level module.",
        f"{_PROPOSAL}, 4.1",
    ),
    Metric(
        "update_to_weight_ratio",
        "training",
        "ratio",
        (),
        "Norm of the latest weight update over the norm of the weights, as a trainer tells it in the wire's "
        "`update_ratio`. vqwatch's own emitter tells none: it would have to keep a copy of the weights on the device.",
    ),
    Metric("learning_rate", "training", "rate", ("group",), "Learning rate of a parameter group.", f"{_PROPOSAL}, 4.1"),
    Metric("step", "training", "steps", (), "Latest training step."),
    Metric("steps_per_second", "training", "steps per second", (), "Training speed, from the median step time."),
    Metric(
        "nonfinite_total",
        "training",
        "values",
        ("source",),
        "NaN and infinite values seen since the run began, by source; one bad step between two scrapes still counts.",
        kind="counter",
    ),
    Metric("stalled_ratio", "training", "ratio", (), "Time since the latest step over the run's own usual step time."),
)

_EVALUATION = (
    Metric(
        "evaluation",
        "evaluation",
        "as the metric",
        ("metric", "stat"),
        "Full evaluation: mean, std, min and max over samples.",
        f"{_PROPOSAL}, 3.3",
    ),
    Metric("evaluation_step", "evaluation", "steps", (), "Step of the latest full evaluation."),
)

_SIDECAR = (
    Metric("build_info", "sidecar", "info", ("version", "python"), "Version of the daemon.", per_run=False),
    Metric("codebook_info", "sidecar", "info", ("layer", "kind", "family"), "How a codebook learns, and whose it is."),
    Metric(
        "sessions_gone",
        "sidecar",
        "ranks",
        (),
        "Ranks that fell silent without a goodbye: nothing for 300 s and for 50 of the run's usual steps.",
    ),
    Metric("run_info", "sidecar", "info", ("state", "world_size", "layers"), "What the run said of itself."),
    Metric(
        "messages_received_total", "sidecar", "messages", ("kind",), "Messages read.", kind="counter", per_run=False
    ),
    Metric(
        "messages_rejected_total",
        "sidecar",
        "messages",
        ("reason",),
        "Messages refused, by reason.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "messages_lost_total",
        "sidecar",
        "messages",
        ("rank",),
        "Messages that were sent and never arrived.",
        kind="counter",
    ),
    Metric(
        "messages_shed_total",
        "sidecar",
        "messages",
        ("rank",),
        "Best-effort messages left out because more came than the daemon can take.",
        kind="counter",
    ),
    Metric(
        "messages_late_total",
        "sidecar",
        "messages",
        ("rank",),
        "Steps whose scalars came after the step had been read without them; they are not in its means.",
        kind="counter",
    ),
    Metric(
        "kept_steps_ratio",
        "sidecar",
        "ratio",
        (),
        "Share of the steps whose best-effort messages are taken; below 1 the daemon sheds load.",
        per_run=False,
    ),
    Metric(
        "series_capped_total",
        "sidecar",
        "series",
        (),
        "Per-code series that were not given because of `--per-code-series`; always whole layers.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "emitter_dropped_total",
        "sidecar",
        "messages",
        ("rank", "kind", "reason"),
        "What the emitter could not send and dropped.",
        kind="counter",
    ),
    Metric(
        "emitter_overhead_ratio",
        "sidecar",
        "ratio",
        ("rank",),
        "Emitter's own time on the training thread over the step time.",
    ),
    Metric(
        "emitter_cadence_steps",
        "sidecar",
        "steps",
        ("rank", "kind"),
        "Every how many steps the emitter now captures a kind.",
    ),
    Metric(
        "last_message_timestamp_seconds",
        "sidecar",
        "seconds",
        ("rank",),
        "When the rank's latest message arrived, Unix time.",
    ),
    Metric("rank_lag_steps", "sidecar", "steps", ("rank",), "How far the rank is behind the one that is furthest."),
    Metric(
        "rank_silent_seconds",
        "sidecar",
        "seconds",
        ("rank",),
        "Time since the rank's latest message, while its session is open.",
    ),
    Metric(
        "message_delay_seconds",
        "sidecar",
        "seconds",
        (),
        "Time from step() to the daemon, of the latest message, by the two clocks.",
    ),
    Metric(
        "message_processing_seconds",
        "sidecar",
        "seconds",
        ("kind",),
        "Daemon time spent on messages: sum and count.",
        kind="summary",
        per_run=False,
    ),
    Metric("alerts_firing", "sidecar", "alerts", ("alertname", "severity"), "Alerts that fire now."),
    Metric(
        "alerts_sent_total", "sidecar", "alerts", ("alertmanager",), "Alerts delivered.", kind="counter", per_run=False
    ),
    Metric(
        "alert_delivery_failures_total",
        "sidecar",
        "alerts",
        ("alertmanager",),
        "Alerts that a delivery failed for.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "rule_errors_total",
        "sidecar",
        "errors",
        ("rule",),
        "Rules that failed to evaluate.",
        kind="counter",
        per_run=False,
    ),
    Metric("runs", "sidecar", "runs", (), "Runs that the daemon holds.", per_run=False),
    Metric(
        "peers_cut_off_total",
        "sidecar",
        "connections",
        (),
        "Connections closed because too many of their messages had to be refused.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "peers_refused_total",
        "sidecar",
        "connections",
        (),
        "Connections refused because of their key, or for want of one.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "series_dropped_total",
        "sidecar",
        "values",
        ("label",),
        "Values left out because the run uses too many names for this label.",
        kind="counter",
    ),
    Metric(
        "state_safe",
        "sidecar",
        "bool",
        (),
        "1 while everything acknowledged is written down in the state directory; at 0 nothing is acknowledged.",
        per_run=False,
    ),
    Metric(
        "state_snapshot_timestamp_seconds",
        "sidecar",
        "seconds",
        (),
        "When the latest snapshot of the state was taken, Unix time.",
        per_run=False,
    ),
    Metric(
        "state_write_failures_total",
        "sidecar",
        "failures",
        (),
        "Snapshots and journal records that could not be written.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "dropped_runs_total",
        "sidecar",
        "runs",
        (),
        "Runs refused because the daemon holds as many as it may.",
        kind="counter",
        per_run=False,
    ),
)

_SINKS = (
    Metric(
        "sink_written_total",
        "sidecar",
        "records",
        ("sink",),
        "Records that a sink (wandb, tensorboard, mlflow, jsonl) has written.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "sink_dropped_total",
        "sidecar",
        "records",
        ("sink", "reason"),
        "Records that a sink never got: its queue was full, it refused them, or the daemon closed first.",
        kind="counter",
        per_run=False,
    ),
    Metric(
        "sink_failures_total",
        "sidecar",
        "failures",
        ("sink",),
        "How often a sink failed, hung or died, and was begun again.",
        kind="counter",
        per_run=False,
    ),
    Metric("sink_queue_records", "sidecar", "records", ("sink",), "Records that wait for a sink.", per_run=False),
    Metric("sink_up", "sidecar", "bool", ("sink",), "1 while a sink's process is at work.", per_run=False),
)

CATALOGUE: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for group in (_CODEBOOK, _LAYERS, _EMA, _RECONSTRUCTION, _TRAINING, _EVALUATION, _SIDECAR, _SINKS)
    for metric in group
}

GROUPS: Final[Mapping[str, str]] = {
    "codebook": "Codebook use, per layer, over the window",
    "layers": "Across layers",
    "ema": "EMA and codebook, per layer",
    "reconstruction": "Reconstruction",
    "training": "Training",
    "evaluation": "Full evaluation",
    "sidecar": "The sidecar itself",
}
