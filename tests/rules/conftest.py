"""Rule files and engines for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.rules.building import METRICS, Build

from vqwatch_rules import Engine, RuleSet, load


@pytest.fixture
def ruleset(tmp_path: Path) -> Callable[..., RuleSet]:
    def build(*rules: Mapping[str, Any], **keys: Any) -> RuleSet:
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump({"extends": "nothing", "rules": [dict(one) for one in rules], **keys}), "utf-8")
        return load([path], METRICS)

    return build


@pytest.fixture
def engine(ruleset: Callable[..., RuleSet]) -> Build:
    return lambda *rules, **keys: Engine(ruleset(*rules, **keys))
