"""Readings in, alerts out: every rule over every run, one step at a time.

No clock, no thread, no I/O: steps and times are arguments, and what changed is returned.

How it behaves where it matters:

* An alert ends by a healthy reading, by the end of its run or because its rule or layer is gone; never because
  readings stop coming or are not finite (`stale`, `missing` and `not_finite` are rules of their own).
* A reading late by up to `LATE_STEPS` steps is judged like any other. One from further back means that training
  returned to an earlier step: waits begin again there, histories are dropped, firing alerts go on until a healthy
  reading.
* `after_step` and evidence gates keep a rule from raising; without evidence it does not clear either, and a wait
  ends.
* Of a run that is gone, no wait is served by time alone: what it waits for is not seen any more. Of one that is
  finished, nothing is judged by time.
* A rule that fails spoils only itself and is counted in `rule_errors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vqwatch_rules.alerts import Alert, AlertState, Presence, RunFacts, State, Transition
from vqwatch_rules.compiling import Watch, compiled
from vqwatch_rules.errors import RuleError
from vqwatch_rules.judges import AllJudge, Judge, Labels, Series
from vqwatch_rules.lifecycle import CLEARS, HOLDS, UNKNOWN, Record, advance, begin, pass_time, start_over
from vqwatch_rules.load import RuleSet, unknown_layers
from vqwatch_rules.memory import JumpJudge, MemoryJudge
from vqwatch_rules.model import Rule
from vqwatch_rules.saving import dump_alert, dump_record, load_alert, load_record, orphan

LATE_STEPS: Final = 64
RESOLVED_SECONDS: Final = 15 * 60.0
MAX_RESOLVED: Final = 2000
MAX_RUNS: Final = 1024
MAX_ALERTS_PER_RULE: Final = 4096
STATE_VERSION: Final = 1


@dataclass(slots=True)
class _Channel:
    """One metric of one run, and everything that has to look at it."""

    step: int
    watches: list[Watch] = field(default_factory=list)
    bounded: list[tuple[Watch, Judge]] = field(default_factory=list)
    """Watches with the judge whose bounds tell whether this metric could matter to them."""
    fed: list[tuple[Rule, MemoryJudge]] = field(default_factory=list)


@dataclass(slots=True)
class _Run:
    name: str
    facts: RunFacts | None = None
    step: int = 0
    presence: Presence = "live"
    latest: dict[str, Series] = field(default_factory=dict)
    channels: dict[str, _Channel] = field(default_factory=dict)
    watches: list[Watch] = field(default_factory=list)
    timed: list[Watch] = field(default_factory=list)


class Engine:
    """Evaluates a rule set. Not safe to call from two threads at once.

    Of more than ``max_runs`` runs, the one that was opened first makes room and its alerts end.
    """

    def __init__(self, ruleset: RuleSet, *, max_runs: int = MAX_RUNS) -> None:
        self.ruleset = ruleset
        self.rule_errors: dict[str, int] = {}
        """Evaluations that failed, and alerts beyond :data:`MAX_ALERTS_PER_RULE`, by alert name."""
        self._max_runs = max_runs
        self._runs: dict[str, _Run] = {}
        self._resolved: dict[tuple[tuple[str, str], ...], Alert] = {}
        self._waiting: list[Transition] = []
        self._now = 0.0

    def describe(self, run: str, facts: RunFacts) -> tuple[str, ...]:
        """Take what a run says of itself; rules that depend on codebook kinds apply from now on.

        Alerts about layers that the run no longer has are resolved (with the next `observe` or `tick`). Returns a
        sentence for each layer that a rule names and the run does not have.
        """
        state = self._run(run)
        if facts != state.facts:
            state.facts = facts
            for watch in state.watches:
                if "layer" not in watch.label_names:
                    continue
                at = watch.label_names.index("layer")
                for labels in [labels for labels in watch.records if labels[at] not in facts.layers]:
                    self._end(state, watch, labels, state.step, self._now, self._waiting, "the layer is gone")
        return unknown_layers([watch.rule for watch in state.watches], tuple(facts.layers))

    def observe(self, run: str, step: int, now: float, readings: Mapping[str, Series]) -> list[Transition]:
        """Take the metrics that have just been updated and evaluate the rules that use any of them.

        Args:
            run: the run's name; "" for readings about the daemon itself.
            step: the training step that the readings are of.
            now: Unix seconds.
            readings: metric -> label values -> value, as `RuleSet.metrics` orders the labels. A metric's series
                replaces the last one whole. The engine keeps references: do not change them afterwards.
        """
        state = self._runs.get(run) or self._run(run)
        out = self._taken()
        self._now = max(self._now, now)
        state.latest.update(readings)
        if step > state.step:
            state.step = step
        channels = state.channels
        for metric, series in readings.items():
            channel = channels.get(metric)
            if channel is None:
                continue
            if step < channel.step - LATE_STEPS:
                self._rewind(state, channel, step, now)
            channel.step = step
            for rule, memory in channel.fed:
                try:
                    memory.feed(series, step, now)
                except Exception:  # one rule's failure spoils only that rule
                    self._failed(rule)
            if not channel.bounded:
                continue
            values = series.values()
            if values:
                low, high, total = min(values), max(values), sum(values)
                # nan - nan and inf - inf are nan; only finite sums cancel.
                odd = total - total != 0.0
            else:
                low, high, odd = math.inf, -math.inf, False
            for watch, judge in channel.bounded:
                if high > judge.high or low < judge.low or watch.records or odd:
                    self._evaluate(state, watch, step, now, out)
        return out

    def tick(self, now: float) -> list[Transition]:
        """Let time pass: waits in seconds, stale and missing readings; forget what was resolved long ago."""
        out = self._taken()
        self._now = max(self._now, now)
        for state in self._runs.values():
            for watch in state.timed if state.presence != "finished" else ():
                if watch.judge.by_time:
                    self._evaluate(state, watch, state.step, now, out)
                elif watch.records:
                    self._pass_time(state, watch, now, out)
        for key, alert in list(self._resolved.items()):
            if now - (alert.resolved_at or 0.0) > RESOLVED_SECONDS:
                del self._resolved[key]
        return out

    def alerts(self) -> list[Alert]:
        """Return what is pending, firing, and resolved within the last 15 minutes."""
        out = [
            self._alert(state, watch, labels, record, _shown(record), None)
            for state in self._runs.values()
            for watch in state.watches
            for labels, record in watch.records.items()
        ]
        return out + list(self._resolved.values())

    def presence(self, run: str, presence: Presence) -> None:
        """Take whether the run is still heard of; until told otherwise it is."""
        state = self._runs.get(run)
        if state is not None:
            state.presence = presence

    def finish(self, run: str, before: float, reason: str) -> list[Transition]:
        """End what began about a run up to ``before``: it is over. Its readings stay, and it may go on or be evaluated.

        Whoever was told of an alert is told of its end, as after `forget`.
        """
        state = self._runs.get(run)
        out = self._taken()
        if state is not None:
            self._end_all(state, before, out, reason)
        return out

    def forget(self, run: str, reason: str = "") -> list[Transition]:
        """Drop a run that is over, with its readings and histories; what was pending or firing ends.

        They end at the latest time that the engine has seen, and stay listed for 15 minutes, so that whoever was told
        of them is told of their end.
        """
        state = self._runs.pop(run, None)
        out = self._taken()
        if state is not None:
            self._end_all(state, math.inf, out, reason)
        return out

    def state(self) -> dict[str, Any]:
        """Return what has to survive a restart, as JSON-able data: pending, firing and resolved alerts."""
        runs = {}
        for name, state in self._runs.items():
            records = [
                dump_record(watch, labels, record)
                for watch in state.watches
                for labels, record in watch.records.items()
            ]
            steps = {metric: channel.step for metric, channel in state.channels.items() if channel.step}
            if records or steps:
                runs[name] = {"step": state.step, "steps": steps, "records": records}
        resolved = [dump_alert(alert) for alert in self._resolved.values()]
        return {"version": STATE_VERSION, "runs": runs, "resolved": resolved}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned, possibly under other rules.

        Alerts whose rule or severity is gone are resolved with the next `observe` or `tick`.

        Raises:
            ValueError: this is no such state.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"alert state of version {state.get('version')!r} cannot be read, only {STATE_VERSION}")
        try:
            for alert in (load_alert(raw) for raw in state["resolved"]):
                self._resolved[_key(alert.labels)] = alert
            for name, raw in state["runs"].items():
                self._restore_run(self._run(str(name)), raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged alert state: {error!r}") from error

    def _run(self, name: str) -> _Run:
        found = self._runs.get(name)
        if found is not None:
            return found
        held = [known for known in self._runs if known]
        if name and len(held) >= self._max_runs:
            self._waiting += self.forget(held[0], "newer runs needed the room")
        state = _Run(name)
        try:
            rules = self.ruleset.for_run(name)
        except RuleError:
            self.rule_errors["runs"] = self.rule_errors.get("runs", 0) + 1
            rules = self.ruleset.rules
        for rule in rules:
            if rule.scope != ("run" if name else "daemon"):
                continue
            for watch in compiled(rule, self.ruleset.metrics, self.ruleset.runbook_url(rule), lambda: state.facts):
                _connect(state, watch)
        self._runs[name] = state
        return state

    def _taken(self) -> list[Transition]:
        if not self._waiting:
            return []
        out, self._waiting = self._waiting, []
        return out

    def _failed(self, rule: Rule) -> None:
        self.rule_errors[rule.alert] = self.rule_errors.get(rule.alert, 0) + 1

    def _evaluate(self, state: _Run, watch: Watch, step: int, now: float, out: list[Transition]) -> None:
        grade, records = watch.grade, watch.records
        if not records and (step < grade.after_step or not watch.applies()):
            return
        try:
            for labels, value, verdict in watch.judge.verdicts(state.latest, step, now):
                record = records.get(labels)
                if record is None:
                    if verdict == HOLDS and step >= grade.after_step and self._has_evidence(watch, labels, state):
                        self._begin(state, watch, labels, value, step, now, out)
                    continue
                if watch.gates and not self._has_evidence(watch, labels, state):
                    # No evidence: no opinion on an alert, and no reason to go on waiting for one.
                    verdict = CLEARS if record.fired_at is None else UNKNOWN
                before = record.state
                after = advance(record, verdict, value, step, now, grade.hold, grade.keep)
                if after != before:
                    self._change(state, watch, labels, before, after, step, now, out)
        except Exception:  # one rule's failure spoils only that rule
            self._failed(watch.rule)

    def _pass_time(self, state: _Run, watch: Watch, now: float, out: list[Transition]) -> None:
        for labels, record in list(watch.records.items()):
            before = record.state
            if before == "pending" and state.presence == "gone":
                continue
            after = pass_time(record, now, watch.grade.hold, watch.grade.keep)
            if after != before:
                self._change(state, watch, labels, before, after, state.step, now, out)

    def _has_evidence(self, watch: Watch, labels: Labels, state: _Run) -> bool:
        return all(gate.passes(labels, state.latest) for gate in watch.gates)

    def _begin(
        self, state: _Run, watch: Watch, labels: Labels, value: float, step: int, now: float, out: list[Transition]
    ) -> None:
        if len(watch.records) >= MAX_ALERTS_PER_RULE:
            self._failed(watch.rule)
            return
        record = begin(value, step, now, watch.grade.hold)
        watch.records[labels] = record
        self._change(state, watch, labels, "inactive", record.state, step, now, out)

    def _change(
        self,
        state: _Run,
        watch: Watch,
        labels: Labels,
        before: State,
        after: State,
        step: int,
        now: float,
        out: list[Transition],
    ) -> None:
        record = watch.records[labels]
        if after in ("inactive", "resolved"):
            self._end(state, watch, labels, step, now, out)
            return
        alert = self._alert(state, watch, labels, record, _shown(record), None)
        if after == "firing":
            self._resolved.pop(_key(alert.labels), None)
        out.append(Transition(alert, before, after, step, now))

    def _end_all(self, state: _Run, before: float, out: list[Transition], reason: str) -> None:
        for watch in state.watches:
            for labels in [labels for labels, record in watch.records.items() if record.active_at <= before]:
                self._end(state, watch, labels, state.step, self._now, out, reason)

    def _end(
        self,
        state: _Run,
        watch: Watch,
        labels: Labels,
        step: int,
        now: float,
        out: list[Transition],
        reason: str = "",
    ) -> None:
        record = watch.records.pop(labels)
        alert = self._alert(state, watch, labels, record, "resolved", now)
        if record.fired_at is None:
            out.append(Transition(alert, "pending", "inactive", step, now, reason))
            return
        while len(self._resolved) >= MAX_RESOLVED:
            del self._resolved[next(iter(self._resolved))]
        self._resolved[_key(alert.labels)] = alert
        out.append(Transition(alert, "firing", "resolved", step, now, reason))

    def _rewind(self, state: _Run, channel: _Channel, step: int, now: float) -> None:
        state.step = step
        for _, memory in channel.fed:
            memory.forget()
        for watch in channel.watches:
            for record in watch.records.values():
                start_over(record, step, now)

    def _alert(
        self, state: _Run, watch: Watch, labels: Labels, record: Record, shown: AlertState, resolved_at: float | None
    ) -> Alert:
        named = {"alertname": watch.rule.alert, "severity": watch.grade.severity, **watch.rule.labels}
        if state.name:
            named["run"] = state.name
        named.update(zip(watch.label_names, labels, strict=True))
        return Alert(
            name=watch.rule.alert,
            severity=watch.grade.severity,
            run=state.name,
            labels=named,
            annotations={
                "summary": watch.summary.render(record.value, named),
                "description": watch.description.render(record.value, named),
                "runbook_url": watch.runbook_url,
            },
            state=shown,
            value=record.value,
            started_step=record.started_step,
            active_at=record.active_at,
            fired_at=record.fired_at,
            resolved_at=resolved_at,
            action=watch.grade.action,
        )

    def _restore_run(self, state: _Run, raw: Mapping[str, Any]) -> None:
        state.step = int(raw["step"])
        for metric, step in raw["steps"].items():
            if metric in state.channels:
                state.channels[metric].step = int(step)
        by_name = {(watch.rule.alert, watch.grade.severity): watch for watch in state.watches}
        for one in raw["records"]:
            record = load_record(one)
            watch = by_name.get((one["alert"], one["severity"]))
            named: Mapping[str, str] = one["labels"]
            if watch is None or set(named) != set(watch.label_names):
                if record.fired_at is not None:
                    self._orphan(state, one, record)
                continue
            labels = tuple(str(named[name]) for name in watch.label_names)
            watch.records[labels] = record
            if isinstance(watch.judge, JumpJudge) and one.get("history"):
                watch.judge.remember(labels, (float(value) for value in one["history"]))

    def _orphan(self, state: _Run, raw: Mapping[str, Any], record: Record) -> None:
        """Resolve an alert whose rule is gone: whoever was told of it has to hear the end."""
        now = max(self._now, record.active_at, record.fired_at or 0.0)
        alert = orphan(state.name, raw, record, now)
        self._resolved[_key(alert.labels)] = alert
        self._waiting.append(Transition(alert, "firing", "resolved", state.step, now, "the rule is gone"))


def _connect(state: _Run, watch: Watch) -> None:
    """Register a watch under each metric that can change its mind."""
    judges = watch.judge.judges if isinstance(watch.judge, AllJudge) else (watch.judge,)
    state.watches.append(watch)
    if watch.judge.by_time or watch.grade.hold.seconds or watch.grade.keep.seconds:
        state.timed.append(watch)
    for judge in judges:
        channel = state.channels.setdefault(judge.metric, _Channel(step=0))
        channel.watches.append(watch)
        channel.bounded.append((watch, judge))
        if isinstance(judge, MemoryJudge):
            channel.fed.append((watch.rule, judge))


def _shown(record: Record) -> AlertState:
    return "pending" if record.fired_at is None else "firing"


def _key(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
