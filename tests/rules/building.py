"""How the tests of the engine build rules, and what they ask of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vqwatch_rules import Alert, Engine, Transition

METRICS = {
    "loss": ("component",),
    "gradient_norm": (),
    "codebook_perplexity": ("layer",),
    "codebook_size": ("layer",),
    "codebook_samples": ("layer",),
    "drops_total": ("rank",),
    "step": (),
    "build_info": (),
}


Build = Callable[..., Engine]


def rule(**keys: Any) -> dict[str, Any]:
    return {"alert": "VqTest", "severity": "warning", "annotations": {"summary": "S.", "description": "D."}} | keys


def above(threshold: float, **keys: Any) -> dict[str, Any]:
    return {"metric": "gradient_norm", "is": "above", "threshold": threshold} | keys


def norm(engine: Engine, step: int, value: float, now: float | None = None) -> list[Transition]:
    return engine.observe("run", step, float(step) if now is None else now, {"gradient_norm": {(): value}})


def states(engine: Engine) -> list[str]:
    return [alert.state for alert in engine.alerts()]


def changes(found: list[Transition]) -> list[tuple[str, str]]:
    return [(one.from_, one.to) for one in found]


def only(engine: Engine) -> Alert:
    (alert,) = engine.alerts()
    return alert
