"""The gallery's table, from rows of any number of plays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from tests.faults.catalogue import EVERY_CASE
from tests.faults.rows import Alarm, Row

HEADER = (
    "| library | fault | alert | told | to fire: least / median / most (within) | webhook, ms: median / most | false |",
    "|---|---|---|---|---|---|---|",
)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines: the table, what else fired, and the sums."""
    played = [row for row in rows if not row.error]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(played, key=lambda row: ([*EVERY_CASE].index(row.fault), row.library)):
        groups[row.library, row.fault].append(row)
    yield from HEADER
    for (library, fault), group in groups.items():
        yield from _lines(library, fault, group)
    yield from ("", "What else fired, as a consequence (plays in which it did, of how many):", "")
    for (library, fault), group in groups.items():
        others = Counter(name for row in group for name in row.alarms if name in row.case.also)
        if others:
            listed = ", ".join(f"{name} {count}" for name, count in others.most_common())
            yield f"- {library}, {fault} ({len(group)}): {listed}"
    yield from ("", *_sums(rows, played))


def _lines(library: str, fault: str, group: Sequence[Row]) -> Iterator[str]:
    case = EVERY_CASE[fault]
    false = Counter(name for row in group for name in row.judgement.false)
    wrong = ", ".join(f"{name} {count}" for name, count in false.items()) or "none"
    if not case.must:
        yield f"| {library} | {fault} | none | {len(group)} played | - | - | {wrong} |"
    for name, within in case.must.items():
        alarms = [row.alarms[name] for row in group if row.judgement.steps[name] is not None]
        if case.timed:
            fire = f"{_range([round(alarm.seconds) for alarm in alarms])} s"
        else:
            fire = f"{_range([alarm.step for alarm in alarms])} steps ({within})"
        told = f"{len(alarms)}/{len(group)}"
        yield f"| {library} | {fault} | {name} | {told} | {fire} | {_milliseconds(alarms)} | {wrong} |"


def _sums(rows: Sequence[Row], played: Sequence[Row]) -> Iterator[str]:
    due = list(chain.from_iterable(row.judgement.steps.values() for row in played))
    told = sum(step is not None for step in due)
    ways = [alarm for row in played for alarm in row.alarms.values()]
    healthy = [row for row in played if not row.case.must]
    seeds = {row.seed for row in played}
    yield f"{len(played)} plays, {len(seeds)} seeds; {told} of {len(due)} alerts that were due fired in time."
    yield (
        f"False alarms: {sum(bool(row.judgement.false) for row in played)} plays with any, "
        f"{sum(bool(row.alarms) for row in healthy)} of {len(healthy)} healthy plays with a warning or critical."
    )
    yield f"From step() to the webhook, {len(ways)} alerts: {_milliseconds(ways)} ms (median / max)."
    lost = sum(len(row.undelivered) for row in played)
    failed = [row for row in rows if row.error]
    if lost:
        yield f"{lost} alerts never came to the webhook."
    for row in failed:
        yield f"not played: {row.library} {row.fault} seed {row.seed}: {row.error.strip().splitlines()[-1]}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"


def _milliseconds(alarms: Sequence[Alarm]) -> str:
    ways = sorted(1e3 * alarm.webhook for alarm in alarms if alarm.webhook is not None)
    return f"{ways[len(ways) // 2]:.1f} / {ways[-1]:.1f}" if ways else "-"
