"""What tells how codebooks are used, and how they move."""

from __future__ import annotations

from typing import Final

from vqwatch_daemon.catalogue.metric import LAYER, PROPOSAL, Bands, Metric

PER_CODE: Final = "codebook_code_assignments_total"
"""The one metric whose series are as many as there are codes: only scraped, and only when asked for."""

_PAIR: Final = ("layer", "other_layer")

# The proposal calls use above 95 % critical; moshi, VAR and DAC aim for it, so it is healthy here, and an info alert.
_UTILIZATION = Bands(healthy=(0.6, None), concerning=(0.4, None))
_PERPLEXITY = Bands(healthy=(100 / 256, None), concerning=(50 / 256, None), per_code=True)
_DEAD = Bands(healthy=(None, 0.2), concerning=(None, 0.4))

CODEBOOK: Final = (
    Metric("codebook_size", "codebook", "codes", LAYER, "How many codes the codebook has."),
    Metric(
        "codebook_utilization_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Share of the codes that the window used at least once.",
        f"{PROPOSAL}, 1.1; windowed as LlamaGen does",
        bands=_UTILIZATION,
    ),
    Metric(
        "codebook_utilization_vs_uniform_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Distinct codes seen over the number that uniform use would show in as many independent assignments; 1 is "
        "uniform at any sample size.",
        "occupancy of n draws from K: K(1-(1-1/K)^n)",
    ),
    Metric(
        "codebook_perplexity",
        "codebook",
        "codes",
        LAYER,
        "Codes effectively in use over the window: exp of the plug-in entropy. Biased low when assignments are few.",
        f"{PROPOSAL}, 1.1",
        bands=_PERPLEXITY,
    ),
    Metric(
        "codebook_perplexity_unbiased",
        "codebook",
        "codes",
        LAYER,
        "Codes effectively in use over the window, corrected for the sample's size.",
        "Grassberger 2003",
        bands=_PERPLEXITY,
    ),
    Metric(
        "codebook_entropy_nats",
        "codebook",
        "nats",
        LAYER,
        "Plug-in entropy of code usage over the window.",
        f"{PROPOSAL}, 1.1",
    ),
    Metric(
        "codebook_entropy_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Entropy over its largest value, ln K; 1 is uniform use.",
        "moshi's rvq_entropy",
    ),
    Metric(
        "codebook_dead_codes",
        "codebook",
        "codes",
        LAYER,
        "Codes assigned fewer than 5 times in the window. Absent until that proves anything: (K/0.1) ln(K/0.01) "
        "effective assignments.",
        f"{PROPOSAL}, 1.1, with a gate on evidence",
    ),
    Metric(
        "codebook_dead_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Dead codes over codebook size, under the same gate.",
        f"{PROPOSAL}, 7",
        bands=_DEAD,
    ),
    Metric(
        "codebook_alive_codes_estimate",
        "codebook",
        "codes",
        LAYER,
        "Lower bound of the number of codes in use, from how many were seen once and twice; of use before dead codes "
        "can be told.",
        "Chao 1984",
    ),
    Metric(
        "codebook_gini_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Inequality of code usage: 0 is uniform, near 1 is collapse.",
        "Gini, ascending-sorted form",
    ),
    Metric(
        "codebook_utilization_slope",
        "codebook",
        "ratio per step",
        LAYER,
        "Least-squares trend of the utilization over the last readings.",
        f"{PROPOSAL}, 1.2",
    ),
    Metric("codebook_window_samples", "codebook", "assignments", LAYER, "Assignments in the window."),
    Metric(
        "codebook_effective_samples",
        "codebook",
        "assignments",
        LAYER,
        "Assignments in the window, divided by how long equal neighbours run beyond chance: the evidence behind "
        "every usage reading.",
    ),
    Metric(
        "codebook_tokens_per_step",
        "codebook",
        "assignments",
        LAYER,
        "Assignments in a step, over all ranks: the mean of the steps since the last reading that had any.",
    ),
    Metric(
        "codebook_zero_index_ratio",
        "codebook",
        "ratio",
        LAYER,
        "Share of the assignments since the last reading that went to code 0: 1 is the sign of a codebook full of NaN "
        "(argmin of NaN is 0).",
    ),
    Metric(
        "codebook_assignments_total",
        "codebook",
        "assignments",
        LAYER,
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
        LAYER,
        "Entries that were no codes: negative or masked.",
        kind="counter",
    ),
    Metric(
        "codebook_invalid_assignments_total",
        "codebook",
        "assignments",
        LAYER,
        "Indices at or beyond the codebook's size.",
        kind="counter",
    ),
)

LAYERS: Final = (
    Metric(
        "codebook_utilization_mean_ratio",
        "layers",
        "ratio",
        (),
        "Mean utilization over the layers.",
        f"{PROPOSAL}, 1.3",
        bands=_UTILIZATION,
    ),
    Metric(
        "codebook_utilization_worst_ratio",
        "layers",
        "ratio",
        (),
        "Utilization of the least used layer.",
        f"{PROPOSAL}, 1.3",
        bands=_UTILIZATION,
    ),
    Metric("codebook_perplexity_mean", "layers", "codes", (), "Mean perplexity over the layers.", f"{PROPOSAL}, 1.3"),
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
        f"{PROPOSAL}, 1.3",
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

EMA: Final = (
    Metric(
        "ema_movement",
        "ema",
        "distance per step",
        LAYER,
        "Mean L2 change of a code's embedding per step, between snapshots.",
        f"{PROPOSAL}, 2.2",
    ),
    Metric(
        "ema_relative_movement_ratio",
        "ema",
        "ratio",
        LAYER,
        "Change of the codebook over its norm, per step.",
        "jukebox's dk, made relative",
    ),
    Metric("ema_cluster_size_mean", "ema", "assignments", LAYER, "Mean EMA cluster size.", f"{PROPOSAL}, 2.2"),
    Metric("ema_cluster_size_min", "ema", "assignments", LAYER, "Smallest EMA cluster size.", f"{PROPOSAL}, 2.2"),
    Metric(
        "ema_cluster_size_std",
        "ema",
        "assignments",
        LAYER,
        "Standard deviation of the EMA cluster sizes.",
        f"{PROPOSAL}, 2.2",
    ),
    Metric(
        "ema_tiny_clusters", "ema", "codes", LAYER, "Codes whose EMA cluster size is below 0.01.", f"{PROPOSAL}, 2.2"
    ),
    Metric(
        "ema_perplexity",
        "ema",
        "codes",
        LAYER,
        "Perplexity of the EMA cluster sizes: smoother and later than the window's.",
        "moshi's rvq_entropy",
    ),
    Metric(
        "ema_expired_codes",
        "ema",
        "codes",
        LAYER,
        "Codes whose EMA cluster size is below the family's own replacement threshold.",
    ),
    Metric(
        "ema_revived_codes_total",
        "ema",
        "codes",
        LAYER,
        "Codes replaced since the run began.",
        f"{PROPOSAL}, 2.1",
        kind="counter",
    ),
    Metric(
        "ema_revivals_per_step",
        "ema",
        "codes per step",
        LAYER,
        "Codes replaced per step between the last snapshots.",
        f"{PROPOSAL}, 2.1",
    ),
    Metric(
        "ema_revivals_exact",
        "ema",
        "boolean",
        LAYER,
        "1 when revivals follow from the EMA law and the counts of every step, 0 when they are estimated from jumps.",
    ),
    Metric(
        "ema_revival_survival_ratio",
        "ema",
        "ratio",
        LAYER,
        "Share of the revived codes that were assigned anything 50 to 100 steps later, and not revived again before.",
    ),
    Metric(
        "ema_unreplaced_ratio",
        "ema",
        "ratio",
        LAYER,
        "Share of the codes that have been below the replacement threshold for 100 steps and were not replaced.",
    ),
    Metric("ema_revival_churn_ratio", "ema", "ratio", LAYER, "Share of the codebook replaced per step."),
    Metric(
        "ema_threshold_to_uniform_ratio",
        "ema",
        "ratio",
        LAYER,
        "Replacement threshold over the cluster size that uniform use would give: above 1 the codebook is replaced "
        "for ever.",
    ),
    Metric("ema_updates", "ema", "updates", LAYER, "Training steps whose assignments were seen.", f"{PROPOSAL}, 5.1"),
    Metric(
        "codebook_embedding_variance",
        "ema",
        "variance",
        LAYER,
        "Variance of the embeddings across codes, mean over dimensions.",
        f"{PROPOSAL}, 2.1",
    ),
    Metric(
        "codebook_effective_rank",
        "ema",
        "dimensions",
        LAYER,
        "Dimensions that the codes in use span: exp of the entropy of the singular values. At every 4th snapshot.",
    ),
    Metric(
        "codebook_near_duplicate_ratio",
        "ema",
        "ratio",
        LAYER,
        "Share of the codes with another code at a cosine above 0.99.",
    ),
    Metric("codebook_norm_spread_ratio", "ema", "ratio", LAYER, "Largest embedding norm over the median."),
    Metric(
        "codebook_norm_to_latent_ratio",
        "ema",
        "ratio",
        LAYER,
        "Median norm of the codes over the median norm of the vectors that they quantize; far below 1 after a "
        "defective initialisation.",
    ),
    Metric(
        "codebook_latent_mean_distance_ratio",
        "ema",
        "ratio",
        LAYER,
        "Distance between the means of latents and codes, over the latents' spread.",
        "Huh et al. 2023",
    ),
    Metric(
        "codebook_latent_variance_ratio",
        "ema",
        "ratio",
        LAYER,
        "Variance of the codes over the variance of the latents.",
        "Huh et al. 2023",
    ),
    Metric(
        "codebook_nonfinite_values",
        "ema",
        "values",
        LAYER,
        "NaN and infinite values in the codebook and its EMA buffers.",
    ),
    Metric(
        "codebook_reinitialised_ratio",
        "ema",
        "ratio",
        LAYER,
        "Share of the codes that moved by more than their own norm between two snapshots.",
    ),
    Metric(
        "codebook_rank_divergence_ratio",
        "ema",
        "ratio",
        LAYER,
        "Largest distance between the codebooks of two ranks, over the codebook's norm; estimated from linear "
        "sketches.",
    ),
)
