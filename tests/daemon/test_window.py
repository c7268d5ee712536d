"""The window of the last steps: what it holds in whatever order they come, and what its running sums are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.messages import Trainer, layers

from vqwatch_daemon.metrics.counting import Repeats
from vqwatch_daemon.run import Run
from vqwatch_daemon.sections.refused import Refused
from vqwatch_daemon.window import UsageWindow

LAYERS, CODES, LENGTH = 2, 3, 4


def filled(window: UsageWindow, step: int, seed: int, rows: Any = slice(None)) -> NDArray[np.int64] | None:
    """Add counts of one rank to a step; return them, with what was added to repeats behind, None if refused."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (LAYERS, CODES))[rows]
    same, pairs = rng.integers(0, 9, (2, LAYERS))[:, rows]
    if not window.add(step, rows, counts, Repeats(same, pairs)):
        return None
    whole = np.zeros((LAYERS, CODES + 2), np.int64)
    whole[rows] = np.concatenate([counts, same[:, np.newaxis], pairs[:, np.newaxis]], axis=1)
    return whole


def held(window: UsageWindow) -> NDArray[np.int64]:
    same, pairs = window.repeats
    return np.concatenate([window.counts, same[:, np.newaxis], pairs[:, np.newaxis]], axis=1)


@settings(deadline=None)
@given(st.permutations(list(range(12)) * 2), st.integers(0, 9))
def test_the_latest_steps_are_held_in_whatever_order_their_ranks_come(steps: list[int], seed: int) -> None:
    window = UsageWindow(LENGTH, LAYERS, CODES)
    expected: dict[int, Any] = {}
    for index, step in enumerate(steps):
        rows = (slice(None), [1], [1, 0])[index % 3]
        added = filled(window, step, seed + index, rows)
        if added is None:
            assert step < min(window.steps())
            continue
        expected[step] = expected.get(step, 0) + added
    assert window.steps() == sorted(expected)[-LENGTH:] == [8, 9, 10, 11]
    np.testing.assert_array_equal(held(window), sum(expected[step] for step in window.steps()))
    np.testing.assert_array_equal(window.of_steps([11, 0, 8]), [expected[step][:, :CODES] for step in (11, 8)])
    assert window.of_steps([0]).shape == (0, LAYERS, CODES)
    assert window.between(7, 12) is window.between(6, 8) is window.between(9, 9) is None
    between = window.between(8, 11)
    assert between is not None
    np.testing.assert_array_equal(between.sum(axis=0), sum(expected[step][:, :CODES] for step in (9, 10, 11)))


@given(st.integers(0, 12))
def test_a_rewound_window_is_one_that_never_saw_the_later_steps(back_to: int) -> None:
    rewound, fresh = UsageWindow(LENGTH, LAYERS, CODES), UsageWindow(LENGTH, LAYERS, CODES)
    for step in range(9):
        filled(rewound, step, step)
    rewound.rewind(back_to)
    for step in range(5, min(back_to, 9)):
        filled(fresh, step, step)
    assert rewound.steps() == fresh.steps()
    np.testing.assert_array_equal(held(rewound), held(fresh))


def test_a_restored_window_holds_and_forgets_what_the_first_would() -> None:
    first, second = UsageWindow(LENGTH, LAYERS, CODES), UsageWindow(LENGTH, LAYERS, CODES)
    for step in (3, 1, 2, 5, 4):
        filled(first, step, step)
    second.restore(first.state())
    for window in (first, second):
        filled(window, 6, 6)
    assert first.steps() == second.steps() == [3, 4, 5, 6]
    np.testing.assert_array_equal(held(first), held(second))


def test_late_codes_of_a_rank_are_counted_while_their_step_is_held_and_refused_whole_afterwards() -> None:
    run = Run("r", 3, now=0.0)
    one, two = (Trainer(rank=rank, session=f"s{rank}", world_size=2) for rank in range(2))
    for trainer in (one, two):
        run.apply(trainer.hello(layers(1, 4)), 0.0)
    for step in range(1, 41):
        run.apply(one.codes(step, [[0, 0]]), 0.0)
    run.apply(two.codes(39, [[1]]), 0.0)
    assert run.usage()["0"].tolist() == [6, 1, 0, 0]
    before = run.state()["use"]
    with pytest.raises(Refused) as refusal:
        run.apply(two.codes(5, [[2]]), 0.0)
    assert refusal.value.reason == "late"
    after = run.state()["use"]
    assert run.usage()["0"].tolist() == [6, 1, 0, 0]
    for name in ("no_codes", "by_code"):
        np.testing.assert_array_equal(after[name], before[name])
    assert after["gather"] == before["gather"]
