"""What a run remembers of its steps follows from what its ranks said, not from when each of them was heard."""

from __future__ import annotations

import math
from copy import deepcopy
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.messages import Trainer

from vqwatch_daemon.readings import Readings
from vqwatch_daemon.run import CATCH_UP_SECONDS, RETURN_SECONDS, Run
from vqwatch_daemon.sections.exact import ExactSum
from vqwatch_daemon.sections.gather import Gather
from vqwatch_daemon.sections.ranks import JOIN_SECONDS

RANKS, STEPS = 3, 12
REMEMBERED = ("loss", "loss_smoothed", "loss_slope", "loss_share_ratio", "nonfinite_total", "step", "gradient_norm")


def words(rank: int) -> list[Any]:
    """Everything that one rank says, in its order: losses that no two ranks share and that no float holds exactly."""
    trainer = Trainer(rank=rank, session=f"s{rank}", world_size=RANKS)
    losses = [{"total": 1 / (3 + rank + step), "vq": 0.1 * (rank + 1)} for step in range(STEPS)]
    steps = [trainer.step(step, losses=losses[step], gradient_norm=0.1 + rank) for step in range(STEPS)]
    return [trainer.hello(), *steps, trainer.goodbye(STEPS - 1)]


def remembered(run: Run) -> Readings:
    return {name: dict(run.readings.get(name, {})) for name in REMEMBERED}


def together() -> Readings:
    """What is remembered of ranks that keep in step."""
    run = Run("r", 4, 0.0)
    for said in zip(*(words(rank) for rank in range(RANKS)), strict=True):
        for message in said:
            run.apply(message, 0.0)
    return remembered(run)


def restarted(run: Run, now: float, seconds: float) -> Run:
    """Return the run as a daemon that was away for so long takes it up again."""
    again = Run("r", 4, 0.0)
    again.restore(deepcopy(run.state()))
    again.absent(now, seconds)
    return again


TURNS = [rank for rank in range(RANKS) for _ in range(STEPS + 2)]


@settings(deadline=None, max_examples=60)
@given(st.permutations(TURNS), st.sets(st.integers(0, len(TURNS) - 1), max_size=4))
@example(TURNS, set())  # one rank after another
@example([turn for step in range(STEPS) for turn in (2, 0)] + [2, 2, 0, 0] + [1] * (STEPS + 2), {5})
def test_neither_the_order_of_ranks_nor_restarts_change_what_is_remembered(
    turns: list[int], restarts: set[int]
) -> None:
    left = [iter(words(rank)) for rank in range(RANKS)]
    run, now = Run("r", 4, 0.0), 0.0
    for at, rank in enumerate(turns):
        if at in restarts:
            now += 3.0
            run = restarted(run, now, 3.0)
        run.apply(next(left[rank]), now)
        run.tick(now)
    assert remembered(run) == together()


def test_a_rank_that_has_ended_does_not_count_for_one_that_is_still_to_speak() -> None:
    run = Run("r", 4, 0.0)
    said = [words(rank) for rank in range(RANKS)]
    for rank in range(RANKS):
        run.apply(said[rank][0], 0.0)
    for message in said[0][1:]:
        run.apply(message, 0.0)  # all of the first rank's steps, and its goodbye
    run.apply(said[1][1], 0.0)
    assert "loss" not in run.readings
    run.apply(said[2][1], 0.0)
    assert run.readings["loss"]["total",] == math.fsum([1 / 3, 1 / 4, 1 / 5]) / 3


def test_the_first_step_waits_for_the_ranks_that_were_announced_but_not_for_long() -> None:
    run = Run("r", 4, 0.0)
    hello, first, second, *_ = words(0)
    run.apply(hello, 0.0)
    run.apply(first, 0.0)
    run.tick(JOIN_SECONDS - 0.1)
    assert "loss" not in run.readings
    run.tick(JOIN_SECONDS + 0.1)
    assert run.readings["loss"]["total",] == 1 / 3
    assert run.apply(second, JOIN_SECONDS + 0.2) != []


def test_a_rank_that_does_not_come_back_after_the_daemon_was_away_holds_nobody_up_for_long() -> None:
    run = Run("r", 4, 0.0)
    said = [words(rank) for rank in range(RANKS)]
    for rank in range(RANKS):
        run.apply(said[rank][0], 0.0)
    run = restarted(run, 100.0, 100.0)
    run.apply(said[0][1], 100.0)
    run.apply(said[1][1], 100.0)
    run.tick(100.0 + RETURN_SECONDS - 0.1)
    assert "loss" not in run.readings
    run.tick(100.0 + RETURN_SECONDS + CATCH_UP_SECONDS + 0.1)
    assert run.readings["loss"]["total",] == math.fsum([1 / 3, 1 / 4]) / 2


def test_the_last_goodbye_completes_what_still_waits() -> None:
    gather = Gather()
    assert gather.add(1, 0, {0, 1}) == gather.add(2, 0, {0, 1}) == []
    assert gather.settle({1}) == []
    assert gather.settle(set()) == [1, 2]


# --- sums -------------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(st.lists(NUMBERS, max_size=20), st.randoms())
def test_a_sum_is_exact_in_every_order(numbers: list[float], chance: Any) -> None:
    chance.shuffle(numbers)
    assert ExactSum(numbers).value == float(sum(map(Fraction, numbers)))
    assert ExactSum(ExactSum(numbers).state()).value == ExactSum(numbers).value


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([1.0, math.inf], math.inf), ([math.inf, -math.inf], math.nan), ([math.nan, 1.0], math.nan),
     ([1.7e308, 1.7e308], math.inf), ([-1.7e308, -1.7e308, 1.0], -math.inf), ([], 0.0)],
)  # fmt: skip
def test_what_is_not_finite_stays_so(numbers: list[float], expected: float) -> None:
    assert ExactSum(numbers).value == pytest.approx(expected, nan_ok=True)
    assert ExactSum(ExactSum(numbers).state()).value == pytest.approx(expected, nan_ok=True)
