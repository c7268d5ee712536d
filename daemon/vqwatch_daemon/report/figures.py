"""Which charts a report shows, drawn from a story."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.report import svg
from vqwatch_daemon.report.story import Story, together

SEVERITIES: Final = {"critical": "critical", "warning": "concerning"}
MOST_LINES: Final = 24
MOST_EPISODES: Final = 40


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart: its metric and how its axis is drawn."""

    metric: str
    title: str
    log: bool = False
    percent: bool = False
    span: tuple[float, float] | None = None


SECTIONS: Final[tuple[tuple[str, tuple[Figure, ...]], ...]] = (
    (
        "Codebooks",
        (
            Figure("codebook_utilization_ratio", "Utilization by layer", percent=True, span=(0, 1.02)),
            Figure("codebook_perplexity", "Perplexity by layer"),
            Figure("codebook_dead_codes", "Dead codes by layer"),
            Figure("ema_revivals_per_step", "Revived codes per step"),
            Figure("ema_relative_movement_ratio", "EMA movement per step, relative", log=True),
            Figure("residual_gain_db", "Residual gain by layer, dB"),
        ),
    ),
    (
        "Reconstruction",
        (
            Figure("reconstruction_snr_db", "Signal to noise, dB"),
            Figure("reconstruction_cosine_similarity", "Cosine similarity"),
            Figure("reconstruction_mse", "Mean squared error", log=True),
            Figure("reconstruction_temporal_consistency", "Temporal consistency"),
        ),
    ),
    (
        "Training",
        (
            Figure("loss", "Loss and its components", log=True),
            Figure("loss_vq_to_reconstruction_ratio", "VQ loss over reconstruction loss", log=True),
            Figure("gradient_norm", "Gradient norm", log=True),
            Figure("gradient_norm_by_module", "Gradient norm by module", log=True),
            Figure("learning_rate", "Learning rate"),
            Figure("steps_per_second", "Steps per second"),
        ),
    ),
)


def chart(story: Story, figure: Figure, look: svg.Look = svg.PAGE, width: int = 460, height: int = 250) -> str:
    """Return a figure as SVG; empty when the story has no samples of it."""
    item = story.shown.get(figure.metric)
    if item is None:
        return ""
    order = sorted(range(len(item["series"])), key=lambda i: [_natural(part) for part in item["series"][i]])[
        :MOST_LINES
    ]
    layered = item["labels"] == ["layer"]
    lines = []
    for place, i in enumerate(order):
        name = " · ".join(item["series"][i])
        colour, dash = svg.ordered(place, len(order)) if layered else (svg.HUES[place % 8], svg.DASHES[place // 8])
        lines.append(svg.Line(f"layer {name}" if layered else name, item["step"], item["value"][i], colour, dash))
    marks = [(e.start_step, SEVERITIES[e.severity]) for e in story.episodes if e.severity == "critical"][:10]
    return svg.chart(
        figure.title, lines, look=look, width=width, height=height, log=figure.log, percent=figure.percent,
        span=figure.span, bands=_bands(story, figure.metric), marks=marks,
    )  # fmt: skip


def timeline(story: Story, look: svg.Look = svg.PAGE, width: int = 940) -> str:
    """Return the alerts as bars over the steps; empty when none fired."""
    rows = []
    for group in together(story.episodes)[:MOST_EPISODES]:
        first = group[0]
        ends = [story.last_step if episode.end_step is None else episode.end_step for episode in group]
        label = f"{first.name} {first.where}".strip() if len(group) == 1 else f"{first.name} ({len(group)})"
        rows.append((label, SEVERITIES.get(first.severity, "info"), float(first.start_step), float(max(ends))))
    return svg.timeline("Alerts over the steps", rows, story.first_step, story.last_step, look=look, width=width)


def heatmaps(story: Story, look: svg.Look = svg.PAGE, width: int = 940) -> list[str]:
    """Return code usage at the story's snapshots."""
    return [
        svg.heatmap(f"Code usage at step {item['step']:,}", item["layers"], look=look, width=width)
        for item in story.snapshots
        if item["layers"]
    ]


def _bands(story: Story, metric: str) -> list[tuple[float, float, str]]:
    bands = CATALOGUE[metric].bands if metric in CATALOGUE else None
    if bands is None:
        return []
    sizes = set(story.readings.get("codebook_size", {}).values())
    if bands.per_code and len(sizes) != 1:
        return []
    scale = sizes.pop() if bands.per_code else 1.0
    edges = {-math.inf, math.inf}
    edges.update(edge * scale for pair in (bands.healthy, bands.concerning) for edge in pair if edge is not None)
    ordered = sorted(edges)
    spans = pairwise(ordered)
    return [(low, high, bands.verdict(_inside(low, high), int(scale))) for low, high in spans]


def _inside(low: float, high: float) -> float:
    if math.isinf(low):
        return high - 1e-9
    return low + 1e-9 if math.isinf(high) else (low + high) / 2


def _natural(part: str) -> tuple[int, Any]:
    return (0, int(part)) if part.isdigit() else (1, part)
