from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqwatch.schedule import (
    CLUSTERS,
    CODEBOOKS,
    CODES,
    DEFAULT_EVERY,
    LEAST_SHARE,
    MOST_CODES_STRETCH,
    MOST_STRETCH,
    RECONSTRUCTION,
    SCALARS,
    Schedule,
    stretch,
)


def simulated(
    schedule: Schedule, costs: dict[str, float], fixed: float, step_seconds: float, steps: int
) -> list[float]:
    """Return the share of each step that a schedule let itself cost, when every kind costs what it costs."""
    shares = []
    for step in range(steps):
        due = schedule.due(step)
        spent = {kind: costs[kind] for kind in due if kind in costs}
        schedule.spent(spent)
        own = fixed + sum(spent.values())
        schedule.observe(own, sum(spent.values()), step_seconds)
        shares.append(own / step_seconds)
    return shares


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_everything_is_due_at_the_first_step() -> None:
    assert Schedule(DEFAULT_EVERY, 1.0).due(1234) == set(DEFAULT_EVERY)


def test_numbers_and_codes_are_due_at_every_step() -> None:
    schedule = Schedule(DEFAULT_EVERY, 1.0)
    assert all({SCALARS, CODES} <= schedule.due(step) for step in range(300))


def test_large_kinds_are_never_due_together_after_the_first_step() -> None:
    schedule = Schedule(DEFAULT_EVERY, 1.0)
    schedule.due(0)
    assert not any({CODEBOOKS, RECONSTRUCTION} <= schedule.due(step) for step in range(1, 1000))


def test_a_loop_that_tells_every_tenth_step_misses_no_kind() -> None:
    schedule = Schedule(DEFAULT_EVERY, 1.0)
    seen = [kind for step in range(3, 1003, 10) for kind in schedule.due(step)]
    assert seen.count(CODEBOOKS) == pytest.approx(10, abs=2)
    assert seen.count(CLUSTERS) == pytest.approx(50, abs=2)


def test_two_ranks_that_joined_at_different_steps_take_codebooks_at_the_same_ones() -> None:
    early, late = Schedule(DEFAULT_EVERY, 1.0), Schedule(DEFAULT_EVERY, 1.0)
    early.due(0)
    late.due(31)
    taken = [
        {step for step in range(first + 1, 500) if CODEBOOKS in schedule.due(step)}
        for first, schedule in ((0, early), (31, late))
    ]
    assert taken[0] - {0} == taken[1]


def test_what_the_next_step_will_want_is_known_before_it() -> None:
    schedule = Schedule({"energies": 3, "codes": 1}, 1.0)
    expected = []
    for step in range(20):
        announced = schedule.is_due("energies", step, schedule.last)
        expected.append(announced == ("energies" in schedule.due(step)))
    assert all(expected)


def test_the_next_step_at_which_a_kind_is_due_is_known() -> None:
    schedule = Schedule({"reconstruction": 7, "codes": 1}, 1.0)
    due = [step for step in range(60) if "reconstruction" in schedule.due(step)]
    for step in range(1, 40):
        assert schedule.next_after("reconstruction", step) == next(later for later in due if later > step)


@pytest.mark.parametrize("every", [0, 1, 4])
def test_codes_are_due_by_routine_when_they_are_due(every: int) -> None:
    one, other = Schedule({"codes": every, "scalars": 1}, 1.0), Schedule({"codes": every, "scalars": 1}, 1.0)
    one.due(0)
    other.due(0)
    for steps in ([1, 2], [3], [4, 5, 6, 7, 8], [9, 17, 18, 20], [23]):
        assert one.codes_due_at(steps) == [at for at, step in enumerate(steps) if "codes" in other.due(step)]
        one.last = steps[-1]


def test_a_step_that_goes_back_starts_anew() -> None:
    schedule = Schedule(DEFAULT_EVERY, 1.0)
    schedule.due(100)
    assert schedule.due(50) == set(DEFAULT_EVERY)


def test_zero_means_never() -> None:
    schedule = Schedule({**DEFAULT_EVERY, "reconstruction": 0}, 1.0)
    assert not any("reconstruction" in schedule.due(step) for step in range(200))


@pytest.mark.parametrize("every", [{"codez": 1}, {"codes": -1}, {"codes": 1.5}])
def test_a_cadence_that_means_nothing_is_refused_by_name(every: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="every="):
        Schedule(every, 1.0)


def test_a_costly_kind_is_stretched_until_the_budget_is_kept() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    costs = {RECONSTRUCTION: 0.1, CODES: 1e-5, CODEBOOKS: 1e-3}
    shares = simulated(schedule, costs, fixed=5e-5, step_seconds=0.025, steps=4000)
    assert mean(shares[:400]) > 0.01
    assert mean(shares[-1600:]) <= 0.01
    assert schedule.every[RECONSTRUCTION] > DEFAULT_EVERY[RECONSTRUCTION]
    assert (schedule.every[CODES], schedule.every[SCALARS]) == (1, 1)


def test_what_a_kind_costs_when_it_is_first_taken_stretches_nothing() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    for step in range(400):
        due = schedule.due(step)
        spent = dict.fromkeys(due, 10.0 if step == 0 else 1e-06)
        schedule.spent(spent)
        schedule.observe(1e-5, 1e-5, 0.1)
    assert schedule.every == dict(DEFAULT_EVERY)


def test_codes_are_stretched_last_and_numbers_never() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    simulated(schedule, {CODES: 0.01, CODEBOOKS: 0.001}, fixed=1e-5, step_seconds=0.025, steps=500)
    assert schedule.every[CODES] == MOST_CODES_STRETCH
    assert schedule.every[CODEBOOKS] == DEFAULT_EVERY[CODEBOOKS] * MOST_STRETCH
    assert schedule.every[SCALARS] == 1


def test_a_cadence_comes_back_when_the_cost_is_gone() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    simulated(schedule, {RECONSTRUCTION: 0.1}, fixed=1e-5, step_seconds=0.025, steps=1000)
    stretched = schedule.every[RECONSTRUCTION]
    simulated(schedule, {RECONSTRUCTION: 1e-4}, fixed=1e-5, step_seconds=0.025, steps=20_000)
    assert schedule.every[RECONSTRUCTION] == DEFAULT_EVERY[RECONSTRUCTION] < stretched


def test_a_cost_at_the_edge_of_the_budget_does_not_make_the_cadence_swing() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    changes, before = 0, DEFAULT_EVERY[RECONSTRUCTION]
    for step in range(4000):
        due = schedule.due(step)
        wobble = 1.15 if step // 40 % 2 else 0.85
        spent = {RECONSTRUCTION: 0.0125 * wobble} if RECONSTRUCTION in due else {}
        schedule.spent(spent)
        schedule.observe(sum(spent.values()), sum(spent.values()), 0.025)
        changes += schedule.every[RECONSTRUCTION] != before
        before = schedule.every[RECONSTRUCTION]
    assert changes <= 2


def test_a_loop_of_very_short_steps_still_tells_something() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=0.01)
    simulated(schedule, {CODES: 1e-5, CODEBOOKS: 1e-4}, fixed=2e-4, step_seconds=0.005, steps=500)
    assert schedule.every[CODES] == 1
    assert schedule.every[CODEBOOKS] == DEFAULT_EVERY[CODEBOOKS]


def test_no_budget_changes_nothing() -> None:
    schedule = Schedule(DEFAULT_EVERY, budget=float("inf"))
    simulated(schedule, {CODES: 1.0}, fixed=1.0, step_seconds=0.001, steps=200)
    assert schedule.every == dict(DEFAULT_EVERY)


@given(
    st.dictionaries(st.sampled_from(sorted(set(DEFAULT_EVERY) - {SCALARS})), st.just(0.0) | st.floats(1e-9, 1.0)),
    st.floats(0, 0.01),
    st.floats(1e-4, 1.0),
    st.floats(1e-4, 1.0),
)
def test_either_the_budget_is_kept_or_nothing_is_left_to_stretch(
    costs: dict[str, float], fixed: float, step_seconds: float, budget: float
) -> None:
    factors = stretch(DEFAULT_EVERY, costs, fixed, step_seconds, budget)
    expected = sum(cost / (DEFAULT_EVERY[kind] * factors[kind]) for kind, cost in costs.items())
    allowed = max(budget * step_seconds - fixed, LEAST_SHARE * budget * step_seconds)
    limits = {kind: MOST_CODES_STRETCH if kind == CODES else MOST_STRETCH for kind in costs}
    exhausted = all(factors[kind] == limit for kind, limit in limits.items() if costs[kind] > 0)
    assert expected <= allowed * (1 + 1e-9) or exhausted
    assert factors[SCALARS] == 1


def test_a_pause_between_steps_is_no_slow_step() -> None:
    schedule = Schedule({"codes": 1}, 0.01)
    for _ in range(50):
        for _ in range(4):
            schedule.observe(0.0001, 0.0, 0.01, 5)
        schedule.observe(0.0001, 0.0, 2.0, 5)
    assert schedule.step_seconds == pytest.approx(0.01)
    assert schedule.overhead == pytest.approx(0.01)


def test_a_loop_that_became_slower_is_believed() -> None:
    schedule = Schedule({"codes": 1}, 0.01)
    for _ in range(20):
        schedule.observe(0.0001, 0.0, 0.01, 5)
    for _ in range(60):
        schedule.observe(0.0001, 0.0, 0.1, 5)
    assert schedule.step_seconds == pytest.approx(0.1, rel=0.05)
