"""The gallery's report: rows survive the file they are kept in, and the table tells what was missed, false and slow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.faults import report
from tests.faults.listening import Fired
from tests.faults.report import Job, jobs
from tests.faults.rows import Alarm, Row
from tests.faults.table import table
from tests.faults.webhook import Desk, Teller
from tests.servers import require_server

from vqwatch_rules import Alert

WARNING = ("warning",)


def nan_loss(seed: int, **alarms: Alarm) -> Row:
    return Row("ema", "nan-loss", seed, alarms)


def told(seed: int, webhook: float | None = 0.004) -> Row:
    return nan_loss(
        seed,
        VqLossNotFinite=Alarm(seed, 0.05, ("critical",), webhook),
        VqGradientNotFinite=Alarm(20, 1.0, WARNING, webhook),
    )


def printed(rows: Sequence[Row]) -> str:
    return "\n".join(table(rows))


def test_the_first_severity_and_layer_counts() -> None:
    fired = [Fired("VqA", "critical", 7, 0.4), Fired("VqA", "warning", 3, 0.2)]
    row = Row.of("ema", "nan-loss", 0, fired, "r", {})
    assert row.alarms == {"VqA": Alarm(3, 0.2, ("warning", "critical"))}


def test_a_row_survives_its_line() -> None:
    row = told(2)
    assert Row.read(row.line()) == row


def test_the_table_has_steps_milliseconds_and_how_many_were_told() -> None:
    text = printed([told(0), told(1, 0.010), told(2, 0.006)])
    assert "| ema | nan-loss | VqLossNotFinite | 3/3 | 0 / 1 / 2 steps (2) | 6.0 / 10.0 | none |" in text
    assert "6 of 6 alerts that were due fired in time." in text


def test_what_came_too_late_is_not_told() -> None:
    late = nan_loss(0, VqLossNotFinite=Alarm(3, 0.2, WARNING), VqGradientNotFinite=Alarm(20, 1.0, WARNING))
    assert not late.good
    assert "| VqLossNotFinite | 0/1 | - steps (2) |" in printed([late])
    assert "1 of 2 alerts that were due" in printed([late])


def test_what_follows_from_no_fault_is_false() -> None:
    row = nan_loss(0, **told(0).alarms, VqDeadCodes=Alarm(30, 1.5, WARNING))
    assert not row.good
    assert "| VqDeadCodes 1 |" in printed([row])


def test_an_alert_in_a_healthy_play_is_false() -> None:
    text = printed([Row("moshi", "healthy", 0), Row("moshi", "none", 0, {"VqSnrDrop": Alarm(1, 0.0, WARNING)})])
    assert "| moshi | healthy | none | 1 played | - | - | none |" in text
    assert "1 of 2 healthy plays with a warning or critical" in text


def test_an_alert_that_never_came_to_the_webhook_is_named() -> None:
    row = Row("ema", "nan-loss", 0, told(0, None).alarms, run="somebody was told")
    assert row.undelivered == ["VqLossNotFinite", "VqGradientNotFinite"]
    assert "2 alerts never came to the webhook." in printed([row])


def test_a_play_that_failed_is_no_success() -> None:
    row = Row("ema", "rank-drift", 3, error="Traceback\nRuntimeError: no port")
    assert not row.good
    assert "not played: ema rank-drift seed 3: RuntimeError: no port" in printed([row])


def test_kept_rows_are_put_together_and_judged_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        (tmp_path / f"{seed}.jsonl").write_text(told(seed).line() + "\n")
    assert report.main(["--from", *map(str, sorted(tmp_path.glob("*.jsonl")))]) == 0
    assert "2 plays, 2 seeds; 4 of 4" in capsys.readouterr().out
    (tmp_path / "1.jsonl").write_text(nan_loss(1).line() + "\n")
    assert report.main(["--from", *map(str, sorted(tmp_path.glob("*.jsonl")))]) == 1


def test_every_library_and_seed_is_played_once() -> None:
    todo = jobs(range(2), ["moshi", "ema"])
    assert len(set(todo)) == len(todo) == 2 * (2 + 2 + 3)
    assert {Job("moshi", 1, "all"), Job("ema", 0, "kill"), Job("ema", 1, "healthy-32")} <= set(todo)


def alert(name: str, **more: Any) -> Alert:
    labels = {"alertname": name, "severity": "warning", "run": "gallery"}
    return Alert(name, "warning", "gallery", labels, {}, "firing", 1.0, 3, 1.8e9, 1.8e9, **more)


def test_a_play_is_told_under_its_own_name_and_timed_to_the_webhook(tmp_path: Path) -> None:
    require_server("prometheus-alertmanager")
    with Desk(tmp_path) as desk:
        for run in ("first play", "second play"):
            teller = Teller(desk.url, run)
            said_at = time.time() - 2.0
            teller.fires(alert("VqA"), said_at)
            teller.update([alert("VqA")])
            seconds = desk.seconds(run, teller.said)
            teller.close()
            assert seconds.keys() == {"VqA"}
            assert 2.0 < seconds["VqA"] < 7.0
