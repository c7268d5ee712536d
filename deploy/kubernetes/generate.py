"""Write the PrometheusRule from deploy/prometheus/rules, so that plain Prometheus and the operator read the same rules.

Run it after a change of the rules: ``python deploy/kubernetes/generate.py``. A test keeps the result up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
HEAD = "# Made by deploy/kubernetes/generate.py from deploy/prometheus/rules; do not edit.\n"


def prometheus_rule() -> dict[str, Any]:
    """Return the PrometheusRule object with all groups of all rule files, in the order of their names."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vqwatch"},
        "spec": {"groups": groups},
    }


def outputs() -> dict[Path, str]:
    """Return each generated file's path and text: the kustomize resource, and the groups that the chart includes."""
    rule = prometheus_rule()
    text = yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)
    groups = yaml.safe_dump(rule["spec"], sort_keys=False, width=120, allow_unicode=True)
    return {
        HERE / "monitoring" / "prometheusrule.yaml": HEAD + text,
        HERE / "chart" / "files" / "rules.yaml": HEAD + groups,
    }


if __name__ == "__main__":
    for path, text in outputs().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
