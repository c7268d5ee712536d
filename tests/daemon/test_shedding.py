"""Beyond what it can take the daemon sheds best-effort load, of every rank alike, and says so."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import Trainer, layers

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.delivery import Book
from vqwatch_daemon.hub import Hub
from vqwatch_daemon.shedding import LOWER_SECONDS, MOST_HALVINGS, RAISE_SECONDS, Shedder
from vqwatch_rules import Engine, load

RANKS = 8


def overloaded(seconds: float) -> Shedder:
    shedder = Shedder()
    for tenth in range(int(seconds * 10) + 1):
        shedder.observe(backlog=True, now=tenth / 10)
    return shedder


def hub() -> tuple[Hub, list[Trainer]]:
    here = Hub(Book("d"), Engine(load([], {name: metric.labels for name, metric in CATALOGUE.items()})))
    ranks = [Trainer(rank=rank, session=f"s{rank}", world_size=RANKS) for rank in range(RANKS)]
    for trainer in ranks:
        here.receive(trainer.origin.session.encode(), trainer.hello(layers(1)), 0.0)
    return here, ranks


def feed(here: Hub, ranks: list[Trainer], steps: range) -> None:
    for step in steps:
        for trainer in ranks:
            route = trainer.origin.session.encode()
            here.receive(route, trainer.step(step, losses={"total": 1.0}), float(step))
            here.receive(route, trainer.codes(step, [[0, 1, 2, 3]]), float(step))


def test_nothing_is_shed_while_the_socket_runs_empty_now_and_then() -> None:
    shedder = Shedder()
    for tenth in range(1000):
        shedder.observe(backlog=tenth % 10 != 0, now=tenth / 10)
    assert shedder.kept_ratio == 1.0
    assert all(map(shedder.takes, range(1000)))


def test_the_share_is_halved_for_as_long_as_messages_wait_down_to_a_floor() -> None:
    assert overloaded(RAISE_SECONDS - 0.1).kept_ratio == 1.0
    assert overloaded(RAISE_SECONDS).kept_ratio == 0.5
    assert overloaded(2.5 * RAISE_SECONDS).kept_ratio == 0.25
    assert overloaded(1000.0).kept_ratio == 0.5**MOST_HALVINGS


def test_all_is_taken_again_some_time_after_the_backlog_is_gone() -> None:
    shedder = overloaded(2 * RAISE_SECONDS)
    end = 2 * RAISE_SECONDS
    shedder.observe(backlog=False, now=end + LOWER_SECONDS - 0.1)
    assert shedder.kept_ratio == 0.25
    shedder.observe(backlog=False, now=end + LOWER_SECONDS)
    shedder.observe(backlog=False, now=end + LOWER_SECONDS + 0.1)
    assert shedder.kept_ratio == 0.5
    shedder.observe(backlog=False, now=end + 2 * LOWER_SECONDS)
    assert shedder.kept_ratio == 1.0


@given(halvings=st.integers(1, 5), first=st.integers(0, 10**9), every=st.integers(1, 64))
def test_whatever_the_rhythm_of_the_steps_about_the_stated_share_is_taken(
    halvings: int, first: int, every: int
) -> None:
    shedder = overloaded(halvings * RAISE_SECONDS)
    taken = sum(shedder.takes(step) for step in range(first, first + 4096 * every, every))
    assert taken / 4096 == pytest.approx(shedder.kept_ratio, rel=0.5)


@given(halvings=st.integers(1, 9), step=st.integers(0, 10**9))
def test_a_step_taken_under_more_load_is_taken_under_less(halvings: int, step: int) -> None:
    if overloaded((halvings + 1) * RAISE_SECONDS).takes(step):
        assert overloaded(halvings * RAISE_SECONDS).takes(step)


def test_every_rank_loses_the_same_steps_and_scalars_go_on() -> None:
    here, ranks = hub()
    for now in (0.0, RAISE_SECONDS):
        here.shedder.observe(backlog=True, now=now)
    feed(here, ranks, range(1, 41))
    here.tick(41.0)
    run = here.runs["r"]
    shed = run.readings["messages_shed_total"]
    assert Counter(shed.values()) == {20.0: RANKS}
    assert run.readings["step"] == {(): 40.0}
    assert run.readings["messages_lost_total"] == {(str(rank),): 0.0 for rank in range(RANKS)}
    assert here.own_readings()["kept_steps_ratio"] == {(): 0.5}


def test_a_step_that_is_taken_is_taken_from_every_rank() -> None:
    here, ranks = hub()
    for now in (0.0, RAISE_SECONDS):
        here.shedder.observe(backlog=True, now=now)
    feed(here, ranks, range(1, 41))
    assert here.runs["r"].use.window.steps() == [step for step in range(1, 41) if here.shedder.takes(step)]
    assert here.runs["r"].readings["codebook_tokens_per_step"] == {("0",): 4.0 * RANKS}


def test_a_daemon_that_keeps_up_says_nothing_of_shedding() -> None:
    here, ranks = hub()
    feed(here, ranks, range(1, 5))
    here.tick(5.0)
    assert here.snapshot().runs["r"]["messages_shed_total"] == {}
