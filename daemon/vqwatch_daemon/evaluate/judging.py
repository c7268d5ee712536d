"""What the alert rules say of one finished evaluation.

A pass is one settled measurement of a trained model, not a moment of a training, so a rule's ``for`` and ``after_step``
are taken as fulfilled: what holds, fires. Evidence gates stay, and look at the pass's own numbers. Rules that compare
with earlier steps or with time (spike, drop, slope, increase, stale, missing) have nothing to say and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.metrics import usage
from vqwatch_daemon.readings import Readings, known, one
from vqwatch_daemon.sections.corpus import SCORES, Corpus
from vqwatch_rules import Alert, Engine, LayerFacts, RuleSet, RunFacts, load
from vqwatch_rules.durations import NOW

SEVERITIES: Final = ("info", "warning", "critical")
MOMENTARY: Final = frozenset({"above", "below", "outside", "between", "equals", "not_finite"})
OWN_RULES: Final = Path(__file__).parent / "rules.yaml"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The alerts of one evaluation, worst first."""

    alerts: tuple[Alert, ...]

    def fails(self, severity: str | None) -> bool:
        """Return whether some alert is at least as bad as ``severity``; None lets everything pass."""
        if severity is None:
            return False
        least = SEVERITIES.index(severity)
        return any(SEVERITIES.index(alert.severity) >= least for alert in self.alerts)


def rules_for_evaluation(paths: Sequence[Path]) -> RuleSet:
    """Return the shipped rules with these files on top, as they apply to an evaluation. Raises RuleError."""
    metrics = {name: metric.labels for name, metric in CATALOGUE.items()}
    ruleset = load([OWN_RULES, *paths], metrics)
    kept = []
    for rule in ruleset.rules:
        conditions = getattr(rule.when, "of", (rule.when,))
        if rule.scope != "run" or not all(condition.is_ in MOMENTARY for condition in conditions):
            continue
        levels = {
            severity: level.model_copy(update={"for_": None, "after_step": None})
            for severity, level in rule.severities.items()
        }
        kept.append(rule.model_copy(update={"for_": NOW, "after_step": 0, "severities": levels}))
    return replace(ruleset, rules=tuple(kept), _runs=())


def readings(corpus: Corpus, step: int, losses: Mapping[str, float]) -> Readings:
    """Return a corpus under the names that rules know: those of the evaluation, and those of the training.

    Reconstruction readings are means over samples, usage is over the whole pass, each where its evidence supports it.
    """
    statistics = corpus.statistics()
    found: Readings = {"evaluation": dict(statistics.items()), "evaluation_step": one(step)}
    for name in SCORES:
        found[f"reconstruction_{name}"] = one(statistics.get((name, "mean"), float("nan")))
    for name in ("unique_ratio", "collision_ratio", "effective_count"):
        found[f"identifier_{name}"] = one(statistics.get((f"identifier_{name}", "mean"), float("nan")))
    found["loss"] = {(name,): value for name, value in losses.items()}
    if corpus.counts.any():
        per_layer = usage.per_layer(corpus.counts, corpus.sizes, corpus.repeats)
        labels = [(str(layer),) for layer in range(len(corpus.sizes))]
        found.update({name: known(labels, np.asarray(values)) for name, values in per_layer.items()})
        found.update({name: one(value) for name, value in usage.across_layers(per_layer).items()})
    return {name: series for name, series in found.items() if series}


def judge(ruleset: RuleSet, run: str, step: int, found: Readings, sizes: Sequence[int], now: float) -> Judgement:
    """Return the alerts that the rules raise over the readings of one evaluation; ``now`` is Unix seconds."""
    engine = Engine(ruleset)
    engine.describe(run, RunFacts(1, {str(layer): LayerFacts(size=size) for layer, size in enumerate(sizes)}))
    engine.observe(run, step, now, found)
    firing = [alert for alert in engine.alerts() if alert.state == "firing"]
    return Judgement(tuple(sorted(firing, key=lambda alert: -SEVERITIES.index(alert.severity))))
