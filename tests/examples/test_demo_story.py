"""The demo's story: what it takes for good, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from vqwatch_daemon.demo_story import FAULTS, Event, Plan, Story, verdict
from vqwatch_daemon.demo_view import ROWS, judge, line, status_line

PLAN = Plan("collapse", "everything is one code", begins=100, ends=150, steps=200)


def readings(step: int, **more: float) -> dict[str, Any]:
    return {name: {"labels": [], "values": [[value]]} for name, value in {"step": step, **more}.items()}


def alert(name: str, fired: float | None, resolved: float | None = None, **labels: str) -> dict[str, Any]:
    severity = labels.pop("severity", "critical")
    state = "pending" if fired is None else "firing" if resolved is None else "resolved"
    return {
        "name": name, "severity": severity, "run": "demo", "state": state, "fired_at": fired, "resolved_at": resolved,
        "labels": {"alertname": name, "severity": severity, "run": "demo", **labels}, "annotations": {},
    }  # fmt: skip


def told(*looks: tuple[int, list[dict[str, Any]]]) -> Story:
    """A story of looks, one second apart: the step and the alerts."""
    story = Story(PLAN)
    for second, (step, alerts) in enumerate(looks):
        story.see(float(second), readings(step), alerts)
    return story


def test_an_alert_that_fires_after_the_fault_and_resolves_is_the_demo() -> None:
    story = told(
        (0, []), (100, []), (120, [alert("VqA", 2.0)]), (150, [alert("VqA", 2.0)]), (180, [alert("VqA", 2.0, 4.0)])
    )
    assert story.settled
    outcome = verdict(story)
    assert outcome.good
    assert "the first, VqA, 20 steps and 1.0 s after the fault began" in outcome.lines[1]
    assert outcome.lines[2] == "All resolved, the last 1.0 s after the fault was taken out."


def test_without_an_alert_the_demo_failed() -> None:
    outcome = verdict(told((0, []), (100, []), (199, [])))
    assert not outcome.good
    assert outcome.lines[-1] == "No alert fired after it."


def test_an_alert_that_stays_makes_the_demo_fail() -> None:
    story = told((0, []), (100, []), (120, [alert("VqA", 2.0, layer="3")]), (199, [alert("VqA", 2.0, layer="3")]))
    assert not story.settled
    assert verdict(story).lines[-1] == "Never resolved: VqA."


def test_an_alert_before_the_fault_does_not_count_as_caused_by_it() -> None:
    outcome = verdict(told((0, []), (50, [alert("VqA", 1.0)]), (100, [alert("VqA", 1.0, 2.0)]), (199, [])))
    assert not outcome.good
    assert outcome.lines[1] == "Fired before the fault: VqA."


def test_infos_and_pending_alerts_do_not_count() -> None:
    story = told((0, []), (120, [alert("VqA", None), alert("VqB", 1.0, severity="info")]))
    assert story.alarming == []


def test_an_alert_about_watching_is_shown_and_not_judged() -> None:
    story = told((120, [alert("VqEmitterOverheadHigh", 0.0, severity="warning")]))
    assert story.events[-1].text == "VqEmitterOverheadHigh"
    assert story.alarming == []


def test_an_alert_that_fires_again_is_told_again() -> None:
    story = told((120, [alert("VqA", 0.0)]), (130, [alert("VqA", 0.0, 1.0)]), (140, [alert("VqA", 2.0)]))
    assert [event.kind for event in story.events if event.text == "VqA"] == ["fired", "resolved", "fired"]


def test_an_alert_that_resolved_and_fired_again_between_two_looks_is_not_left_open() -> None:
    again = alert("VqA", 3.5)
    story = told((0, []), (100, []), (120, [alert("VqA", 2.0)]), (140, []), (160, [again]))
    assert [(event.kind, event.step) for event in story.events if event.text == "VqA"] == [
        ("fired", 120), ("resolved", 160), ("fired", 160),
    ]  # fmt: skip
    assert [seen.fired_at for seen in story.firing] == [3.5]
    story.see(5.0, readings(180), [alert("VqA", 3.5, 4.5)])
    assert verdict(story).good


def test_layers_that_fire_together_are_one_line() -> None:
    story = told((120, [alert("VqA", 0.0, layer=str(layer)) for layer in range(8)]))
    text = line(story.events[-1], story).plain
    assert text.endswith("VqA (8 times: layer 0, layer 1, …) fired [critical]")


def test_a_look_without_an_answer_changes_nothing() -> None:
    story = told((120, []))
    before = (story.step, story.readings)
    story.see(9.0, {}, [])
    assert (story.step, story.readings) == before


def test_the_status_line_leaves_out_what_was_not_read() -> None:
    story = told((7, []))
    assert status_line(story) == "step 7/200"
    story.see(1.0, readings(8, reconstruction_snr_db=12.34), [])
    assert status_line(story) == "step 8/200  signal to noise 12.3 dB"


@pytest.mark.parametrize(
    ("name", "reading", "expected"),
    [
        ("signal to noise", 18.0, "healthy"),
        ("signal to noise", 12.0, "concerning"),
        ("signal to noise", 2.0, "critical"),
        ("signal to noise", float("nan"), ""),
        ("utilization, mean", 1.0, "healthy"),
        ("utilization, mean", 0.1, "critical"),
        ("perplexity, worst layer", 120.0, "healthy"),
        ("perplexity, worst layer", 20.0, "critical"),
        ("loss", 1.0, ""),
    ],
)
def test_readings_are_judged_by_the_catalogue(name: str, reading: float, expected: str) -> None:
    (row,) = (row for row in ROWS if row.name == name)
    assert judge(row, reading) == expected


def test_every_fault_of_the_demo_has_a_plan() -> None:
    for fault in FAULTS:
        plan = Plan.of(fault, 320)
        assert 320 == plan.begins < plan.ends < plan.steps <= 1000


def test_an_event_tells_seconds_since_the_first_step() -> None:
    story = Story(PLAN)
    story.see(1000.0, readings(0), [])
    assert line(Event(1007.0, 130, "mended", "fault taken out"), story).plain == "+   7.0 s  step  130  fault taken out"
