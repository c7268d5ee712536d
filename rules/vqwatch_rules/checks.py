"""What the shape of a rule cannot tell: are its metrics, labels and thresholds possible?

Metric names and their labels are data given by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

from vqwatch_rules.conditions import (
    Above,
    Below,
    Between,
    Drop,
    Equals,
    Increase,
    Missing,
    OnMetric,
    OnValue,
    Outside,
    Slope,
    Spike,
)
from vqwatch_rules.errors import unknown
from vqwatch_rules.model import Rule, conditions, grades
from vqwatch_rules.template import Template

Path: TypeAlias = tuple[str | int, ...]
Finding: TypeAlias = tuple[Path, str]

OPEN_RATIOS: Final = frozenset(
    {
        "codebook_latent_mean_distance_ratio",
        "codebook_latent_variance_ratio",
        "codebook_norm_spread_ratio",
        "codebook_norm_to_latent_ratio",
        "codebook_rank_divergence_ratio",
        "codebook_utilization_vs_uniform_ratio",
        "ema_relative_movement_ratio",
        "ema_threshold_to_uniform_ratio",
        "loss_share_ratio",
        "loss_vq_to_reconstruction_ratio",
        "residual_energy_ratio",
        "stalled_ratio",
        "update_to_weight_ratio",
    }
)
"""Ratios of two quantities that are no part and whole: they may be above 1."""


def bounds(metric: str) -> tuple[float, float]:
    """Return between which values a metric can be, as far as its name tells.

    >>> bounds("codebook_utilization_ratio"), bounds("messages_lost_total"), bounds("residual_gain_db")
    ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    if metric in OPEN_RATIOS:
        return 0.0, math.inf
    if metric.endswith("_ratio"):
        return 0.0, 1.0
    if metric.endswith(("_total", "_seconds", "_steps", "_codes", "_samples", "_variance", "_perplexity", "_size")):
        return 0.0, math.inf
    return -math.inf, math.inf


def findings(rule: Rule, metrics: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return every mistake in a rule that is well-formed, each with the path of keys that leads to it."""
    out: list[Finding] = []
    parts = conditions(rule.when)
    several = len(parts) > 1
    for number, part in enumerate(parts):
        at: Path = ("when", "of", number) if several else ("when",)
        out += [((*at, *path), text) for path, text in _names(part, metrics)]
    for number, gate in enumerate(rule.evidence):
        at = ("evidence", number)
        out += [((*at, "metric"), text) for text in _metric(gate.metric, metrics)]
        if gate.times is not None:
            out += [((*at, "times"), text) for text in _metric(gate.times, metrics)]
        out += [((*at, *path), text) for path, text in _where(gate.metric, gate.where, metrics)]
    if out:
        return out
    try:
        worked_out = grades(rule)
    except ValueError as error:
        return [(("severities",), _first_line(error))]
    for grade in worked_out:
        for number, part in enumerate(conditions(grade.when)):
            at = ("when", "of", number) if several else ("when",)
            own = ("severities", grade.severity) if rule.severities else at
            for key, text in _thresholds(part):
                out.append(((*(own if _is_own(rule, grade.severity, key) else at), key), text))
    out += _order(rule)
    out += _text(rule, metrics)
    return list(dict.fromkeys(out))


def label_names(rule: Rule, metrics: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the labels that the rule's alerts have besides alertname, severity and run.

    A condition over a mean, minimum, maximum or fraction has none; in an ``all`` the labels that ``where`` selects by
    are left out, because the conditions select different ones.
    """
    parts = conditions(rule.when)
    first = parts[0]
    if isinstance(first, OnValue) and first.over != "each":
        return ()
    if isinstance(first, Missing):
        return ("layer",) if "layer" in metrics[first.metric] else ()
    dropped = first.where if len(parts) > 1 else {}
    return tuple(name for name in metrics[first.metric] if name not in dropped)


def _is_own(rule: Rule, severity: str, key: str) -> bool:
    return any(name == severity and getattr(level, key, None) is not None for name, level in rule.severities.items())


def _names(part: OnMetric, metrics: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for text in _metric(part.metric, metrics):
        yield ("metric",), text
    yield from _where(part.metric, part.where, metrics)
    if isinstance(part, OnValue) and part.relative_to is not None:
        for text in _metric(part.relative_to, metrics):
            yield ("relative_to",), text


def _metric(name: str, metrics: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if name not in metrics:
        bare = name.removeprefix("vqwatch_")
        yield f"metrics are named without 'vqwatch_': {bare!r}" if bare in metrics else unknown("metric", name, metrics)


def _where(metric: str, where: Mapping[str, object], metrics: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for label in where:
        if metric in metrics and label not in metrics[metric]:
            yield ("where", label), unknown(f"label of {metric}", label, metrics[metric])


def _thresholds(part: OnMetric) -> Iterator[tuple[str, str]]:
    """Yield what is missing and what can never, or can only, be true."""
    for key, needed in _needed(part):
        if needed is None:
            yield key, f"'is: {getattr(part, 'is_', '')}' needs {key!r}, here or in every severity"
    if isinstance(part, Slope) and (part.above is None) == (part.below is None):
        yield "above", "'is: slope' needs either 'above' or 'below'"
    if isinstance(part, Spike | Drop) and not part.deviations > 0:
        yield "deviations", "has to be above 0"
    if isinstance(part, OnValue) and part.relative_to is None:
        yield from _impossible(part, *bounds(part.metric))


def _needed(part: OnMetric) -> Iterable[tuple[str, float | None]]:
    if isinstance(part, Above | Below | Increase):
        return (("threshold", part.threshold),)
    if isinstance(part, Outside | Between):
        return (("low", part.low), ("high", part.high))
    if isinstance(part, Equals):
        return (("value", part.value),)
    return ()


def _impossible(part: OnValue, low: float, high: float) -> Iterator[tuple[str, str]]:
    span = f"{part.metric} is between {low:g} and {high:g}"
    if isinstance(part, Above | Below) and part.threshold is not None:
        if not low <= part.threshold <= high:
            yield "threshold", f"{part.threshold:g} is impossible: {span}"
        elif math.isinf(part.threshold):
            yield "threshold", f"{part.threshold:g} is no threshold; use 'is: not_finite'"
        elif part.threshold == (high if isinstance(part, Above) else low):
            yield "threshold", f"can never be {part.is_} {part.threshold:g}: {span}"
        if part.clear is not None and not low <= part.clear <= high:
            yield "clear", f"{part.clear:g} is impossible: {span}"
    if isinstance(part, Outside | Between):
        for key, value in (("low", part.low), ("high", part.high)):
            if value is not None and not (low <= value <= high or math.isinf(value)):
                yield key, f"{value:g} is impossible: {span}"
    if isinstance(part, Equals) and part.value is not None and not low <= part.value <= high:
        yield "value", f"{part.value:g} is impossible: {span}"


def _order(rule: Rule) -> Iterator[Finding]:
    """Yield severities whose thresholds are the wrong way round: critical has to be the harder one to reach."""
    seen = [
        (grade.severity, grade.when.threshold)
        for grade in grades(rule)
        if isinstance(grade.when, Above | Below) and grade.when.threshold is not None
    ]
    for (worse, hard), (milder, easy) in pairwise(seen):
        if (isinstance(rule.when, Above) and hard < easy) or (isinstance(rule.when, Below) and hard > easy):
            yield (
                ("severities", worse, "threshold"),
                f"{worse} at {hard:g} would be reached before {milder} at {easy:g}",
            )


def _text(rule: Rule, metrics: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    known = {"alertname", "severity", "run", *label_names(rule, metrics), *rule.labels}
    for key in ("summary", "description"):
        for name in sorted(Template(getattr(rule.annotations, key)).label_names - known):
            yield ("annotations", key), unknown("label", name, known)


def _first_line(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if callable(errors):
        return str(errors()[0]["msg"]).removeprefix("Value error, ")
    return str(error)
