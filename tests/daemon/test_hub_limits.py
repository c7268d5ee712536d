"""More runs than the daemon holds: refused, counted, and harmless."""

from __future__ import annotations

from tests.messages import Trainer

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_rules import Engine, load


def hub(most_runs: int) -> Hub:
    names = {name: metric.labels for name, metric in CATALOGUE.items()}
    return Hub(Book("d"), Engine(load([], names)), most_runs=most_runs)


def test_a_run_too_many_is_refused_whatever_it_says_and_never_answered() -> None:
    small = hub(1)
    small.receive(b"a", Trainer().hello(), 0.0)
    late = Trainer(run="late", session="t")
    for message in (late.hello(), late.step(1), late.codes(1, [[1]]), late.goodbye()):
        assert small.receive(b"b", message, 0.0) == []
    assert list(small.runs) == ["r"]
    assert small.own_readings()["dropped_runs_total"] == {(): 1.0}
    assert small.own_readings()["messages_rejected_total"] == {("too_many_runs",): 4.0}


def test_a_run_that_ended_makes_room_for_a_new_one() -> None:
    small = hub(1)
    first = Trainer()
    small.receive(b"a", first.hello(), 0.0)
    small.receive(b"a", first.goodbye(), 0.0)
    assert small.receive(b"b", Trainer(run="late", session="t").hello(), 1.0)
    assert list(small.runs) == ["late"]
