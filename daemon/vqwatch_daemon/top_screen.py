"""The terminal's first screen: verdict, tiles, layers, alerts. Pure: a view in, something that rich prints out.

Every name is put in as :class:`rich.text.Text`, so that markup in it does nothing; control
characters have been taken out by whoever asked the daemon.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vqwatch_daemon.health import SIGNS, judge

STYLES: Final = {"healthy": "green", "concerning": "yellow", "critical": "bold red", "info": "cyan", "unknown": "dim"}
SEVERITIES: Final = {"critical": "critical", "warning": "concerning"}
BLOCKS: Final = "▁▂▃▄▅▆▇█"
KEPT: Final = 60
MOST_LAYERS: Final = 32
MOST_ALERTS: Final = 8


@dataclass(frozen=True, slots=True)
class View:
    """What the daemon answered: JSON as ``web/encode.py`` describes it. ``run`` is None while there is no run."""

    url: str
    runs: int
    run: Mapping[str, Any] | None
    overview: Mapping[str, Any] | None
    readings: Mapping[str, Any]
    alerts: Sequence[Mapping[str, Any]]
    lost: str = ""

    def without_contact(self, reason: str) -> View:
        """Return the same view, marked as old."""
        return replace(self, lost=reason)


class Screen:
    """Draws views, and remembers the last readings for sparklines."""

    def __init__(self) -> None:
        self._past: dict[tuple[str, tuple[str, ...]], deque[float]] = {}

    def begin(self, series: Mapping[str, Any]) -> None:
        """Take curves out of the history as the past of the sparklines."""
        for metric, curve in series.items():
            for labels, values in zip(curve["series"], curve["value"], strict=True):
                known = [float(value) for value in values if value is not None]
                self._past[metric, tuple(labels)] = deque(known, KEPT)

    def draw(self, view: View, width: int = 100) -> RenderableType:
        """Return the screen, ``width`` characters wide."""
        if view.run is None:
            waiting = Text("No run yet. A training script that calls vqwatch.attach(model) shows up here by itself.")
            return Group(_title(view), waiting)
        for metric, item in view.readings.items():
            for *labels, value in item["values"]:
                if value is not None:
                    self._past.setdefault((metric, tuple(labels)), deque(maxlen=KEPT)).append(float(value))
        parts: list[RenderableType] = [_title(view)]
        if view.overview is not None:
            parts += [_verdict(view.overview), self._tiles(view.overview["tiles"], width)]
        parts += [self._layers(view), _alerts(view)]
        return Group(*parts)

    def _tiles(self, tiles: Sequence[Mapping[str, Any]], width: int) -> Table:
        columns = max(1, min(len(tiles), width // 22))
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in range(columns):
            grid.add_column(ratio=1)
        cells = [self._tile(tile) for tile in tiles]
        for start in range(0, len(cells), columns):
            grid.add_row(*cells[start : start + columns])
        return grid

    def _tile(self, tile: Mapping[str, Any]) -> Panel:
        style = STYLES[tile["verdict"]]
        body = Text(no_wrap=True, overflow="ellipsis")
        body.append(tile["value"], "bold").append(
            f"  {tile['sign']} {_WORDS.get(tile['verdict'], tile['verdict'])}\n", style
        )
        body.append(f"{tile['detail']}\n", "dim")
        body.append(spark(self._past.get((tile["metric"], tuple(tile["labels"])), ()), 15), style)
        return Panel(body, title=Text(tile["title"]), title_align="left", border_style=style)

    def _layers(self, view: View) -> RenderableType:
        values = {metric: _by_layer(view.readings, metric) for metric, *_ in _COLUMNS}
        sizes = _by_layer(view.readings, "codebook_size")
        layers = list(dict.fromkeys(layer for series in values.values() for layer in series))
        if not layers:
            return Text("No codes seen yet.", "dim")
        table = Table(expand=True, box=None, header_style="dim", padding=(0, 1))
        table.add_column("layer")
        for _, title, _ in _COLUMNS:
            table.add_column(title, justify="right")
        table.add_column("utilization over time", ratio=1, no_wrap=True)
        for layer in sorted(layers, key=_natural)[:MOST_LAYERS]:
            cells = [_cell(metric, values[metric].get(layer), form, sizes.get(layer)) for metric, _, form in _COLUMNS]
            past = self._past.get(("codebook_utilization_ratio", (layer,)), ())
            table.add_row(Text(layer), *cells, Text(spark(past, 40), "cyan"))
        return table


def spark(values: Iterable[float], width: int) -> str:
    """Return the last values as a line of blocks; what is not finite is a cross.

    >>> spark([1, 2, 3, float("nan")], 10)
    '▁▄█✕'
    """
    shown = list(values)[-width:]
    known = [value for value in shown if math.isfinite(value)]
    if not known:
        return "✕" * len(shown)
    low, high = min(known), max(known)
    span = max(high - low, 0.01 * max(abs(high), abs(low)))  # noise below 1 % is a flat line
    scale = (len(BLOCKS) - 1) / span if span > 0 else 0.0
    return "".join(BLOCKS[int((v - low) * scale)] if math.isfinite(v) else "✕" for v in shown)


_WORDS: Final = {"info": "no bands", "unknown": "no evidence"}
_COLUMNS: Final = (
    ("codebook_utilization_ratio", "used", "{:.0%}"),
    ("codebook_perplexity", "perplexity", "{:.4g}"),
    ("codebook_dead_ratio", "dead", "{:.0%}"),
    ("ema_revivals_per_step", "revived/step", "{:.3g}"),
    ("residual_energy_ratio", "residual", "{:.1%}"),
)


def _title(view: View) -> Text:
    line = Text("vqwatch ", "bold", no_wrap=True, overflow="ellipsis")
    if view.run is None:
        line.append(view.url, "dim")
    else:
        line.append(view.run["name"], "bold cyan").append(f"  step {view.run['step']:,}  {view.run['state']}")
        speed = _scalar(view.readings, "steps_per_second")
        if speed is not None:
            line.append(f"  {speed:.3g} steps/s")
        more = f"  and {view.runs - 1} more" if view.runs > 1 else ""
        line.append(f"  {view.run['ranks']} of {view.run['world_size']} ranks{more}  {view.url}", "dim")
    if view.lost:
        line.append(f"  no contact: {view.lost}", "bold red")
    return line


def _verdict(overview: Mapping[str, Any]) -> Panel:
    style = STYLES[overview["verdict"]]
    return Panel(Text(f"{SIGNS[overview['verdict']]}  {overview['sentence']}", f"{style} bold"), border_style=style)


def _alerts(view: View) -> RenderableType:
    firing = [alert for alert in view.alerts if alert["state"] == "firing"]
    if not firing:
        return Text("No alert is firing.", "dim")
    firing.sort(key=lambda alert: (alert["severity"] != "critical", alert["name"]))
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for alert in firing:
        groups.setdefault((alert["name"], alert["severity"], alert["run"]), []).append(alert)
    lines = []
    for alert, *others in list(groups.values())[:MOST_ALERTS]:
        style = STYLES[SEVERITIES.get(alert["severity"], "info")]
        words = alert["annotations"].get("description") or alert["annotations"].get("summary") or ""
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{SIGNS[SEVERITIES.get(alert['severity'], 'info')]} {alert['name']} ", f"{style} bold")
        more = f"{len(others) + 1} × " if others else ""
        line.append(f"{more}{alert['run']} since step {alert['started_step']}: ", "dim").append(words)
        lines.append(line)
    if len(groups) > MOST_ALERTS:
        lines.append(Text(f"and {len(groups) - MOST_ALERTS} more", "dim"))
    return Panel(Group(*lines), title=f"{len(groups)} firing", title_align="left", border_style="red")


def _by_layer(readings: Mapping[str, Any], metric: str) -> dict[str, float]:
    return {entry[0]: float(entry[1]) for entry in readings.get(metric, {"values": ()})["values"] if len(entry) == 2}


def _scalar(readings: Mapping[str, Any], metric: str) -> float | None:
    entries = readings.get(metric, {"values": ()})["values"]
    return float(entries[0][0]) if entries and len(entries[0]) == 1 else None


def _cell(metric: str, value: float | None, form: str, size: float | None) -> Text:
    if value is None:
        return Text("—", "dim")
    verdict = judge(metric, value, size)
    mark = f" {SIGNS[verdict]}" if verdict in ("concerning", "critical") else "  "
    return Text(form.format(value) + mark, STYLES[verdict] if verdict != "info" else "")


def _natural(layer: str) -> tuple[int, int | str]:
    return (0, int(layer)) if layer.isdecimal() else (1, layer)
