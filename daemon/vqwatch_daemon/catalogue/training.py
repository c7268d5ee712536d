"""What tells how training goes, and what its model makes of the data."""

from __future__ import annotations

from typing import Final

from vqwatch_daemon.catalogue.metric import LAYER, PROPOSAL, Bands, Metric

RECONSTRUCTION: Final = (
    Metric(
        "reconstruction_mse",
        "reconstruction",
        "squared feature units",
        (),
        "Mean squared error over valid frames.",
        f"{PROPOSAL}, 3.2",
    ),
    Metric(
        "reconstruction_snr_db",
        "reconstruction",
        "dB",
        (),
        "Signal power over error power, over valid frames.",
        f"{PROPOSAL}, 3.1",
        bands=Bands(healthy=(15, None), concerning=(10, None)),
    ),
    Metric(
        "reconstruction_cosine_similarity",
        "reconstruction",
        "cosine",
        (),
        "Mean cosine between input and output frames.",
        f"{PROPOSAL}, 3.1",
        bands=Bands(healthy=(0.8, None), concerning=(0.6, None)),
    ),
    Metric(
        "reconstruction_temporal_consistency",
        "reconstruction",
        "cosine",
        (),
        "Cosine between the frame-to-frame distances of input and output, over pairs of valid frames.",
        f"{PROPOSAL}, 3.1",
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
        f"{PROPOSAL}, 3.1",
    ),
    Metric(
        "residual_energy_ratio",
        "reconstruction",
        "ratio",
        LAYER,
        "Energy left after the layer over the energy that entered the first.",
    ),
    Metric(
        "residual_gain_db",
        "reconstruction",
        "dB",
        LAYER,
        "How far the layer lowers the residual energy; near 0 it is useless, below 0 harmful.",
    ),
)

TRAINING: Final = (
    Metric("loss", "training", "loss", ("component",), "Loss of the latest step, mean over ranks.", f"{PROPOSAL}, 4.1"),
    Metric(
        "loss_smoothed",
        "training",
        "loss",
        ("component",),
        "Loss, exponentially smoothed with a half-life of 50 steps.",
        f"{PROPOSAL}, 4.2",
    ),
    Metric(
        "loss_slope",
        "training",
        "loss per step",
        ("component",),
        "Least-squares trend of the smoothed loss over the last readings.",
        f"{PROPOSAL}, 4.2",
    ),
    Metric(
        "loss_share_ratio", "training", "ratio", ("component",), "Component over the total loss.", f"{PROPOSAL}, 4.1"
    ),
    Metric(
        "loss_vq_to_reconstruction_ratio",
        "training",
        "ratio",
        (),
        "VQ loss over reconstruction loss.",
        f"{PROPOSAL}, 4.2",
        bands=Bands(healthy=(0.1, 2), concerning=(None, 10)),
    ),
    Metric(
        "gradient_norm",
        "training",
        "norm",
        (),
        "Global gradient norm before clipping.",
        f"{PROPOSAL}, 4.1",
        bands=Bands(healthy=(0.1, 5), concerning=(1e-6, 10)),
    ),
    Metric(
        "gradient_norm_by_module",
        "training",
        "norm",
        ("module",),
        "Gradient norm of a top-level module.",
        f"{PROPOSAL}, 4.1",
    ),
    Metric(
        "update_to_weight_ratio",
        "training",
        "ratio",
        (),
        "Norm of the latest weight update over the norm of the weights, as a trainer tells it in the wire's "
        "`update_ratio`. vqwatch's own emitter tells none: it would have to keep a copy of the weights on the device.",
    ),
    Metric("learning_rate", "training", "rate", ("group",), "Learning rate of a parameter group.", f"{PROPOSAL}, 4.1"),
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

EVALUATION: Final = (
    Metric(
        "evaluation",
        "evaluation",
        "as the metric",
        ("metric", "stat"),
        "Full evaluation: mean, std, min and max over samples.",
        f"{PROPOSAL}, 3.3",
    ),
    Metric("evaluation_step", "evaluation", "steps", (), "Step of the latest full evaluation."),
)
