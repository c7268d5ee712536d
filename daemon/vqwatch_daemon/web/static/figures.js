// Which curves the page shows, and in what order people look for them. Names, units and bands come from the catalogue.

const layered = (metric, title, more = {}) => ({ kind: "lines", metric, title, order: true, ...more });
const named = (metric, title, more = {}) => ({ kind: "lines", metric, title, ...more });

export const SECTIONS = [
  {
    title: "Codebooks",
    figures: [
      layered("codebook_utilization_ratio", "Utilization by layer", { percent: true, span: [0, 1.02] }),
      layered("codebook_perplexity", "Perplexity by layer"),
      layered("codebook_dead_codes", "Dead codes by layer", { floor: 0 }),
      layered("ema_revivals_per_step", "Revived codes per step", { floor: 0 }),
      layered("codebook_entropy_ratio", "Entropy of use, relative", { percent: true, span: [0, 1.02] }),
      layered("codebook_gini_ratio", "Inequality of use", { span: [0, 1.02] }),
    ],
  },
  {
    title: "Across layers",
    figures: [
      { kind: "stairs", metric: "residual_energy_ratio", title: "Residual energy, layer after layer" },
      layered("residual_gain_db", "Residual gain by layer"),
      { kind: "matrix", metric: "codebook_usage_correlation", title: "Correlation of use" },
      { kind: "matrix", metric: "codebook_mutual_information_nats", title: "Mutual information" },
      named("codebook_bitrate_efficiency_ratio", "Bitrate efficiency", { percent: true }),
      named("identifier_unique_ratio", "Unique identifiers", { percent: true }),
    ],
  },
  {
    title: "Movement of the codebook",
    figures: [
      layered("ema_relative_movement_ratio", "EMA movement per step, relative", { log: true }),
      layered("ema_tiny_clusters", "Tiny clusters", { floor: 0 }),
      layered("codebook_embedding_variance", "Embedding variance", { log: true }),
      layered("codebook_near_duplicate_ratio", "Near duplicates", { percent: true, floor: 0 }),
      layered("codebook_effective_rank", "Effective rank", { floor: 0 }),
    ],
  },
  {
    title: "Reconstruction",
    figures: [
      named("reconstruction_snr_db", "Signal to noise"),
      named("reconstruction_cosine_similarity", "Cosine similarity"),
      named("reconstruction_mse", "Mean squared error", { log: true }),
      named("reconstruction_temporal_consistency", "Temporal consistency"),
      named("reconstruction_spectral_distance_db", "Spectral distance"),
    ],
  },
  {
    title: "Training",
    figures: [
      named("loss", "Loss and its components", { log: true }),
      named("loss_share_ratio", "Share of the total loss", { percent: true }),
      named("loss_vq_to_reconstruction_ratio", "VQ loss over reconstruction loss", { log: true }),
      named("gradient_norm", "Gradient norm", { log: true }),
      named("gradient_norm_by_module", "Gradient norm by module", { log: true }),
      named("learning_rate", "Learning rate"),
      named("steps_per_second", "Steps per second", { floor: 0 }),
    ],
  },
  { title: "Full evaluations", figures: [{ kind: "evaluations", metric: "evaluation", title: "Full evaluations" }] },
  {
    title: "The sidecar itself",
    figures: [
      named("emitter_overhead_ratio", "Emitter overhead by rank", { percent: true, floor: 0 }),
      named("message_delay_seconds", "Delay from step to daemon", { floor: 0 }),
      { kind: "losses", metric: "emitter_dropped_total", title: "Dropped and lost messages" },
    ],
  },
];

/** Metrics of a section that have curves worth asking the history for. */
export const metricsOf = (section) =>
  section.figures.filter((item) => ["lines", "evaluations"].includes(item.kind)).map((item) => item.metric);
