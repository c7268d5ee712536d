"""Who takes part in a run: which ranks are there, how far they are, what their emitters dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from vqwatch.wire import Goodbye, Hello, Step
from vqwatch_daemon.metrics.training import stalled_ratio
from vqwatch_daemon.readings import Readings, one

STEP_TIMES_KEPT: Final = 128
STEP_TIMES_NEEDED: Final = 20
"""Intervals between steps that must be known before a run can be called slow or stalled."""

JOIN_SECONDS: Final = 5.0
"""How long after a run's first word the ranks that it announced are awaited. They begin together where they train
together; where each machine has a daemon of its own, most of them never come to this one."""

SOMEBODY: Final = frozenset({-1})
"""Awaited together with the live ranks while some have not introduced themselves: speaks never."""

GONE_SECONDS: Final = 300.0
GONE_STEPS: Final = 50
"""A rank is gone after this long without a message, in seconds and in usual step times."""


@dataclass(slots=True)
class Rank:
    """One rank: its present session, its latest step and message, and the counters its emitter reported."""

    session: str
    first_step: int | None = None
    step: int = -1
    seen_at: float = 0.0
    away: float = 0.0  # seconds since `seen_at` in which no daemon was there to hear it
    returning: bool = False
    lost: int = 0
    shed: int = 0
    late: int = 0
    overhead: float | None = None
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    dropped_before: dict[tuple[str, str], int] = field(default_factory=dict)
    every: dict[str, int] = field(default_factory=dict)
    said_goodbye: bool = False
    era: int = 0


class Ranks:
    """All ranks of a run.

    ``live`` are those whose session is open and that were heard of lately; ``awaited`` are those that a step has to
    wait for: the live ones, and for a while those that were announced and did not come yet.
    """

    def __init__(self, silent_seconds: float = 30.0) -> None:
        self._silent_seconds = silent_seconds
        self._ranks: dict[int, Rank] = {}
        self._intervals: deque[float] = deque(maxlen=STEP_TIMES_KEPT)
        self._latest: tuple[int, int, float, float] | None = None  # rank, step, when by its clock and by ours
        self._era = 0  # how often the run went back to a checkpoint
        self._rewound_to = -1
        self._visited_at = 0.0  # by somebody who is no rank
        self._join_until = float("-inf")
        self.world_size = 1
        self.live: frozenset[int] = frozenset()
        self.awaited: frozenset[int] = frozenset()

    def __contains__(self, rank: int) -> bool:
        return rank in self._ranks

    def hello(self, message: Hello, now: float) -> None:
        """A session begins; a rank that comes back keeps its counters."""
        number = message.origin.rank
        if not self._ranks:
            self._join_until = now + JOIN_SECONDS
        rank = self._ranks.setdefault(number, Rank(message.origin.session))
        if rank.session != message.origin.session:
            for key, count in rank.dropped.items():
                rank.dropped_before[key] = rank.dropped_before.get(key, 0) + count
            rank.dropped = {}
            rank.session, rank.first_step = message.origin.session, None
        rank.said_goodbye = rank.returning = False
        rank.seen_at, rank.away = now, 0.0
        self.world_size = message.world_size
        self._count(now)

    def heard(self, number: int, now: float, lost: int = 0) -> None:
        """Any message of a rank arrived, and ``lost`` before it did not."""
        rank = self._ranks.get(number)
        if rank is None:
            self._visited_at = now
            return
        was_silent = _silence(rank, now) > self._silent_seconds
        rank.seen_at, rank.away = now, 0.0
        rank.lost += lost
        if was_silent:
            self._count(now)

    def shed(self, number: int) -> None:
        """A message of a rank was left out because more came than the daemon can take."""
        if number in self._ranks:
            self._ranks[number].shed += 1

    def late(self, number: int) -> None:
        """A rank's scalars came when their step had been read without them."""
        self._ranks[number].late += 1

    def step(self, message: Step, now: float) -> bool:
        """Take a step's report; return False when the rank told the same step before."""
        rank = self._ranks[message.origin.rank]
        if rank.first_step is not None and message.step <= rank.step:
            return False
        if rank.first_step is None:
            rank.first_step = message.step
        rank.step, rank.returning = message.step, False
        rank.overhead = message.overhead
        if message.every:
            rank.every = dict(message.every)
        for name, count in message.dropped.items():
            kind, _, reason = name.partition(":")
            rank.dropped[kind, reason] = count
        self._time(message, now)
        return True

    def _time(self, message: Step, now: float) -> None:
        """Measure step times by one rank's clock: the one that is furthest.

        How long ago that was is told by our own clock: theirs may be wrong by minutes.
        """
        number, seconds = message.origin.rank, message.time_ns / 1e9
        latest = self._latest
        if latest is not None and latest[0] == number and message.step > latest[1] and seconds > latest[2]:
            self._intervals.append((seconds - latest[2]) / (message.step - latest[1]))
        if self._latest is None or message.step > self._latest[1] or number == self._latest[0]:
            self._latest = (number, message.step, seconds, now)

    def goes_back(self, number: int, step: int) -> int | None:
        """Return the step from which on all is to be forgotten if ``step`` takes the run back to a checkpoint, or None.

        It does where a rank's new session begins no further than the one before had come, or where a rank tells a step
        before its latest: the same one again is no going back. The ranks that follow one that took the run back do not
        do so again; but what they told in the meantime, of steps that nobody has come to since, is to be forgotten.
        """
        rank = self._ranks[number]
        begins = rank.first_step is None
        if step > rank.step or (step == rank.step and not begins):
            return None
        follows = rank.era < self._era and step >= self._rewound_to
        forget: int | None = step
        if follows:
            reached = max((other.step for other in self._ranks.values() if other.era == self._era), default=step)
            forget = None if begins else reached + 1
        else:
            self._era += 1
            self._rewound_to = step
            self._latest = None
        rank.era = self._era
        rank.step = -1
        return forget

    def goodbye(self, message: Goodbye, now: float) -> None:
        """A session ends on purpose."""
        rank = self._ranks.get(message.origin.rank)
        if rank is not None and rank.session == message.origin.session:
            rank.said_goodbye, rank.returning = True, False
        self._count(now)

    def _count(self, now: float) -> None:
        self.live = frozenset(number for number, rank in self._ranks.items() if self._is_live(rank, now))
        self.awaited = self.live | SOMEBODY if self.joining(now) else self.live

    def joining(self, now: float) -> bool:
        """Return whether ranks that were announced may still introduce themselves for the first time."""
        return now < self._join_until and len(self._ranks) < self.world_size

    def _is_live(self, rank: Rank, now: float) -> bool:
        return not rank.said_goodbye and _silence(rank, now) <= self._silent_seconds

    @property
    def step_seconds(self) -> float | None:
        """The run's usual step time, None until it is known."""
        return median(self._intervals) if len(self._intervals) >= STEP_TIMES_NEEDED else None

    @property
    def seen_at(self) -> float:
        """When any rank, or somebody who brought an evaluation, was heard of last, Unix time; 0 before."""
        return max(self._visited_at, *(rank.seen_at for rank in self._ranks.values()), 0.0)

    @property
    def furthest(self) -> int:
        """The latest step that any rank reported, -1 before the first."""
        return max((rank.step for rank in self._ranks.values()), default=-1)

    @property
    def numbers(self) -> list[int]:
        """The ranks heard of so far."""
        return sorted(self._ranks)

    def state_name(self, now: float) -> str:
        """Return "live", "finished" (every rank said goodbye) or "gone" (silent without a goodbye)."""
        self._count(now)
        if self.live:
            return "live"
        return "finished" if all(rank.said_goodbye for rank in self._ranks.values()) else "gone"

    def ended_for(self, now: float) -> float | None:
        """Return how long ago the last rank said goodbye, in seconds; None while one has not, or none is known."""
        ranks = self._ranks.values()
        if not ranks or not all(rank.said_goodbye for rank in ranks):
            return None
        return max(0.0, now - max(rank.seen_at for rank in ranks))

    def are_gone(self, now: float) -> bool:
        """Return whether every rank that did not say goodbye is gone, and there is one."""
        left = [rank for rank in self._ranks.values() if not rank.said_goodbye]
        return bool(left) and all(self._is_gone(rank, now) for rank in left)

    def readings(self, now: float) -> Readings:
        """Return presence, lag, losses and drops of every rank, and how long the run has stood still."""
        self._count(now)
        furthest = self.furthest
        readings: Readings = {
            "last_message_timestamp_seconds": {},
            "rank_lag_steps": {},
            "rank_silent_seconds": {},
            "messages_lost_total": {},
            "messages_shed_total": {},
            "messages_late_total": {},
            "emitter_overhead_ratio": {},
            "emitter_dropped_total": {},
            "emitter_cadence_steps": {},
        }
        for number, rank in sorted(self._ranks.items()):
            label = str(number)
            readings["last_message_timestamp_seconds"][label,] = rank.seen_at
            readings["messages_lost_total"][label,] = rank.lost
            if rank.shed:
                readings["messages_shed_total"][label,] = rank.shed
            if rank.late:
                readings["messages_late_total"][label,] = rank.late
            if not rank.said_goodbye:
                readings["rank_silent_seconds"][label,] = max(0.0, _silence(rank, now))
                readings["rank_lag_steps"][label,] = furthest - rank.step
            if rank.overhead is not None:
                readings["emitter_overhead_ratio"][label,] = rank.overhead
            for kind, reason in rank.dropped.keys() | rank.dropped_before.keys():
                count = rank.dropped.get((kind, reason), 0) + rank.dropped_before.get((kind, reason), 0)
                readings["emitter_dropped_total"][label, kind, reason] = count
            for kind, every in rank.every.items():
                readings["emitter_cadence_steps"][label, kind] = every
        readings["sessions_gone"] = one(sum(self._is_gone(rank, now) for rank in self._ranks.values()))
        open_sessions = any(not rank.said_goodbye for rank in self._ranks.values())
        usual = self.step_seconds
        if usual is not None and self._latest is not None and open_sessions:
            number, _, _, at = self._latest
            readings["stalled_ratio"] = one(stalled_ratio(now - at - self._ranks[number].away, usual))
            readings["steps_per_second"] = one(1 / usual)
        else:
            readings["stalled_ratio"] = readings["steps_per_second"] = {}
        return readings

    def _is_gone(self, rank: Rank, now: float) -> bool:
        patience = max(GONE_SECONDS, GONE_STEPS * (self.step_seconds or 0.0))
        return not rank.said_goodbye and _silence(rank, now) > patience

    def state(self) -> dict[str, Any]:
        """Return what a restarted daemon needs, fit for JSON."""
        return {
            "world_size": self.world_size,
            "join_until": self._join_until,
            "visited_at": self._visited_at,
            "era": self._era,
            "rewound_to": self._rewound_to,
            "intervals": list(self._intervals),
            "latest": self._latest,
            "ranks": {
                str(number): {
                    "session": rank.session,
                    "first_step": rank.first_step,
                    "step": rank.step,
                    "seen_at": rank.seen_at,
                    "away": rank.away,
                    "returning": rank.returning,
                    "lost": rank.lost,
                    "shed": rank.shed,
                    "late": rank.late,
                    "overhead": rank.overhead,
                    "dropped": [[*key, count] for key, count in rank.dropped.items()],
                    "dropped_before": [[*key, count] for key, count in rank.dropped_before.items()],
                    "every": rank.every,
                    "said_goodbye": rank.said_goodbye,
                    "era": rank.era,
                }
                for number, rank in self._ranks.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.world_size, self._visited_at = state["world_size"], state["visited_at"]
        self._join_until = state["join_until"]
        self._era, self._rewound_to = state["era"], state["rewound_to"]
        self._intervals.extend(state["intervals"])
        latest = state["latest"]  # of three values where an earlier release wrote it
        self._latest = (*latest[:3], latest[-1]) if latest else None
        for number, item in state["ranks"].items():
            fields = dict(item)
            for key in ("dropped", "dropped_before"):
                fields[key] = {(kind, reason): count for kind, reason, count in fields[key]}
            self._ranks[int(number)] = Rank(**fields)
        self._count(self.seen_at)

    def absent(self, now: float, seconds: float, patience_seconds: float) -> None:
        """Note that the daemon was not there for so long until now: what it could not hear is not silence.

        Ranks that had not introduced themselves yet may need ``patience_seconds`` to do so.
        """
        if self.joining(now - seconds):
            self._join_until = now + patience_seconds
        for rank in self._ranks.values():
            if not rank.said_goodbye:
                rank.away += seconds
                rank.returning = True

    def returns(self, number: int) -> bool:
        """Return whether a rank reports its first step since the daemon was away."""
        return self._ranks[number].returning

    @property
    def returning(self) -> bool:
        """Whether some rank has not reported a step yet since the daemon was away."""
        return any(rank.returning for rank in self._ranks.values())


def _silence(rank: Rank, now: float) -> float:
    return now - rank.seen_at - rank.away
