"""The daemon's values as JSON, for scripts and for the page. No I/O.

JSON has no NaN: a non-finite value travels as one of the strings "NaN", "Infinity", "-Infinity" (what Python's
``float`` and JavaScript's ``Number`` both read).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vqwatch_daemon import health
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.readings import Labels
from vqwatch_daemon.web.view import AlertView, RunView


def number(value: float | None) -> float | str | None:
    """Return a value that JSON can hold.

    >>> number(0.5), number(float("nan")), number(float("-inf")), number(None)
    (0.5, 'NaN', '-Infinity', None)
    """
    if value is None or math.isfinite(value):
        return value
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def dumps(value: Any) -> bytes:
    """Return compact UTF-8 JSON; raises ValueError when a non-finite number was left in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def run(view: RunView) -> dict[str, Any]:
    """Return a run as a map with the fields of :class:`RunView`."""
    shown = asdict(view)
    shown["layers"] = [
        {key: number(v) if isinstance(v, float) else v for key, v in layer.items()} for layer in view.layers
    ]
    return shown


def readings(values: Mapping[str, Mapping[Labels, float]]) -> dict[str, Any]:
    """Return readings as ``{metric: {"labels": [label names], "values": [[label value, …, value], …]}}``.

    >>> readings({"codebook_perplexity": {("0",): 201.5}})
    {'codebook_perplexity': {'labels': ['layer'], 'values': [['0', 201.5]]}}
    """
    return {
        metric: {
            "labels": list(CATALOGUE[metric].labels) if metric in CATALOGUE else [],
            "values": [[*labels, number(value)] for labels, value in series.items()],
        }
        for metric, series in values.items()
    }


def alert(view: AlertView) -> dict[str, Any]:
    """Return an alert as a map; times are Unix seconds."""
    return {
        "name": view.name,
        "severity": view.severity,
        "run": view.run,
        "state": view.state,
        "labels": dict(view.labels),
        "annotations": dict(view.annotations),
        "value": number(view.value),
        "started_step": view.started_step,
        "active_at": number(view.active_at),
        "fired_at": number(view.fired_at),
        "resolved_at": number(view.resolved_at),
    }


def overview(values: Mapping[str, Mapping[Labels, float]], alerts: Iterable[AlertView]) -> dict[str, Any]:
    """Return a run's tiles, and the verdict and sentence over them and the run's firing alerts."""
    tiles = health.tiles(values)
    verdict, sentence = health.headline(tiles, [(a.name, a.severity) for a in alerts if a.state == "firing"])
    return {
        "verdict": verdict,
        "sentence": sentence,
        "tiles": [
            {
                "key": tile.key,
                "title": tile.title,
                "verdict": tile.verdict,
                "sign": health.SIGNS[tile.verdict],
                "value": tile.value,
                "detail": tile.detail,
                "number": number(tile.number),
                "metric": tile.spark[0],
                "labels": list(tile.spark[1]),
            }
            for tile in tiles
        ],
    }


def catalogue() -> dict[str, Any]:
    """Return every metric with what a reader of its curve needs."""
    return {
        name: {
            "group": metric.group,
            "unit": metric.unit,
            "labels": list(metric.labels),
            "help": metric.help,
            "source": metric.source,
            "kind": metric.kind,
            "bands": None
            if metric.bands is None
            else {
                "healthy": list(metric.bands.healthy),
                "concerning": list(metric.bands.concerning),
                "per_code": metric.bands.per_code,
            },
        }
        for name, metric in CATALOGUE.items()
    }


def clean(value: Any) -> Any:
    """Return a JSON-able value in which every non-finite number has become a word.

    >>> clean({"a": [1.5, float("inf")]})
    {'a': [1.5, 'Infinity']}
    """
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value
