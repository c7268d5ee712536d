"""What was played, one row for each play: raw facts, judged when they are read, and as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from tests.faults.catalogue import EVERY_CASE, Case, Judgement, judge
from tests.faults.listening import Fired


@dataclass(frozen=True)
class Alarm:
    """An alert that fired: steps and seconds of training after the fault's begin, and from step() to the webhook."""

    step: int
    seconds: float
    severities: tuple[str, ...]
    webhook: float | None = None


@dataclass(frozen=True)
class Row:
    """One play of a fault (or of none) with one library and seed; ``error`` says why there was none.

    ``run`` is what Alertmanager was told, ``said`` when step() was called that made an alert fire; neither is kept.
    """

    library: str
    fault: str
    seed: int
    alarms: Mapping[str, Alarm] = field(default_factory=dict)
    error: str = ""
    run: str = ""
    said: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, library: str, fault: str, seed: int, fired: Iterable[Fired], run: str, said: Mapping[str, float]
    ) -> Self:
        """Return the row of what fired; of several severities and layers the first counts."""
        alarms: dict[str, Alarm] = {}
        for one in sorted(fired, key=lambda one: (one.step, one.now)):
            known = alarms.get(one.name)
            if known is None:
                alarms[one.name] = Alarm(one.step, round(one.now, 3), (one.severity,))
            else:
                alarms[one.name] = replace(known, severities=(*known.severities, one.severity))
        return cls(library, fault, seed, alarms, run=run, said=said)

    def arrived(self, seconds: Mapping[str, float]) -> Self:
        """Return the row with the seconds from step() to the webhook."""
        alarms = {name: replace(alarm, webhook=seconds.get(name)) for name, alarm in self.alarms.items()}
        return replace(self, alarms=alarms)

    @property
    def case(self) -> Case:
        """What the catalogue says of the fault."""
        return EVERY_CASE[self.fault]

    @property
    def judgement(self) -> Judgement:
        """How the fault was told."""
        return judge(self.case, {name: alarm.step for name, alarm in self.alarms.items()})

    @property
    def good(self) -> bool:
        """True when it was played, everything was told in time, and nothing false."""
        return not self.error and self.judgement.good

    @property
    def undelivered(self) -> list[str]:
        """The alerts that never came to the webhook."""
        return [name for name, alarm in self.alarms.items() if self.run and alarm.webhook is None]

    def line(self) -> str:
        """Return the row as a line of JSON."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("run", "said")}
        return json.dumps(kept)

    @classmethod
    def read(cls, line: str) -> Self:
        """Return the row that a line holds.

        >>> Row.read(Row("ema", "collapse", 1, {"VqSnrDrop": Alarm(5, 0.25, ("warning",), 0.004)}).line()).seed
        1
        """
        raw: dict[str, Any] = json.loads(line)
        alarms = {
            name: Alarm(**{**alarm, "severities": tuple(alarm["severities"])}) for name, alarm in raw["alarms"].items()
        }
        return cls(**{**raw, "alarms": alarms})
