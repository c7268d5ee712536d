"""One panel for each metric of the catalogue: what it asks, how it is read, when it turns red.

Knows the catalogue and Grafana's panel models; not which dashboard a panel is on.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DataTransformerConfig, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from vqwatch_daemon.catalogue import PER_CODE, Bands, Metric

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
MOST_CODES: Final = 20
"""Codes that the panel of single codes shows."""

GREEN, ORANGE, RED = "green", "orange", "red"
_COLOURS: Final = {"healthy": GREEN, "concerning": ORANGE, "critical": RED}
_UNITS: Final = {"ratio": "percentunit", "dB": "dB", "seconds": "s", "seconds per step": "s"}
_NAMED_LABELS: Final = {
    "layer": "layer {{layer}}",
    "other_layer": "and {{other_layer}}",
    "rank": "rank {{rank}}",
    "group": "group {{group}}",
}


def unit(metric: Metric) -> str:
    """Return Grafana's name for the metric's unit; counts and pure numbers are short."""
    return _UNITS.get(metric.unit, "short")


def selector(metric: Metric, suffix: str = "") -> str:
    """Return the metric with the matchers of the dashboard's variables."""
    matchers = ['run=~"$run"'] if metric.per_run else ['instance=~"$instance"']
    if "layer" in metric.labels:
        matchers.append('layer=~"$layer"')
    return f"{metric.exposed_name}{suffix}{{{', '.join(matchers)}}}"


def expression(metric: Metric) -> str:
    """Return the query that shows a metric over time.

    Counters as rates per second, summaries as means, points in time as ages.
    """
    by = ", ".join(("run" if metric.per_run else "instance", *metric.labels))
    if metric.kind == "counter":
        rate = f"sum by ({by}) (rate({selector(metric)}[$__rate_interval]))"
        return f"topk({MOST_CODES}, {rate})" if metric.name == PER_CODE else rate
    if metric.kind == "summary":
        parts = [f"sum by ({by}) (rate({selector(metric, part)}[$__rate_interval]))" for part in ("_sum", "_count")]
        return " / ".join(parts)
    if metric.name.endswith("_timestamp_seconds"):
        return f"time() - max by ({by}) ({selector(metric)})"
    return selector(metric)


def legend(metric: Metric) -> str:
    """Return the legend: the run, or the daemon, and what tells the series apart."""
    parts = [_NAMED_LABELS.get(label, f"{{{{{label}}}}}") for label in metric.labels]
    return " · ".join(["{{run}}" if metric.per_run else "{{instance}}", *parts])


def title(metric: Metric) -> str:
    """Return the metric's name as words.

    >>> title(CATALOGUE["codebook_dead_ratio"])
    'Codebook dead ratio'
    """
    words = metric.name.removesuffix("_total").replace("_timestamp_seconds", "_age").replace("_", " ")
    words = words.removesuffix(" seconds") if metric.unit == "seconds" else words
    shown = words.replace("ema", "EMA").replace("snr db", "SNR").replace("mse", "MSE").replace("vq", "VQ")
    return shown[0].upper() + shown[1:] + (" per second" if metric.kind == "counter" else "")


def description(metric: Metric) -> str:
    """Return help, unit and source, and the bands where there are any."""
    parts = [metric.help, f"`{metric.exposed_name}`, in {metric.unit}." if metric.unit else f"`{metric.exposed_name}`."]
    if metric.source:
        parts.append(f"Source: {metric.source}.")
    if metric.bands and not metric.bands.per_code:
        parts.append(f"Healthy {_span(metric.bands.healthy)}, concerning {_span(metric.bands.concerning)}.")
    return " ".join(parts)


def _span(limits: tuple[float | None, float | None]) -> str:
    low, high = limits
    if low is None:
        return f"up to {high:g}"
    return f"from {low:g}" if high is None else f"{low:g} to {high:g}"


def thresholds(bands: Bands | None) -> list[tuple[float | None, str]]:
    """Return (from, colour), ascending, the first from minus infinity. Without absolute bands all is green.

    >>> thresholds(Bands(healthy=(0.6, 0.95), concerning=(0.4, None)))
    [(None, 'red'), (0.4, 'orange'), (0.6, 'green'), (0.95, 'orange')]
    """
    if bands is None or bands.per_code:
        return [(None, GREEN)]
    edges = sorted({edge for limits in (bands.healthy, bands.concerning) for edge in limits if edge is not None})
    middles = [edges[0] - 1, *((low + high) / 2 for low, high in itertools.pairwise(edges)), edges[-1] + 1]
    colours = [_COLOURS[bands.verdict(middle)] for middle in middles]
    steps: list[tuple[float | None, str]] = [(None, colours[0])]
    for edge, colour in zip(edges, colours[1:], strict=True):
        if colour != steps[-1][1]:
            steps.append((edge, colour))
    return steps


def query(expr: str, legend_format: str, *, instant: bool = False) -> prometheus.Dataquery:
    """Return a query to the data source that the dashboard's variable names."""
    built = prometheus.Dataquery().expr(expr).legend_format(legend_format).datasource(SOURCE).ref_id("A")
    return built.instant().format(PromQueryFormat.TABLE) if instant else built.range()


def over_time(metric: Metric) -> timeseries.Panel:
    """Return the panel that shows a metric as lines, with its bands as thin lines behind."""
    panel = (
        timeseries.Panel()
        .title(title(metric))
        .description(description(metric))
        .datasource(SOURCE)
        .unit(unit(metric))
        .line_width(1)
        .line_interpolation(LineInterpolation.LINEAR)
        .fill_opacity(0)
        .show_points(VisibilityMode.NEVER)
        .thresholds(_steps(metric.bands))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .with_target(query(expression(metric), legend(metric)))
        .height(8)
        .span(8)
    )
    if metric.bands and not metric.bands.per_code:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return panel


def as_table(metric: Metric) -> table.Panel:
    """Return the panel that lists an info metric's labels as they are now."""
    return (
        table.Panel()
        .title(title(metric))
        .description(description(metric))
        .datasource(SOURCE)
        .unit("short")
        .with_target(query(expression(metric), "", instant=True))
        .height(8)
        .span(8)
    )


def number(
    heading: str, text: str, expr: str, *, of: str = "short", steps: list[tuple[float | None, str]] | None = None
) -> stat.Panel:
    """Return a panel with one large number and its recent course."""
    return (
        stat.Panel()
        .title(heading)
        .description(text)
        .datasource(SOURCE)
        .unit(of)
        .no_value("-")
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_config(steps or [(None, GREEN)]))
        .with_target(query(expr, heading))
        .height(4)
        .span(4)
    )


def bars(metric: Metric) -> bargauge.Panel:
    """Return the panel that shows each series' latest value as a bar, coloured by the bands."""
    return (
        bargauge.Panel()
        .title(f"{title(metric)}, now")
        .description(description(metric))
        .datasource(SOURCE)
        .unit(unit(metric))
        .min(0)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_steps(metric.bands))
        .with_target(query(expression(metric), legend(metric)))
        .height(8)
        .span(8)
    )


def for_metric(metric: Metric) -> Builder[Any]:
    """Return the panel that suits a metric."""
    return as_table(metric) if metric.unit == "info" else over_time(metric)


def _steps(bands: Bands | None) -> ThresholdsConfig:
    return _config(thresholds(bands))


def _config(steps: list[tuple[float | None, str]]) -> ThresholdsConfig:
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=colour) for value, colour in steps])
    )


def alerts(expr: str) -> table.Panel:
    """Return the list of alerts that fire now."""
    return (
        table.Panel()
        .title("Alerts that fire now")
        .description("By run, name and severity; the daemon's page has their layers, values and runbooks.")
        .datasource(SOURCE)
        .unit("short")
        .no_value("Nothing fires.")
        .with_target(query(f"sum by (run, alertname, severity) ({expr}) > 0", "", instant=True))
        .with_transformation(
            DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}, "indexByName": {}})
        )
        .height(8)
        .span(8)
    )
