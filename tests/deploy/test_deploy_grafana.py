"""The dashboards: up to date, understood by Grafana's models, asking for what exists, in the style of its linter.

They are not rendered by a Grafana here; what is asked is answered by a real Prometheus in test_deploy_dashboards_live.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from vqwatch_daemon.catalogue import CATALOGUE

from .promql import metric_names, misnamed, selectors
from .tools import DEPLOY

GRAFANA = DEPLOY / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
# Grafana knows these keys of a Prometheus annotation, the SDK does not.
UNKNOWN_TO_SDK = {"titleFormat", "textFormat", "tagKeys", "step"}

dashboards = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def panels(file: Path) -> Iterator[dict[str, Any]]:
    for panel in read(file)["panels"]:
        yield from (inner for inner in [panel, *panel.get("panels", [])] if inner["type"] != "row")


def expressions(file: Path) -> list[str]:
    return [target["expr"] for panel in panels(file) for target in panel["targets"]]


def unknown(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what a round trip through Grafana's models loses or changes."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}"
            else:
                yield from unknown(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from unknown(one, other, f"{path}[{index}]")
    elif given != kept:
        yield path


def lost(board: dict[str, Any]) -> list[str]:
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    return [path for path in unknown(board, kept) if path.rpartition(".")[2] not in UNKNOWN_TO_SDK]


def test_the_committed_dashboards_are_those_of_the_catalogue(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True, timeout=60)
    assert [file.name for file in FILES] == sorted(file.name for file in tmp_path.iterdir())
    for file in FILES:
        assert file.read_text() == (tmp_path / file.name).read_text(), f"run deploy/grafana/generate.py for {file.name}"


def test_every_metric_is_on_a_dashboard() -> None:
    shown = set().union(*(metric_names(expr) for file in FILES for expr in expressions(file)))
    expected = {
        f"{metric.exposed_name}_sum" if metric.kind == "summary" else metric.exposed_name
        for metric in CATALOGUE.values()
    }
    assert expected - shown == set()


@dashboards
def test_grafanas_models_know_every_key(file: Path) -> None:
    assert lost(read(file)) == []


def test_a_misspelt_key_would_be_found() -> None:
    board = read(FILES[0])
    board["panels"][1]["titel"] = "x"
    assert lost(board) == [".panels[1].titel"]


@dashboards
def test_every_query_is_promql_about_metrics_that_we_export(file: Path) -> None:
    for expr in expressions(file):
        assert misnamed(expr) == set(), expr


@dashboards
def test_matchers_use_labels_that_the_metric_has(file: Path) -> None:
    by_name = {metric.exposed_name: metric for metric in CATALOGUE.values()}
    for expr in expressions(file):
        for selector in selectors(expr):
            metric = by_name[re.sub(r"(?<=seconds)_(sum|count)$", "", selector.name)]
            used = {matcher.name for matcher in selector.matchers.matchers}
            assert used <= {*metric.all_labels, "instance"}, expr


@dashboards
def test_variables_choose_source_and_run_and_follow_the_time(file: Path) -> None:
    variables = {variable["name"]: variable for variable in read(file)["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in set(variables) - {"datasource"}:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"])
        assert asked is not None
        assert misnamed(asked[1]) == set()
        assert variables[name]["refresh"] == 2
        assert variables[name]["includeAll"]
    used = {name for expr in expressions(file) for name in re.findall(r"\$(?!__)(\w+)", expr)}
    assert used == set(variables) - {"datasource"}


@dashboards
def test_every_panel_says_what_it_shows_and_in_what_unit(file: Path) -> None:
    seen = list(panels(file))
    for panel in seen:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target.get("legendFormat") or target["format"] == "table"
    assert len({panel["title"] for panel in seen}) == len(seen)
    assert len({panel["id"] for panel in read(file)["panels"]}) == len(read(file)["panels"])


@dashboards
def test_counters_are_rates_over_grafanas_interval(file: Path) -> None:
    for expr in expressions(file):
        if any(name.endswith("_total") for name in metric_names(expr)):
            assert re.match(r"(topk\(\d+, )?sum by \(.+\) \(rate\(.+\[\$__rate_interval\]\)\)+$", expr), expr


@dashboards
def test_panels_do_not_overlap(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(file)["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@dashboards
def test_a_dashboard_is_found_linked_annotated_and_not_editable(file: Path) -> None:
    board = read(file)
    assert board["uid"] == f"vqwatch-{file.stem}"
    assert board["tags"] == ["vqwatch"]
    assert board["editable"] is False
    [link] = board["links"]
    assert link["tags"] == ["vqwatch"]
    assert link["includeVars"]
    assert link["keepTime"]
    annotation = board["annotations"]["list"][-1]
    assert metric_names(annotation["expr"]) == {"vqwatch_alerts_firing"}
    assert "{{alertname}}" in annotation["titleFormat"]


def test_thresholds_have_the_colours_of_the_bands() -> None:
    colours = {"healthy": "green", "concerning": "orange", "critical": "red"}
    banded = {m.exposed_name: m.bands for m in CATALOGUE.values() if m.bands and not m.bands.per_code}
    checked = set()
    for panel in (panel for file in FILES for panel in panels(file)):
        names = metric_names(panel["targets"][0]["expr"])
        if len(names) != 1 or not names <= set(banded):
            continue
        [name] = names
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        for low, high in itertools.pairwise([*steps, {"value": None}]):
            below = low["value"] if low["value"] is not None else high["value"] - 1
            above = high["value"] if high["value"] is not None else below + 1
            assert colours[banded[name].verdict((below + above) / 2)] == low["color"], name
        checked.add(name)
    assert checked == set(banded)
