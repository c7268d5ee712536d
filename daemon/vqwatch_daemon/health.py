"""Is my codebook healthy? Readings in, one tile per metric group and one sentence out.

The page, ``vqwatch top`` and the report show the same tiles, so the judgement is made once, here, from the
catalogue's bands. Pure: no clock, no socket, no colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vqwatch_daemon.catalogue import CATALOGUE, Bands
from vqwatch_daemon.readings import Labels

Verdict: TypeAlias = Literal["healthy", "concerning", "critical", "info", "unknown"]
Values: TypeAlias = Mapping[str, Mapping[Labels, float]]

SIGNS: Final[Mapping[str, str]] = {
    "healthy": "✓", "concerning": "!", "critical": "✕", "info": "·", "unknown": "?",
}  # fmt: skip
"""A sign beside each verdict, so that none is told by colour alone."""

_ORDER: Final = ("unknown", "info", "healthy", "concerning", "critical")

REVIVALS: Final = Bands(healthy=(None, 5), concerning=(None, 10))
"""Revived codes per step and layer: the proposal warns above 5 (5.1) and alerts above 10 (2.1)."""

OVERHEAD_BUDGET: Final = 0.01
"""The emitter's default budget, a share of the step."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One group's answer: ``value`` as people read it, ``detail`` what is behind it, ``spark`` the curve to draw.

    ``spark`` is (metric, label values). ``number`` is the value as a number; None when there is no evidence.
    """

    key: str
    title: str
    verdict: Verdict
    value: str
    detail: str
    number: float | None
    spark: tuple[str, Labels]


def judge(metric: str, value: float, codebook_size: float | None = None) -> Verdict:
    """Return the verdict of the catalogue's bands; "info" where the metric has none or its scale is not known.

    >>> judge("codebook_perplexity", 201.0, 256), judge("codebook_perplexity", 201.0), judge("step", 1.0)
    ('healthy', 'info', 'info')
    """
    known = CATALOGUE.get(metric)
    if known is None or known.bands is None or (known.bands.per_code and codebook_size is None):
        return "info"
    return _verdict(known.bands, value, codebook_size)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the most serious of the verdicts; "unknown" when there is none.

    >>> worst(["healthy", "critical", "concerning"])
    'critical'
    """
    return max(verdicts, key=_ORDER.index, default="unknown")


def tiles(readings: Values) -> list[Tile]:
    """Return one tile per metric group, in the order in which people look."""
    return [make(readings) for make in _MAKERS]


def headline(shown: Iterable[Tile], firing: Iterable[tuple[str, str]] = ()) -> tuple[Verdict, str]:
    """Return the verdict over the training and a sentence; ``firing`` holds (alert name, severity).

    What watching costs is no part of it: the emitter's tile stands for itself.

    >>> headline([], [("NanLoss", "critical")])
    ('critical', 'Critical: NanLoss is firing.')
    """
    known = [tile for tile in shown if tile.verdict != "unknown" and tile.key != "sidecar"]
    alerts = [(name, severity) for name, severity in firing if severity != "info"]
    verdict = worst(
        [tile.verdict for tile in known]
        + [("critical" if severity == "critical" else "concerning") for _, severity in alerts]
    )
    if verdict == "unknown":
        return "unknown", "No evidence yet."
    if verdict in ("healthy", "info"):
        return "healthy", "Healthy: every reading is in its healthy range."
    critical = [name for name, severity in alerts if severity == "critical"]
    names = list(dict.fromkeys(critical or [name for name, _ in alerts]))
    if names and (critical or verdict == "concerning"):
        rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
        are = "is" if len(names) == 1 else "are"
        return verdict, f"{verdict.capitalize()}: {', '.join(names[:2])}{rest} {are} firing."
    titles = [tile.title.lower() for tile in known if tile.verdict == verdict]
    return verdict, f"{verdict.capitalize()}: {_listed(titles)} outside the healthy range."


# --- the tiles --------------------------------------------------------------------------------------------------


def _utilization(readings: Values) -> Tile:
    series = _finite(readings, "codebook_utilization_ratio")
    mean = _scalar(readings, "codebook_utilization_mean_ratio")
    if not series:
        return _nothing("utilization", "Utilization", ("codebook_utilization_worst_ratio", ()))
    (layer, value), verdict = _worst_layer(readings, "codebook_utilization_ratio", series)
    detail = f"worst layer {layer}" + ("" if mean is None else f" · mean {mean:.0%}")
    spark: tuple[str, Labels] = ("codebook_utilization_ratio", (layer,))
    return Tile("utilization", "Utilization", verdict, f"{value:.0%}", detail, value, spark)


def _perplexity(readings: Values) -> Tile:
    series = _finite(readings, "codebook_perplexity")
    if not series:
        return _nothing("perplexity", "Perplexity", ("codebook_perplexity_mean", ()))
    (layer, value), verdict = _worst_layer(readings, "codebook_perplexity", series)
    size = _size(readings, layer)
    detail = f"worst layer {layer}" if size is None else f"of {size:.0f} codes · worst layer {layer}"
    spark: tuple[str, Labels] = ("codebook_perplexity", (layer,))
    return Tile("perplexity", "Perplexity", verdict, f"{value:.3g}", detail, value, spark)


def _dead(readings: Values) -> Tile:
    series = _finite(readings, "codebook_dead_ratio")
    if not series:
        return _nothing("dead", "Dead codes", ("codebook_dead_ratio", ("0",)), "the window is too short for a verdict")
    (layer, value), verdict = _worst_layer(readings, "codebook_dead_ratio", series)
    count = _finite(readings, "codebook_dead_codes").get((layer,))
    detail = f"worst layer {layer}" + ("" if count is None else f" · {count:.0f} codes")
    return Tile("dead", "Dead codes", verdict, f"{value:.0%}", detail, value, ("codebook_dead_ratio", (layer,)))


def _layers(readings: Values) -> Tile:
    spark: tuple[str, Labels] = ("codebook_bitrate_efficiency_ratio", ())
    value = _scalar(readings, "codebook_bitrate_efficiency_ratio")
    if value is None:
        return _nothing("layers", "Bitrate efficiency", spark)
    unique = _scalar(readings, "identifier_unique_ratio")
    detail = "bits carried over bits paid" if unique is None else f"{unique:.0%} of identifiers are unique"
    return Tile("layers", "Bitrate efficiency", "info", f"{value:.0%}", detail, value, spark)


def _ema(readings: Values) -> Tile:
    revivals = _finite(readings, "ema_revivals_per_step")
    movement = _finite(readings, "ema_relative_movement_ratio")
    nonfinite = sum(_finite(readings, "codebook_nonfinite_values").values())
    if nonfinite > 0:
        where = next(iter(readings["codebook_nonfinite_values"]))
        spark: tuple[str, Labels] = ("codebook_nonfinite_values", where)
        return Tile("ema", "Codebook", "critical", f"{nonfinite:.0f} NaN", "values in the codebook", nonfinite, spark)
    if revivals:
        (layer,), value = max(revivals.items(), key=lambda item: item[1])
        verdict = _verdict(REVIVALS, value)
        detail = f"codes revived per step, layer {layer}"
        return Tile("ema", "Revivals", verdict, f"{value:.3g}", detail, value, ("ema_revivals_per_step", (layer,)))
    if movement:
        (layer,), value = max(movement.items(), key=lambda item: item[1])
        detail = f"of its norm per step, layer {layer}"
        spark = ("ema_relative_movement_ratio", (layer,))
        return Tile("ema", "Codebook movement", "info", f"{value:.2%}", detail, value, spark)
    return _nothing("ema", "Revivals", ("ema_revivals_per_step", ("0",)))


def _reconstruction(readings: Values) -> Tile:
    spark: tuple[str, Labels] = ("reconstruction_snr_db", ())
    value = readings.get("reconstruction_snr_db", {}).get(())
    if value is None:
        return _nothing("reconstruction", "Reconstruction", spark)
    cosine = readings.get("reconstruction_cosine_similarity", {}).get(())
    verdicts = [judge("reconstruction_snr_db", value)]
    if cosine is not None:
        verdicts.append(judge("reconstruction_cosine_similarity", cosine))
    detail = "SNR" if cosine is None else f"SNR · cosine {cosine:.3f}"
    return Tile("reconstruction", "Reconstruction", worst(verdicts), f"{value:.1f} dB", detail, value, spark)


def _loss(readings: Values) -> Tile:
    losses = readings.get("loss", {})
    total = losses.get(("total",))
    broken = [component for (component, *_), value in losses.items() if not math.isfinite(value)]
    spark: tuple[str, Labels] = ("loss", ("total",)) if total is not None else ("loss_vq_to_reconstruction_ratio", ())
    if broken:
        names = ", ".join(broken)
        return Tile("loss", "Loss", "critical", "NaN", f"not finite: {names}", math.nan, ("loss", (broken[0],)))
    ratio = _scalar(readings, "loss_vq_to_reconstruction_ratio")
    if ratio is None and total is None:
        return _nothing("loss", "Loss", spark)
    verdict: Verdict = "info" if ratio is None else judge("loss_vq_to_reconstruction_ratio", ratio)
    value = ratio if total is None or not math.isfinite(total) else total
    shown = f"{value:.4g}" if value is not None else "—"
    detail = "total" if ratio is None else f"VQ / reconstruction {ratio:.2f}"
    return Tile("loss", "Loss", verdict, shown, detail, value, spark)


def _gradients(readings: Values) -> Tile:
    spark: tuple[str, Labels] = ("gradient_norm", ())
    value = readings.get("gradient_norm", {}).get(())
    if value is None:
        return _nothing("gradients", "Gradient norm", spark)
    rates = list(_finite(readings, "learning_rate").values())
    detail = f"learning rate {rates[0]:.2g}" if rates else "global, before clipping"
    return Tile("gradients", "Gradient norm", judge("gradient_norm", value), f"{value:.3g}", detail, value, spark)


def _sidecar(readings: Values) -> Tile:
    overheads = _finite(readings, "emitter_overhead_ratio")
    if not overheads:
        return _nothing("sidecar", "Emitter overhead", ("emitter_overhead_ratio", ("0",)))
    rank, value = max(overheads.items(), key=lambda item: item[1])
    dropped = sum(_finite(readings, "emitter_dropped_total").values())
    lost = sum(_finite(readings, "messages_lost_total").values())
    verdict: Verdict = "healthy" if value <= OVERHEAD_BUDGET and not lost else "concerning"
    detail = f"of the step · {dropped:.0f} dropped, {lost:.0f} lost"
    return Tile("sidecar", "Emitter overhead", verdict, f"{value:.2%}", detail, value, ("emitter_overhead_ratio", rank))


_MAKERS: Final[tuple[Callable[[Values], Tile], ...]] = (
    _utilization, _perplexity, _dead, _ema, _reconstruction, _loss, _gradients, _layers, _sidecar,
)  # fmt: skip


def _verdict(bands: Bands, value: float, codebook_size: float | None = None) -> Verdict:
    name = bands.verdict(value, int(codebook_size or 1))
    return "healthy" if name == "healthy" else "concerning" if name == "concerning" else "critical"


def _finite(readings: Values, metric: str) -> dict[Labels, float]:
    return {labels: value for labels, value in readings.get(metric, {}).items() if math.isfinite(value)}


def _scalar(readings: Values, metric: str) -> float | None:
    return _finite(readings, metric).get(())


def _size(readings: Values, layer: str) -> float | None:
    return _finite(readings, "codebook_size").get((layer,))


def _worst_layer(readings: Values, metric: str, series: Mapping[Labels, float]) -> tuple[tuple[str, float], Verdict]:
    """Return the layer that is worst by verdict, then by how low (dead codes: high) its value is."""
    sign = -1 if metric == "codebook_dead_ratio" else 1
    judged = [(judge(metric, value, _size(readings, layer)), layer, value) for (layer,), value in series.items()]
    verdict, layer, value = min(judged, key=lambda item: (-_ORDER.index(item[0]), sign * item[2]))
    return (layer, value), verdict


def _nothing(key: str, title: str, spark: tuple[str, Labels], why: str = "no evidence yet") -> Tile:
    return Tile(key, title, "unknown", "—", why, None, spark)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
