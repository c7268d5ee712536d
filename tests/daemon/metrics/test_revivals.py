"""Revivals: the law on a quantizer simulated in float32. The real libraries are in test_revivals_libraries.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqwatch_daemon.metrics.revivals import (
    Snapshot,
    Survival,
    Unreplaced,
    revivals,
    threshold_to_uniform_ratio,
)

NONE = np.zeros(4, bool)
ALL = np.ones(4, bool)


@dataclass
class History:
    """What a simulated EMA codebook went through: snapshots 0..n, counts of steps 1..n, and which codes were reset."""

    snapshots: list[Snapshot]
    counts: NDArray[np.int64]
    revived: NDArray[np.bool_]


def simulate(
    steps: int, *, codes: int = 64, decay: float = 0.9, threshold: float = 1.0, reset_to: float = 1.0, seed: int = 0
) -> History:
    """A codebook whose unused codes are replaced, in float32 as the libraries do it."""
    rng = np.random.default_rng(seed)
    usage = rng.dirichlet(np.full(codes, 0.3))
    size = np.full(codes, 1.2, np.float32)
    book = rng.standard_normal((codes, 8)).astype(np.float32)
    seen, counts, revived = [Snapshot(0, size.copy(), book.copy())], [], []
    for step in range(1, steps + 1):
        count = rng.multinomial(codes * 4, usage)
        size = size * np.float32(decay) + count.astype(np.float32) * np.float32(1 - decay)
        book = book + 0.01 * rng.standard_normal(book.shape).astype(np.float32)
        expired = size < threshold
        size = np.where(expired, np.float32(max(reset_to, threshold)), size)
        book[expired] = rng.standard_normal((int(expired.sum()), 8)).astype(np.float32) * 2
        usage = np.where(expired, rng.random(codes) / codes, usage)
        usage /= usage.sum()
        counts.append(count)
        revived.append(expired)
        seen.append(Snapshot(step, size.copy(), book.copy()))
    return History(seen, np.array(counts), np.array(revived))


@pytest.mark.parametrize("decay", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("reset_to", [2.0, 5.0])
def test_over_single_steps_every_revival_is_found_and_nothing_else(decay: float, reset_to: float) -> None:
    history = simulate(60, decay=decay, threshold=1.0, reset_to=reset_to)
    assert history.revived.any()
    for i in range(60):
        found = revivals(history.snapshots[i], history.snapshots[i + 1], decay=decay, counts=history.counts[i : i + 1])
        assert found is not None
        assert found.method == "exact"
        assert (found.mask[0] == history.revived[i]).all()


def test_sizes_in_the_hundred_thousands_do_not_round_into_revivals() -> None:
    rng = np.random.default_rng(0)
    size = rng.uniform(1e5, 1e6, 512).astype(np.float32)
    for _ in range(20):
        count = rng.integers(0, 1_000_000, 512)
        after = size * np.float32(0.99) + count.astype(np.float32) * np.float32(1 - 0.99)
        found = revivals(Snapshot(0, size), Snapshot(1, after), decay=0.99, counts=count[None])
        assert found is not None
        assert found.count == 0
        size = after


@pytest.mark.parametrize("spacing", [2, 5, 10, 20])
def test_over_several_steps_with_all_counts_there_is_no_false_alarm_and_no_miss(spacing: int) -> None:
    history = simulate(100, decay=0.95, threshold=1.0, reset_to=3.0)
    for start in range(0, 100 - spacing + 1, spacing):
        counts = history.counts[start : start + spacing]
        found = revivals(history.snapshots[start], history.snapshots[start + spacing], decay=0.95, counts=counts)
        assert found is not None
        assert found.method == "iterated"
        assert (found.mask[0] == history.revived[start : start + spacing].any(axis=0)).all()
        assert found.per_step == found.count / spacing
        assert found.churn_ratio == found.per_step / 64


def test_when_the_memory_is_too_short_the_answer_says_that_it_is_an_estimate() -> None:
    history = simulate(100, decay=0.8, threshold=1.0, reset_to=2.0)
    truth, told = [], []
    for start in range(0, 80, 20):
        found = revivals(
            history.snapshots[start],
            history.snapshots[start + 20],
            decay=0.8,
            counts=history.counts[start : start + 20],
        )
        assert found is not None
        assert found.method == "estimate"
        truth.append(history.revived[start : start + 20].any(axis=0))
        told.append(found.mask[0])
    assert np.mean(np.array(truth) == np.array(told)) > 0.97


def test_without_counts_jumps_are_an_estimate() -> None:
    history = simulate(60, decay=0.95)
    right = wrong = missed = 0
    for i in range(0, 50, 5):
        found = revivals(history.snapshots[i], history.snapshots[i + 5], decay=0.95, threshold=1.0)
        truth = history.revived[i : i + 5].any(axis=0)
        assert found is not None
        assert found.method == "estimate"
        right += int((found.mask[0] & truth).sum())
        wrong += int((found.mask[0] & ~truth).sum())
        missed += int((~found.mask[0] & truth).sum())
    assert right / (right + wrong) > 0.95
    assert right / (right + missed) > 0.95


def test_a_jump_of_a_code_too_large_to_have_been_replaced_is_learning() -> None:
    earlier = Snapshot(0, np.array([100.0, 0.1]), np.array([[1.0], [1.0]]))
    later = Snapshot(5, np.array([90.0, 1.0]), np.array([[-1.0], [-1.0]]))
    assert revivals(earlier, later).mask.tolist() == [[True, True]]  # type: ignore[union-attr]
    assert revivals(earlier, later, decay=0.9, threshold=2.0).mask.tolist() == [[False, True]]  # type: ignore[union-attr]


def test_heads_are_told_apart() -> None:
    earlier, later = Snapshot(1, np.full((2, 3), 0.5)), Snapshot(2, np.full((2, 3), 0.45))
    later.cluster_size[1, 2] = 2.0
    found = revivals(earlier, later, decay=0.9, counts=np.zeros((1, 2, 3), np.int64))
    assert found is not None
    assert np.argwhere(found.mask).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("later", "counts", "decay"),
    [
        (Snapshot(1, np.ones(3)), np.zeros((1, 3)), 0.9),
        (Snapshot(0, np.ones(3)), np.zeros((1, 3)), 0.9),
        (Snapshot(2, np.ones(4)), np.zeros((1, 3)), 0.9),
        (Snapshot(2, np.ones(3)), None, 0.9),
        (Snapshot(2, np.ones(3)), np.zeros((1, 3)), None),
        (Snapshot(2, np.ones(3)), np.zeros((2, 3)), 0.9),
        (Snapshot(2, np.ones(3)), np.zeros((1, 4)), 0.9),
        (Snapshot(2, np.ones(3), np.ones((3, 2))), None, 0.9),
        (Snapshot(2, np.ones(3)), np.zeros((1, 3)), math.nan),
    ],
)
def test_what_does_not_fit_gives_no_answer(
    later: Snapshot, counts: NDArray[np.float64] | None, decay: float | None
) -> None:
    assert revivals(Snapshot(1, np.ones(3)), later, decay=decay, counts=counts) is None


def test_codes_that_are_not_finite_are_not_revived() -> None:
    found = revivals(
        Snapshot(0, np.array([np.nan, 0.1, 0.1])), Snapshot(1, np.array([5.0, np.nan, 5.0])),
        decay=0.9, counts=np.zeros((1, 3)),
    )  # fmt: skip
    assert found is not None
    assert found.mask.tolist() == [[False, False, True]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.sampled_from([0.8, 0.9, 0.99, 0.999]), st.integers(0, 2**31))
def test_a_codebook_that_replaces_nothing_never_revives(steps: int, codes: int, decay: float, seed: int) -> None:
    history = simulate(steps, codes=codes, decay=decay, threshold=0.0, seed=seed)
    first, last = history.snapshots[0], history.snapshots[-1]
    found = revivals(first, last, decay=decay, counts=history.counts)
    assert found is not None
    assert found.count == 0
    order = np.random.default_rng(seed).permutation(codes)
    again = revivals(
        Snapshot(0, first.cluster_size[order], first.codebook[order]),  # type: ignore[index]
        Snapshot(steps, last.cluster_size[order] + 1, last.codebook[order]),  # type: ignore[index]
        decay=decay,
        counts=history.counts[:, order],
    )
    assert again is not None
    assert again.method == "estimate" or again.count == codes


def test_a_threshold_above_uniform_use_is_told() -> None:
    assert threshold_to_uniform_ratio(2, tokens_per_step=4096, size=1024) == 0.5
    assert math.isnan(threshold_to_uniform_ratio(2, tokens_per_step=0, size=1024))


def test_a_revived_code_that_is_used_later_survives_and_one_that_is_not_does_not() -> None:
    state = Survival(4, horizon=10)
    state.update(0, ALL, ALL)
    for step in range(1, 10):
        assert math.isnan(state.update(step, NONE, np.array([True, step == 2, step == 7, False])))
    assert state.waiting == 4
    assert state.update(10, NONE, NONE) == 0.5
    assert (state.judged, state.survived, state.waiting, state.ratio) == (4, 2, 0, 0.5)


def test_a_code_that_is_revived_again_has_died() -> None:
    state = Survival(4, horizon=10)
    state.update(0, np.array([True, False, False, False]), NONE)
    assert state.update(6, np.array([True, False, False, False]), ALL) == 0
    assert (state.judged, state.waiting) == (1, 1)
    assert state.update(16, NONE, np.array([True, False, False, False])) == 1


def test_what_a_code_did_before_it_was_revived_again_does_not_count() -> None:
    state = Survival(4, horizon=10)
    state.update(0, ALL, NONE)
    state.update(8, NONE, ALL)
    state.update(9, ALL, NONE)
    assert state.update(19, NONE, NONE) == 0


def test_without_a_judged_code_there_is_no_survival() -> None:
    state = Survival(4)
    assert math.isnan(state.ratio)
    assert math.isnan(state.update(5, NONE, ALL))
    state.update(6, ALL, ALL)
    state.update(106, NONE, ALL)
    assert state.ratio == 1
    state.forget()
    assert math.isnan(state.ratio)


def test_a_replacement_that_never_survives_is_overdue() -> None:
    state = Unreplaced(4, patience=20)
    sizes = np.array([0.1, 0.5, 5.0, 2.0])
    assert math.isnan(state.update(0, sizes, 2.0, None))
    assert state.update(10, sizes, 2.0, NONE) == 0
    assert state.update(20, sizes, 2.0, NONE) == 0.5


def test_codes_that_are_revived_or_recover_are_not_overdue() -> None:
    state = Unreplaced(4, patience=20)
    state.update(0, np.zeros(4), 2.0, None)
    state.update(15, np.array([3.0, 0.0, 0.0, 0.0]), 2.0, np.array([False, True, False, False]))
    assert state.update(20, np.zeros(4), 2.0, NONE) == 0.5
    assert state.update(35, np.zeros(4), 2.0, NONE) == 0.75
    assert state.update(40, np.zeros(4), 2.0, NONE) == 1


def test_an_interval_nobody_saw_restarts_patience() -> None:
    state = Unreplaced(4, patience=20)
    state.update(0, np.zeros(4), 2.0, None)
    assert math.isnan(state.update(19, np.zeros(4), 2.0, None))
    assert state.update(25, np.zeros(4), 2.0, NONE) == 0


@pytest.mark.parametrize(
    ("sizes", "threshold"), [(np.zeros(4), 0.0), (np.full(4, np.nan), 2.0), (np.zeros(4), math.nan)]
)
def test_where_nothing_is_replaced_or_known_nothing_is_overdue(sizes: NDArray[np.float64], threshold: float) -> None:
    state = Unreplaced(4, patience=1)
    state.update(0, sizes, threshold, NONE)
    assert math.isnan(state.update(9, sizes, threshold, NONE))
