"""Alerts as JSON-able data and back, so that they survive a restart of the daemon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vqwatch_rules.alerts import Alert
from vqwatch_rules.compiling import Watch
from vqwatch_rules.judges import Labels
from vqwatch_rules.lifecycle import Record
from vqwatch_rules.memory import JumpJudge


def dump_record(watch: Watch, labels: Labels, record: Record) -> dict[str, Any]:
    """Return a pending or firing alert; for a jump also the history that it is judged against."""
    out: dict[str, Any] = {
        "alert": watch.rule.alert,
        "severity": watch.grade.severity,
        "labels": dict(zip(watch.label_names, labels, strict=True)),
        "constant": dict(watch.rule.labels),
        "value": _plain(record.value),
        "started_step": record.started_step,
        "active_at": record.active_at,
        "fired_at": record.fired_at,
    }
    if isinstance(watch.judge, JumpJudge):
        out["history"] = watch.judge.remembered(labels)
    return out


def load_record(raw: Mapping[str, Any]) -> Record:
    """Read a record back; a healthy stretch that had begun begins anew."""
    return Record(
        value=_number(raw["value"]),
        started_step=int(raw["started_step"]),
        active_at=float(raw["active_at"]),
        fired_at=None if raw["fired_at"] is None else float(raw["fired_at"]),
    )


def orphan(run: str, raw: Mapping[str, Any], record: Record, now: float) -> Alert:
    """Return the end of an alert whose rule is gone: whoever was told of it has to hear that."""
    labels = {"alertname": str(raw["alert"]), "severity": str(raw["severity"]), **raw["constant"], **raw["labels"]}
    if run:
        labels["run"] = run
    return Alert(
        name=labels["alertname"],
        severity=labels["severity"],
        run=run,
        labels=labels,
        annotations={"summary": "The rule behind this alert is gone.", "description": "", "runbook_url": ""},
        state="resolved",
        value=record.value,
        started_step=record.started_step,
        active_at=record.active_at,
        fired_at=record.fired_at,
        resolved_at=now,
    )


def dump_alert(alert: Alert) -> dict[str, Any]:
    """Return a resolved alert."""
    return {
        "name": alert.name,
        "severity": alert.severity,
        "run": alert.run,
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "value": _plain(alert.value),
        "started_step": alert.started_step,
        "active_at": alert.active_at,
        "fired_at": alert.fired_at,
        "resolved_at": alert.resolved_at,
        "action": alert.action,
    }


def load_alert(raw: Mapping[str, Any]) -> Alert:
    """Read a resolved alert back."""
    return Alert(**{**raw, "value": _number(raw["value"]), "state": "resolved"})


def _number(raw: Any) -> float:
    return math.nan if raw is None else float(raw)


def _plain(value: float) -> float | str | None:
    """JSON has no nan and no infinity."""
    return value if math.isfinite(value) else None if value != value else str(value)
