"""What happens in the demo, as data: the plan, what was seen of it, and whether it went as promised.

Pure: no clock, no process, no terminal. Readings and alerts come as the HTTP API has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

ALARMING: Final = frozenset({"critical", "warning"})
OF_THE_SIDECAR: Final = frozenset(
    {"VqEmitterOverheadHigh", "VqEmitterDropping", "VqMessagesLost", "VqMessagesRejected", "VqAlertsNotDelivered"}
)
"""Alerts about watching, which a crowded machine may raise: shown, but no part of what the demo promises."""


@dataclass(frozen=True, slots=True)
class Script:
    """A fault as the demo plays it: how many steps it lasts, how many recovery gets, and its sentence."""

    lasts: int
    recovers: int
    sentence: str


FAULTS: Final[Mapping[str, Script]] = {
    "collapse": Script(160, 260, "every layer uses one code for everything"),
    "slow-death": Script(180, 300, "codes die one by one in every layer"),
    "deep-layer-unused": Script(150, 250, "the last two layers choose one code and remove nothing"),
    "nan-vector": Script(60, 250, "one NaN in one batch makes the whole codebook NaN"),
    "nan-loss": Script(60, 200, "the loss is NaN"),
    "exploding-gradients": Script(80, 200, "gradients are a thousand times too large"),
    "vanishing-gradients": Script(80, 200, "gradients are as good as zero"),
    "lr-x100": Script(100, 250, "the learning rate is a hundred times too high"),
    "point-embeddings": Script(150, 300, "the encoder shrinks to a point and the codebooks follow"),
    "decoupled": Script(100, 250, "the decoder gets the codes of another document"),
    "scrambled": Script(100, 250, "the decoder's frames come in the wrong order"),
    "low-pass": Script(100, 250, "the decoder smooths away what changes fast"),
    "churn": Script(100, 250, "most of the codebook is replaced at every step"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """At which steps the fault begins and ends, and how many steps there are."""

    fault: str
    sentence: str
    begins: int
    ends: int
    steps: int

    @classmethod
    def of(cls, fault: str, healthy_steps: int) -> Plan:
        """Return the plan for a fault after so many healthy steps.

        >>> Plan.of("nan-loss", 200).ends
        260
        """
        script = FAULTS[fault]
        ends = healthy_steps + script.lasts
        return cls(fault, script.sentence, healthy_steps, ends, ends + script.recovers)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: Unix time, training step, kind ("fired", "resolved", "fault", "mended"), and what.

    ``where`` lists the label sets that fired or were resolved together.
    """

    time: float
    step: int
    kind: str
    text: str
    severity: str = ""
    where: tuple[str, ...] = ()


@dataclass(slots=True)
class Seen:
    """One alert of one label set, as last seen; times are Unix seconds."""

    name: str
    severity: str
    where: str
    summary: str
    fired_at: float
    fired_step: int
    during_fault: bool
    resolved_at: float | None = None


@dataclass
class Story:
    """Everything seen so far; ``see`` takes it further."""

    plan: Plan
    step: int = -1
    readings: Mapping[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    alerts: dict[tuple[str, str, float], Seen] = field(default_factory=dict)
    began_at: float | None = None
    fault_at: float | None = None
    mended_at: float | None = None

    def see(self, now: float, readings: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]]) -> None:
        """Take in one look at the daemon at Unix time ``now``."""
        if readings:
            self.readings = readings
            step = value(readings, "step")
            self.step = int(step) if math.isfinite(step) else self.step
        if self.began_at is None and self.step >= 0:
            self.began_at = now
        if self.fault_at is None and self.step >= self.plan.begins:
            self.fault_at = now
            self.events.append(Event(now, self.step, "fault", f"fault put in: {self.plan.sentence}"))
        if self.mended_at is None and self.step >= self.plan.ends:
            self.mended_at = now
            self.events.append(Event(now, self.step, "mended", "fault taken out"))
        for alert in alerts:
            self._see_alert(now, alert)

    def _see_alert(self, now: float, alert: Mapping[str, Any]) -> None:
        if alert["fired_at"] is None:
            return
        labels = {key: text for key, text in alert["labels"].items() if key not in ("alertname", "severity", "run")}
        where = ", ".join(f"{key} {text}" for key, text in sorted(labels.items()))
        key = (alert["name"], f"{alert['severity']} {where}", float(alert["fired_at"]))
        seen = self.alerts.get(key)
        if seen is None:
            summary = alert["annotations"].get("summary", "")
            seen = Seen(alert["name"], alert["severity"], where, summary, key[2], self.step, self.fault_at is not None)
            for (name, place, _), before in self.alerts.items():
                if (name, place) == key[:2] and before.resolved_at is None:  # it was, between two looks
                    self._resolve(now, before, key[2])
            self.alerts[key] = seen
            self._tell(Event(now, self.step, "fired", seen.name, seen.severity, (where,)))
        if alert["state"] == "resolved" and seen.resolved_at is None:
            self._resolve(now, seen, float(alert["resolved_at"] or now))

    def _resolve(self, now: float, seen: Seen, at: float) -> None:
        seen.resolved_at = at
        self._tell(Event(now, self.step, "resolved", seen.name, seen.severity, (seen.where,)))

    def _tell(self, event: Event) -> None:
        """Add an event, to one of the same look and the same name where there is one."""
        for at, other in enumerate(self.events):
            if replace(other, where=()) == replace(event, where=()):
                self.events[at] = replace(other, where=other.where + event.where)
                return
        self.events.append(event)

    @property
    def firing(self) -> list[Seen]:
        """Warnings and criticals that are not resolved, oldest first."""
        return [seen for seen in self.alarming if seen.resolved_at is None]

    @property
    def alarming(self) -> list[Seen]:
        """Every warning and critical about the training there was, oldest first."""
        alarming = (s for s in self.alerts.values() if s.severity in ALARMING and s.name not in OF_THE_SIDECAR)
        return sorted(alarming, key=lambda seen: seen.fired_at)

    @property
    def settled(self) -> bool:
        """True when the fault is over, something fired because of it, and nothing fires any more."""
        return self.mended_at is not None and any(seen.during_fault for seen in self.alarming) and not self.firing


def _titled(seen: Seen) -> str:
    return f"{seen.name} ({seen.where})" if seen.where else seen.name


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the demo went as promised, and the lines that say so."""

    good: bool
    lines: tuple[str, ...]


def verdict(story: Story) -> Verdict:
    """Judge a finished story: an alert fired after the fault began, and all were resolved after it ended."""
    caused = [seen for seen in story.alarming if seen.during_fault]
    early = [seen for seen in story.alarming if not seen.during_fault]
    lines = [f"Fault: {story.plan.fault} ({story.plan.sentence}), steps {story.plan.begins} to {story.plan.ends}."]
    if early:
        lines.append("Fired before the fault: " + ", ".join(sorted({_titled(seen) for seen in early})) + ".")
    if not caused or story.fault_at is None:
        return Verdict(False, (*lines, "No alert fired after it."))
    first = caused[0]
    lines.append(
        f"Fired: {', '.join(_counted(caused))}; the first, {_titled(first)}, "
        f"{first.fired_step - story.plan.begins} steps and {max(0.0, first.fired_at - story.fault_at):.1f} s "
        "after the fault began."
    )
    if story.firing:
        lines.append("Never resolved: " + ", ".join(_counted(story.firing)) + ".")
        return Verdict(False, tuple(lines))
    last = max(seen.resolved_at or 0.0 for seen in caused)
    after = max(0.0, last - (story.mended_at or last))
    lines.append(f"All resolved, the last {after:.1f} s after the fault was taken out.")
    return Verdict(True, tuple(lines))


def _counted(alerts: Sequence[Seen]) -> list[str]:
    """Return every name once, in order of appearance, with how many label sets it has.

    >>> one = Seen("VqX", "critical", "layer 0", "", 0.0, 0, True)
    >>> _counted([one, Seen("VqX", "critical", "layer 1", "", 0.0, 0, True)])
    ['VqX ×2']
    """
    names = [seen.name for seen in alerts]
    return [name if names.count(name) == 1 else f"{name} ×{names.count(name)}" for name in dict.fromkeys(names)]


def values(readings: Mapping[str, Any], metric: str) -> list[float]:
    """Return every value of a metric, NaN and infinities included; none when it was not read."""
    found = readings.get(metric)
    return [float(row[-1]) for row in found["values"] if row[-1] is not None] if found else []


def value(readings: Mapping[str, Any], metric: str, *labels: str) -> float:
    """Return one value, by its label values; nan where there is none.

    >>> value({"loss": {"labels": ["component"], "values": [["total", 0.5]]}}, "loss", "total")
    0.5
    """
    found = readings.get(metric)
    for row in found["values"] if found else ():
        if tuple(row[:-1]) == labels and row[-1] is not None:
            return float(row[-1])
    return math.nan
