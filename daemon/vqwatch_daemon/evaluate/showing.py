"""An evaluation as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from vqwatch_daemon.evaluate.judging import Judgement
from vqwatch_daemon.readings import Readings

STATS = ("mean", "std", "min", "max")
PER_LAYER = (
    "codebook_size",
    "codebook_utilization_ratio",
    "codebook_perplexity",
    "codebook_dead_codes",
    "codebook_gini_ratio",
    "codebook_window_samples",
)
COLOURS = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def as_json(checkpoint: str, step: int, samples: int, found: Readings, judgement: Judgement) -> str:
    """Return one line of JSON; numbers that are not finite are null."""
    statistics: dict[str, dict[str, float | None]] = {}
    for (name, stat), value in found["evaluation"].items():
        statistics.setdefault(name, {})[stat] = _finite(value)
    layers: dict[str, dict[str, float | None]] = {}
    for name in PER_LAYER:
        for (layer,), value in found.get(name, {}).items():
            layers.setdefault(layer, {})[name] = _finite(value)
    alerts = [
        {"alert": alert.name, "severity": alert.severity, "labels": dict(alert.labels), "value": _finite(alert.value),
         "summary": alert.annotations.get("summary", "")}
        for alert in judgement.alerts
    ]  # fmt: skip
    whole: dict[str, Any] = {
        "checkpoint": checkpoint,
        "step": step,
        "samples": samples,
        "evaluation": statistics,
        "layers": layers,
        "alerts": alerts,
    }
    return json.dumps(whole, allow_nan=False)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(console: Console, checkpoint: str, samples: int, found: Readings, judgement: Judgement) -> None:
    """Print the tables and the alerts."""
    scores = Table(title=f"{checkpoint}: {samples} samples", title_justify="left")
    scores.add_column("over samples; usage over layers")
    for stat in STATS:
        scores.add_column(stat, justify="right")
    series = found["evaluation"]
    for name in dict.fromkeys(name for name, _ in series):
        scores.add_row(name, *(_text(series.get((name, stat))) for stat in STATS))
    console.print(scores)
    labels = list(found.get("codebook_size", {}))
    if labels:
        layers = Table(title="codebooks, over the whole pass", title_justify="left")
        layers.add_column("layer")
        columns = [name for name in PER_LAYER if name in found]
        for name in columns:
            layers.add_column(name.removeprefix("codebook_").removesuffix("_ratio"), justify="right")
        for label in labels:
            layers.add_row(label[0], *(_text(found[name].get(label)) for name in columns))
        console.print(layers)
    for alert in judgement.alerts:
        where = ", ".join(f"{key} {value}" for key, value in alert.labels.items()
                          if key not in ("alertname", "severity", "run"))  # fmt: skip
        console.print(f"[{COLOURS[alert.severity]}]{alert.severity}[/] {alert.name} {where}: {_text(alert.value)}  "
                      f"{alert.annotations.get('summary', '')}")  # fmt: skip


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
