"""What is due to one Alertmanager, with time as an argument."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch_daemon.notices import LIFETIMES, Notice, Outbox, Schedule, notice_of

from .alerts import FakeAlert, firing, pending, resolved

RESEND = 60.0


def told(schedule: Schedule, alerts: list[FakeAlert], now: float) -> list[Notice]:
    """Ask what is due and report it delivered."""
    notices = schedule.due(alerts, now)
    schedule.delivered(notices, now)
    return notices


def test_what_begins_to_fire_is_due_at_once() -> None:
    [notice] = Schedule(RESEND).due([firing(at=1000.0)], now=1000.0)
    assert notice.labels["alertname"] == "VqLossNotFinite"
    assert notice.ended_at is None


def test_what_fires_on_is_due_again_after_the_interval_and_not_before() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing()], 1000.0)
    assert told(schedule, [firing()], 1059.9) == []
    assert len(told(schedule, [firing()], 1060.0)) == 1
    assert told(schedule, [firing()], 1061.0) == []


def test_a_pending_alert_is_never_told() -> None:
    assert Schedule(RESEND).due([pending()], now=1e9) == []


def test_an_alert_that_ended_without_firing_is_never_told() -> None:
    never_fired = FakeAlert("resolved", firing().labels, {}, fired_at=None, resolved_at=5.0)
    assert Schedule(RESEND).due([never_fired], now=10.0) == []


def test_the_end_is_due_at_once_and_then_again_for_15_minutes() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing(at=1000.0)], 1000.0)
    times = [now for now in range(1005, 2400) if told(schedule, [resolved(at=1000.0, end=1005.0)], float(now))]
    assert times[0] == 1005
    assert all(later - earlier == 60 for earlier, later in itertools.pairwise(times))
    assert 1005 + 840 <= times[-1] <= 1005 + 900


def test_the_end_is_remembered_though_the_engine_forgets_it() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing()], 1000.0)
    told(schedule, [resolved(end=1010.0)], 1010.0)
    [notice] = told(schedule, [], 1070.0)
    assert notice.ended_at == 1010.0
    assert told(schedule, [], 1010.0 + 901) == []
    assert len(schedule) == 0


def test_a_firing_alert_that_vanishes_counts_as_ended_then() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing(layer="0"), firing(layer="1")], 1000.0)
    [notice] = told(schedule, [firing(layer="1")], 1030.0)
    assert (notice.labels["layer"], notice.ended_at) == ("0", 1030.0)


def test_an_alert_that_fires_anew_is_due_at_once_with_its_new_start() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing(at=1000.0)], 1000.0)
    told(schedule, [resolved(at=1000.0, end=1001.0)], 1001.0)
    [notice] = told(schedule, [firing(at=1002.0)], 1002.0)
    assert (notice.started_at, notice.ended_at) == (1002.0, None)


def test_new_words_for_the_same_alert_wait_for_the_interval() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing()], 1000.0)
    reworded = FakeAlert("firing", firing().labels, {"summary": "Worse."}, fired_at=1000.0)
    assert told(schedule, [reworded], 1001.0) == []
    [notice] = told(schedule, [reworded], 1060.0)
    assert notice.annotations == {"summary": "Worse."}


def test_what_was_handed_out_is_not_due_again_before_its_fate_is_known() -> None:
    schedule = Schedule(RESEND)
    schedule.due([firing()], 1000.0)
    assert schedule.due([firing()], 5000.0) == []


def test_the_end_is_due_though_the_beginning_is_still_on_its_way() -> None:
    schedule = Schedule(RESEND)
    beginning = schedule.due([firing()], 1000.0)
    end = schedule.due([resolved(end=1001.0)], 1001.0)
    assert [notice.ended_at for notice in end] == [1001.0]
    schedule.delivered(beginning, 1002.0)  # late news of the beginning must not make the end look told
    schedule.failed(end, 1003.0)
    assert [notice.ended_at for notice in schedule.due([resolved(end=1001.0)], 1008.0)] == [1001.0]


def test_a_failed_send_is_due_again_after_growing_pauses_up_to_the_interval() -> None:
    schedule = Schedule(RESEND)
    tries = []
    for now in range(1000, 1400):
        if notices := schedule.due([firing()], float(now)):
            tries.append(now)
            schedule.failed(notices, float(now))
    assert [later - earlier for earlier, later in itertools.pairwise(tries)] == [
        5,
        10,
        20,
        40,
        60,
        60,
        60,
        60,
        60,
    ]


def test_what_is_sent_after_a_failure_is_what_holds_then() -> None:
    schedule = Schedule(RESEND)
    schedule.failed(schedule.due([firing()], 1000.0), 1000.0)
    [notice] = schedule.due([resolved(end=1002.0)], 1002.0)
    assert notice.ended_at == 1002.0


def test_critical_comes_before_warning_before_the_rest() -> None:
    alerts = [firing("A", severity="info"), firing("B", severity="warning"), firing("C", severity="critical")]
    assert [notice.labels["alertname"] for notice in Schedule(RESEND).due(alerts, 1000.0)] == ["C", "B", "A"]


def test_a_clock_that_went_back_does_not_silence_an_alert() -> None:
    schedule = Schedule(RESEND)
    told(schedule, [firing(at=1000.0)], 1000.0)
    assert len(told(schedule, [firing(at=1000.0)], 500.0)) == 1


def test_where_the_clock_went_back_nothing_began_or_ended_after_now() -> None:
    notice = notice_of(resolved(at=5000.0, end=5100.0))
    assert notice is not None
    body = notice.body(now=2000.0, resend_seconds=60.0, generator_url="")
    assert (body["startsAt"], body["endsAt"]) == ("1970-01-01T00:33:20.000Z", "1970-01-01T00:33:20.000Z")


def test_endsat_is_always_four_intervals_ahead_for_what_fires() -> None:
    notice = notice_of(firing(at=1000.0))
    assert notice is not None
    body = notice.body(now=2000.0, resend_seconds=60.0, generator_url="http://node7:9815/")
    assert body["startsAt"] == "1970-01-01T00:16:40.000Z"
    assert body["endsAt"] == "1970-01-01T00:37:20.000Z"
    assert body["generatorURL"] == "http://node7:9815/"


def test_endsat_of_what_ended_is_when_it_ended_and_never_before_its_start() -> None:
    for end, shown in ((1010.0, "1970-01-01T00:16:50.000Z"), (900.0, "1970-01-01T00:16:40.000Z")):
        notice = notice_of(resolved(at=1000.0, end=end))
        assert notice is not None
        assert notice.body(now=5000.0, resend_seconds=60.0, generator_url="")["endsAt"] == shown


def test_empty_labels_are_left_out_because_alertmanager_does_so() -> None:
    notice = notice_of(firing(layer=""))
    assert notice is not None
    assert "layer" not in notice.labels


def test_a_restored_schedule_goes_on_where_the_other_stopped() -> None:
    before = Schedule(RESEND)
    told(before, [firing(layer="0"), firing(layer="1")], 1000.0)
    told(before, [firing(layer="0"), resolved(layer="1", end=1010.0)], 1010.0)
    after = Schedule(RESEND)
    after.restore(json.loads(json.dumps(before.state())))
    alerts = [firing(layer="0"), resolved(layer="1", end=1010.0)]
    assert after.due(alerts, 1059.0) == []
    assert [notice.labels["layer"] for notice in told(after, alerts, 1060.0)] == ["0"]
    assert [notice.labels["layer"] for notice in told(after, alerts, 1070.0)] == ["1"]


def test_what_was_on_its_way_when_the_daemon_died_is_due_again() -> None:
    before = Schedule(RESEND)
    before.due([firing()], 1000.0)
    after = Schedule(RESEND)
    after.restore(before.state())
    assert len(after.due([firing()], 1001.0)) == 1


def test_an_alert_that_ended_while_the_daemon_was_down_is_told_to_have_ended() -> None:
    before = Schedule(RESEND)
    told(before, [firing()], 1000.0)
    after = Schedule(RESEND)
    after.restore(before.state())
    assert [notice.ended_at for notice in after.due([], 1100.0)] == [1100.0]


@pytest.mark.parametrize("spoil", [{"started_at": "soon"}, {"due_at": float("nan")}, {"labels": 3}])
def test_a_spoilt_state_is_refused_whole(spoil: dict[str, object]) -> None:
    before = Schedule(RESEND)
    told(before, [firing(layer="0"), firing(layer="1")], 1000.0)
    state = before.state()
    state[1] |= spoil
    after = Schedule(RESEND)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        after.restore(state)
    assert len(after) == 0


def test_an_outbox_gives_the_most_severe_first_and_never_mixes_severities() -> None:
    outbox = Outbox(capacity=10)
    for alert in (firing("A", severity="warning"), firing("B"), firing("C", severity="warning"), firing("D")):
        notice = notice_of(alert)
        assert notice is not None
        outbox.put(notice)
    batches = [[notice.labels["alertname"] for notice in outbox.take(256)] for _ in range(3)]
    assert batches == [["B", "D"], ["A", "C"], []]


def test_a_full_outbox_drops_the_oldest_of_the_least_severe() -> None:
    outbox = Outbox(capacity=2)
    notices = [notice_of(alert) for alert in (firing("A"), firing("B", severity="warning"), firing("C"), firing("D"))]
    dropped = [outbox.put(notice) for notice in notices if notice is not None]
    assert [notice.labels["alertname"] if notice else None for notice in dropped] == [None, None, "B", "A"]
    assert [notice.labels["alertname"] for notice in outbox.take(256)] == ["C", "D"]


def test_a_refused_notice_travels_alone_and_last() -> None:
    outbox = Outbox(capacity=10)
    for name, alone in (("A", True), ("B", True), ("C", False)):
        notice = notice_of(firing(name))
        assert notice is not None
        outbox.put(notice, alone=alone)
    assert [[notice.labels["alertname"] for notice in outbox.take(256)] for _ in range(4)] == [["C"], ["A"], ["B"], []]


FATES = st.sampled_from(["delivered", "failed", "refused", "unknown yet"])
STEPS = st.lists(st.tuples(st.floats(0.01, 200.0), st.sampled_from(["fires", "ends", "is gone"]), FATES), max_size=40)


@given(STEPS, st.booleans())
def test_whatever_happened_an_interval_of_good_sends_sets_an_alertmanager_right(
    steps: list[tuple[float, str, str]], fires_now: bool
) -> None:
    schedule, now = Schedule(RESEND), 1000.0
    started: float | None = None
    ended: float | None = None
    belief: Notice | None = None
    told_at = now
    on_the_way: list[Notice] = []
    for pause, event, fate in [*steps, *[(1.0, "fires" if fires_now else "ends", "delivered")] * 65]:
        now += pause
        if event == "fires" and (started is None or ended is not None):
            started, ended = now, None
        elif event == "ends" and started is not None and ended is None:
            ended = now
        alerts = []
        if started is not None and event != "is gone":
            alerts = [firing(at=started) if ended is None else resolved(at=started, end=ended)]
        elif event == "is gone":
            started = ended = None
        on_the_way += schedule.due(alerts, now)
        if fate == "unknown yet":
            continue
        for notice in on_the_way:
            if fate == "delivered":
                schedule.delivered([notice], now)
                belief, told_at = notice, now
            elif fate == "failed":
                schedule.failed([notice], now)
            else:
                schedule.refused(notice, now)
        on_the_way = []
    if fires_now:
        assert belief is not None
        assert belief.ended_at is None
    elif belief is not None:
        assert belief.ended_at is not None or now - told_at > LIFETIMES * RESEND
