"""Alert rules: the model, the engine, the shipped pack.

``load(files, metrics)`` returns a `RuleSet`, ``Engine(ruleset)`` evaluates it: `Engine.describe` takes what a run says
of itself, `Engine.observe` its readings step by step, `Engine.tick` the time; each returns the `Transition` s of
alerts. ``export.export(ruleset)`` writes the same rules for Prometheus.
"""

from vqwatch_rules.alerts import Alert, LayerFacts, Presence, RunFacts, Transition
from vqwatch_rules.engine import Engine
from vqwatch_rules.errors import Problem, RuleError, Where
from vqwatch_rules.load import RuleSet, default_pack, load, runbooks, unknown_layers

__all__ = [
    "Alert",
    "Engine",
    "LayerFacts",
    "Presence",
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
