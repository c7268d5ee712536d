"""What a PromQL expression asks for, by a real parser."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import promql_parser

from vqwatch_daemon.catalogue import CATALOGUE

# Grafana puts values in the place of these; the parser wants values.
_VARIABLES = {
    "$__rate_interval": "1m",
    "$__interval": "15s",
    "$__range": "1h",
}


def plain(expression: str) -> str:
    """Return the expression with Grafana's variables filled in."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    return re.sub(r"\$\{?(\w+)\}?", r"\1", expression)


def selectors(expression: str) -> Iterator[Any]:
    """Yield every vector selector. Raises ValueError on what is not PromQL."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(plain(expression)), found.append)
    yield from (node for node in found if isinstance(node, promql_parser.VectorSelector))


def metric_names(expression: str) -> set[str]:
    """Return the names of the metrics that an expression reads."""
    return {selector.name for selector in selectors(expression)}


def misnamed(expression: str, foreign: Collection[str] = ()) -> set[str]:
    """Return the names that neither the catalogue has nor ``foreign`` allows."""
    ours = {metric.exposed_name for metric in CATALOGUE.values()}
    ours |= {f"{m.exposed_name}_{part}" for m in CATALOGUE.values() if m.kind == "summary" for part in ("sum", "count")}
    return {name for name in metric_names(expression) if name not in ours and name not in foreign}
