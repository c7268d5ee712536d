"""Alert rules: the model, the engine, the shipped pack.

>>> from vqwatch_rules import Engine, RunFacts, LayerFacts, load        # doctest: +SKIP
>>> engine = Engine(load([], {"loss": ("component",), ...}))            # doctest: +SKIP
>>> engine.observe("my-run", 17, 1700000000.0, {"loss": {("total",): float("nan")}})[0].alert.name  # doctest: +SKIP
'VqLossNotFinite'
"""

from vqwatch_rules.alerts import Alert, LayerFacts, RunFacts, Transition
from vqwatch_rules.engine import Engine
from vqwatch_rules.errors import Problem, RuleError, Where
from vqwatch_rules.load import RuleSet, default_pack, load, runbooks, unknown_layers

__all__ = [
    "Alert",
    "Engine",
    "LayerFacts",
    "Problem",
    "RuleError",
    "RuleSet",
    "RunFacts",
    "Transition",
    "Where",
    "default_pack",
    "load",
    "runbooks",
    "unknown_layers",
]
