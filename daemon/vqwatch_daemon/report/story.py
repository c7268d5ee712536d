"""Everything that a report tells, gathered out of the history. Reads; does not render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vqwatch_daemon import health
from vqwatch_daemon.history import HistoryReader
from vqwatch_daemon.history.curve import Curve, thin
from vqwatch_daemon.history.reader import shown
from vqwatch_daemon.readings import Readings

POINTS: Final = 240
MOST_ALERTS: Final = 5000
_SNAPSHOTS: Final = 3


@dataclass(frozen=True, slots=True)
class Episode:
    """An alert from firing to resolved; ``end_step`` and ``end_time`` are None when it still fired at the end."""

    name: str
    severity: str
    labels: Mapping[str, str]
    summary: str
    start_step: int
    start_time: float
    end_step: int | None
    end_time: float | None

    @property
    def where(self) -> str:
        """The labels that tell alerts of one name apart, as people read them."""
        hidden = ("alertname", "severity", "run")
        return ", ".join(f"{name} {value}" for name, value in self.labels.items() if name not in hidden)

    def as_dict(self) -> dict[str, Any]:
        """Return the episode as a JSON-able map."""
        return {
            "name": self.name,
            "severity": self.severity,
            "labels": dict(self.labels),
            "summary": self.summary,
            "start_step": self.start_step,
            "start_time": self.start_time,
            "end_step": self.end_step,
            "end_time": self.end_time,
        }


@dataclass(frozen=True, slots=True)
class Story:
    """One run from its first sample to its last.

    ``curves`` hold everything that was kept, ``shown`` the same thinned and JSON-able; ``readings`` are the last ones;
    ``snapshots`` are code usage at the beginning, amid the first critical alert and at the end.
    """

    run: str
    started_at: float
    last_seen: float
    first_step: int
    last_step: int
    curves: Mapping[str, Curve]
    shown: Mapping[str, Any]
    readings: Readings
    episodes: Sequence[Episode]
    snapshots: Sequence[Mapping[str, Any]]
    tiles: Sequence[health.Tile]
    verdict: health.Verdict
    sentence: str


def gather(reader: HistoryReader, run: str) -> Story:
    """Return the story of a run that the history knows; raises KeyError for another."""
    facts = {item["name"]: item for item in reader.runs()}[run]
    curves = reader.curves(run, reader.metrics(run))
    readings = reader.latest(run)
    found = episodes(list(reversed(reader.alert_log(run, limit=MOST_ALERTS))))
    tiles = health.tiles(readings)
    firing = [(episode.name, episode.severity) for episode in found if episode.end_step is None]
    verdict, sentence = health.headline(tiles, firing)
    return Story(
        run=run,
        started_at=facts["started_at"],
        last_seen=facts["last_seen"],
        first_step=facts["first_step"],
        last_step=facts["step"],
        curves=curves,
        shown={metric: shown(metric, thin(item, POINTS)) for metric, item in curves.items()},
        readings=readings,
        episodes=found,
        snapshots=_snapshots(reader, run, found),
        tiles=tiles,
        verdict=verdict,
        sentence=sentence,
    )


def episodes(log: Sequence[Mapping[str, Any]]) -> list[Episode]:
    """Return the episodes of a log of transitions in order of time, the earliest first.

    >>> entry = {"name": "A", "severity": "critical", "labels": {}, "annotations": {}, "time": 1.0, "step": 10}
    >>> log = [{**entry, "to": "firing"}, {**entry, "to": "resolved", "step": 12}]
    >>> [(episode.start_step, episode.end_step) for episode in episodes(log)]
    [(10, 12)]
    """
    open_: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    done: list[Episode] = []
    for entry in log:
        labels = entry.get("labels") or {}
        key = (entry.get("name"), entry.get("severity"), *sorted(labels.items()))
        if entry.get("to") == "firing":
            open_.setdefault(key, entry)
        elif key in open_:
            done.append(_episode(open_.pop(key), entry))
    done.extend(_episode(entry, None) for entry in open_.values())
    return sorted(done, key=lambda episode: (episode.start_time, episode.name))


def together(found: Sequence[Episode], seconds: float = 60.0) -> list[list[Episode]]:
    """Return the episodes in groups: those of one name and severity that began within ``seconds`` of each other."""
    groups: list[list[Episode]] = []
    latest: dict[tuple[str, str], list[Episode]] = {}
    for episode in found:
        key = (episode.name, episode.severity)
        group = latest.get(key)
        if group is None or episode.start_time - group[-1].start_time > seconds:
            group = latest[key] = []
            groups.append(group)
        group.append(episode)
    return groups


def _episode(start: Mapping[str, Any], end: Mapping[str, Any] | None) -> Episode:
    annotations = start.get("annotations") or {}
    return Episode(
        name=str(start.get("name", "")),
        severity=str(start.get("severity", "")),
        labels=start.get("labels") or {},
        summary=str(annotations.get("description") or annotations.get("summary") or ""),
        start_step=int(start.get("step") or 0),
        start_time=float(start.get("time") or 0.0),
        end_step=None if end is None else int(end.get("step") or 0),
        end_time=None if end is None else float(end.get("time") or 0.0),
    )


def _snapshots(reader: HistoryReader, run: str, found: Sequence[Episode]) -> list[Mapping[str, Any]]:
    steps = [step for step, _ in reader.usage_steps(run)]
    if not steps:
        return []
    wanted = {steps[0], steps[-1]}
    critical = [episode for episode in found if episode.severity == "critical"]
    if critical:
        first = critical[0]
        end = steps[-1] if first.end_step is None else first.end_step
        middle = (first.start_step + end) / 2
        wanted.add(min(steps, key=lambda step: abs(step - middle)))
    taken = [reader.usage_at(run, step) for step in sorted(wanted)[:_SNAPSHOTS]]
    return [item for item in taken if item is not None]
