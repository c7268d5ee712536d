"""What happened when, in plain sentences. Pure: a story in, sentences out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from vqwatch_daemon.history.curve import Curve
from vqwatch_daemon.report.story import Episode, Story, together

_GAP_FACTOR = 30
_GAP_SECONDS = 60.0


def summary(story: Story, most_alerts: int = 8) -> list[str]:
    """Return the story in sentences: how long, what fired, how the codebooks, the reconstruction and the loss went."""
    parts = (_span(story), _gaps(story), _alerts(story, most_alerts), _codebooks(story), _reconstruction(story))
    return [sentence for part in (*parts, _loss(story), _speed(story)) for sentence in part]


def moment(seconds: float) -> str:
    """Return a time as people write it, in UTC.

    >>> moment(0)
    '1970-01-01 00:00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Return a span of time in its two largest units.

    >>> duration(3725), duration(42), duration(200_000)
    ('1 h 2 min', '42 s', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, size, part, part_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def _span(story: Story) -> list[str]:
    seconds = story.last_seen - story.started_at
    steps = story.last_step - story.first_step
    sizes = sorted({int(size) for size in story.readings.get("codebook_size", {}).values()})
    layers = len(story.readings.get("codebook_size", {}))
    stack = f", {layers} layers of {' and '.join(map(str, sizes))} codes" if sizes else ""
    took = f" in {duration(seconds)}" if seconds >= 1 else ""
    return [f"{steps:,} steps{took}, from {moment(story.started_at)} to {moment(story.last_seen)} UTC{stack}."]


def _gaps(story: Story) -> list[str]:
    item = story.curves.get("loss")
    if item is None or len(item.times) < 3:
        return []
    waits = np.diff(item.times)
    longest = int(np.argmax(waits))
    if waits[longest] < max(_GAP_SECONDS, _GAP_FACTOR * float(np.median(waits))):
        return []
    since = moment(float(item.times[longest]))
    return [
        f"Nothing was heard for {duration(float(waits[longest]))} after {since} UTC (step {item.steps[longest]:,})."
    ]


def _alerts(story: Story, most: int) -> list[str]:
    if not story.episodes:
        return ["No alert fired."]
    groups = together([episode for episode in story.episodes if episode.severity != "info"] or story.episodes)
    gravest = sorted(groups, key=lambda group: (group[0].severity != "critical", group[0].start_time))[:most]
    told = [_told(group) for group in sorted(gravest, key=lambda group: group[0].start_time)]
    if len(groups) > most:
        told.append(f"{len(groups) - most} more alerts fired; all are in the timeline.")
    return told


def _told(group: Sequence[Episode]) -> str:
    first = group[0]
    places = list(dict.fromkeys(episode.where for episode in group if episode.where))
    where = f" ({places[0]})" if len(places) == 1 else f" ({len(places)} places)" if places else ""
    head = f"{first.name}{where}, {first.severity}, fired at step {first.start_step:,}"
    ends = [episode.end_step for episode in group]
    if None in ends:
        return f"{head} and was still firing at the end."
    last = max(group, key=lambda episode: episode.end_time or 0.0)
    lasted = (last.end_time or 0.0) - first.start_time
    return f"{head} and was resolved at step {last.end_step:,}, {duration(lasted)} later."


def _codebooks(story: Story) -> list[str]:
    item = story.curves.get("codebook_utilization_ratio")
    if item is None:
        return []
    values = np.where(item.present, item.mean, np.nan)
    first, last = _mean(values[: max(1, len(values) // 50)]), _mean(values[-1:])
    lowest = np.unravel_index(int(np.nanargmin(np.where(item.present, item.low, np.inf))), values.shape)
    final = int(np.nanargmin(np.where(np.isfinite(values[-1]), values[-1], np.inf)))
    sentences = [
        f"Mean utilization went from {first:.0%} to {last:.0%}; at the end layer {item.labels[final][0]} is the least "
        f"used with {values[-1, final]:.0%}.",
    ]
    low = float(item.low[lowest])
    if low < 0.8 * float(values[-1, lowest[1]]):
        sentences.append(
            f"The lowest reading was {low:.0%}, in layer {item.labels[lowest[1]][0]} at step {item.steps[lowest[0]]:,}."
        )
    revived = sum(story.readings.get("ema_revived_codes_total", {}).values())
    if revived:
        sentences.append(f"{revived:,.0f} codes were revived in all.")
    return sentences


def _reconstruction(story: Story) -> list[str]:
    item = story.curves.get("reconstruction_snr_db")
    if item is None:
        return []
    return [_course(item, "The signal-to-noise ratio", lambda value: f"{value:.1f} dB", best="high")]


def _loss(story: Story) -> list[str]:
    item = story.curves.get("loss")
    if item is None:
        return []
    place = item.labels.index(("total",)) if ("total",) in item.labels else 0
    values = item.mean[:, place]
    sentences = [
        _course(item, f"The {item.labels[place][0]} loss", lambda value: f"{value:.4g}", best="low", place=place)
    ]
    broken = np.flatnonzero(item.present[:, place] & ~np.isfinite(values))
    if len(broken):
        samples = "1 sample" if len(broken) == 1 else f"{len(broken)} samples"
        sentences.append(f"It was not finite in {samples}, first at step {item.steps[broken[0]]:,}.")
    return sentences


def _speed(story: Story) -> list[str]:
    item = story.curves.get("steps_per_second")
    overhead = story.readings.get("emitter_overhead_ratio", {})
    if item is None:
        return []
    rate = float(np.median(item.mean[item.present]))
    beside = f"; watching it cost {max(overhead.values()):.2%} of a step" if overhead else ""
    return [f"It ran at {rate:.3g} steps a second{beside}."]


def _course(item: Curve, what: str, words: Callable[[float], str], best: str, place: int = 0) -> str:
    values = np.where(item.present[:, place], item.mean[:, place], np.nan)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return f"{what} was never finite."
    first, last = float(values[known[0]]), float(values[known[-1]])
    at = int(np.nanargmax(np.where(np.isfinite(values), values, np.nan)) if best == "high" else np.nanargmin(values))
    move = "stayed at" if math.isclose(first, last, rel_tol=0.02) else "rose to" if last > first else "fell to"
    start = f"{what} {move} {words(last)}" + ("" if move == "stayed at" else f" from {words(first)}")
    return f"{start}; best {words(float(values[at]))} at step {item.steps[at]:,}."


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
