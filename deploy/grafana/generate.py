"""Write the dashboards from the catalogue: ``python deploy/grafana/generate.py [DIRECTORY]``.

Every metric has a panel on the dashboard of its group; the overview is put together by hand. A metric that is renamed
moves by itself, and a test keeps the committed files up to date.

Needs grafana-foundation-sdk for Grafana 11.6, whose versions carry an epoch: see constraints.txt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import panels
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from vqwatch_daemon.catalogue import CATALOGUE, GROUPS

TAG: Final = "vqwatch"

# Title and groups of each dashboard; the file's name is the key.
DASHBOARDS: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "codebooks": ("Codebooks", "How the codes are used, and how the codebooks learn.", ("codebook", "layers", "ema")),
    "reconstruction": ("Reconstruction", "What comes out, and what each layer adds.", ("reconstruction", "evaluation")),
    "training": ("Training", "Losses, gradients, learning rates and speed.", ("training",)),
    "sidecar": ("Sidecar", "The watcher watched: messages, losses, overhead, delivery of alerts.", ("sidecar",)),
}
TITLES: Final = {"overview": "Overview", **{name: title for name, (title, _, _) in DASHBOARDS.items()}}

_ALERTS: Final = 'vqwatch_alerts_firing{run=~"$run"}'


def build() -> dict[str, str]:
    """Return the JSON text of every dashboard, by file name."""
    made = {"overview": overview()}
    made |= {name: grouped(name, text, groups) for name, (_, text, groups) in DASHBOARDS.items()}
    return {f"{name}.json": _json(builder) for name, builder in made.items()}


def overview() -> dashboard.Dashboard:
    """Return the dashboard to open first: is anything wrong, where, and since when."""
    show = _skeleton("overview", "Is anything wrong, where, and since when.")
    bad = [(None, panels.GREEN), (1.0, panels.RED)]
    fewest, snr = CATALOGUE["codebook_utilization_worst_ratio"], CATALOGUE["reconstruction_snr_db"]
    for panel in (
        panels.number(
            "Alerts firing", "Alerts of the chosen runs that fire now.", f"sum({_ALERTS}) or vector(0)", steps=bad
        ),
        panels.number(
            "Runs live",
            "Runs that are training now.",
            'count(vqwatch_run_info{run=~"$run", state="live"}) or vector(0)',
        ),
        panels.number("Step", "Latest training step, of the run that is furthest.", 'max(vqwatch_step{run=~"$run"})'),
        panels.number("Steps per second", "Of the slowest run.", 'min(vqwatch_steps_per_second{run=~"$run"})'),
        panels.number(
            "Least used layer",
            "Utilization of the least used layer of all runs.",
            'min(vqwatch_codebook_utilization_worst_ratio{run=~"$run"})',
            of="percentunit",
            steps=panels.thresholds(fewest.bands),
        ),
        panels.number(
            "Lowest SNR",
            "Signal to noise of the worst reconstruction of all runs.",
            'min(vqwatch_reconstruction_snr_db{run=~"$run"})',
            of="dB",
            steps=panels.thresholds(snr.bands),
        ),
    ):
        show = show.with_panel(panel)  # fmt: skip
    show = show.with_row(dashboard.Row("Alerts and use of the codes"))
    show = show.with_panel(panels.alerts(_ALERTS))
    show = show.with_panel(panels.bars(CATALOGUE["codebook_utilization_ratio"]))
    show = show.with_panel(panels.over_time(CATALOGUE["codebook_perplexity"]))
    show = show.with_row(dashboard.Row("Course of the training"))
    for name in (
        "loss_smoothed",
        "reconstruction_snr_db",
        "codebook_utilization_worst_ratio",
        "gradient_norm",
        "nonfinite_total",
        "codebook_dead_ratio",
    ):
        show = show.with_panel(panels.over_time(CATALOGUE[name]))
    return show


def grouped(name: str, text: str, groups: tuple[str, ...]) -> dashboard.Dashboard:
    """Return a dashboard with one row for each group and one panel for each metric."""
    show = _skeleton(name, text)
    for group in groups:
        show = show.with_row(dashboard.Row(GROUPS[group]))
        for metric in CATALOGUE.values():
            if metric.group == group:
                show = show.with_panel(panels.for_metric(metric))
    return show


def _skeleton(name: str, text: str) -> dashboard.Dashboard:
    show = (
        dashboard.Dashboard(f"vqwatch / {TITLES[name]}")
        .uid(f"vqwatch-{name}")
        .description(text)
        .tags([TAG])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("vqwatch")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(panels.SOURCE)
            .enable(True)
            .icon_color("red")
            .expr(f"{_ALERTS} > 0")
        )
    )
    for variable in _variables(name):
        show = show.with_variable(variable)
    return show


def _variables(name: str) -> Iterator[Any]:
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield _choice("run", "Run", "label_values(vqwatch_run_info, run)")
    if name in {"overview", "codebooks", "reconstruction", "sidecar"}:
        yield _choice("layer", "Layer", 'label_values(vqwatch_codebook_size{run=~"$run"}, layer)')
    if name == "sidecar":
        yield _choice("instance", "Daemon", "label_values(vqwatch_build_info, instance)")


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(panels.SOURCE)
        .query(query)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
    )


def _json(builder: dashboard.Dashboard) -> str:
    made = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    for number, panel in enumerate(made["panels"], start=1):
        panel["id"] = number
    # Grafana's Prometheus annotations have these, the SDK's model has not.
    made["annotations"]["list"][-1] |= {
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} in run {{run}}",
        "tagKeys": "alertname,severity,run",
        "step": "10s",
    }
    return json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    for file, text in build().items():
        (directory / file).write_text(text)
