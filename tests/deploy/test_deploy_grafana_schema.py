"""The dashboards against the JSON schema made from Grafana's own types. There is no Grafana here."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.servers import require_server

DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
PACKAGES = ("@grafana/schema@13.2.3", "ts-json-schema-generator@2.4.0")
TYPES = "node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen.d.ts"

KNOWN_BESIDES = {
    "templating": {"auto", "auto_count", "auto_min"},  # the SDK writes what belongs to interval variables to all
    "annotations": {
        "expr",
        "step",
        "tagKeys",
        "textFormat",
        "titleFormat",
    },  # of Prometheus' annotations, not the core's
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The schema of a dashboard, made by the tools from npm."""
    npm = require_server("npm")
    folder = tmp_path_factory.mktemp("schema")
    subprocess.run([npm, "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True, capture_output=True)
    made = subprocess.run(
        ["node_modules/.bin/ts-json-schema-generator", "--no-type-check", "--path", TYPES, "--type", "Dashboard"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return json.loads(made.stdout)


def without_known(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard without the keys that are right and that the schema does not know."""
    stripped = copy.deepcopy(dashboard)
    for section, keys in KNOWN_BESIDES.items():
        for entry in stripped[section]["list"]:
            for key in keys:
                entry.pop(key, None)
    return stripped


def faults(schema: Any, dashboard: dict[str, Any]) -> list[str]:
    """Return what the schema says against a dashboard."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [
        f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(without_known(dashboard))
    ]


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_is_as_grafanas_types_say(schema: Any, path: Path) -> None:
    assert faults(schema, json.loads(path.read_text(encoding="utf-8"))) == []


def test_a_key_that_grafana_does_not_know_and_a_value_it_refuses_would_be_found(schema: Any) -> None:
    dashboard = json.loads((DASHBOARDS / "overview.json").read_text(encoding="utf-8"))
    assert faults(schema, {**dashboard, "titel": "misspelt"})
    assert faults(schema, {**dashboard, "graphTooltip": "often"})
