"""When codebook use is read: every step is counted, few are read, and what a reading says is of all since the last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.messages import Trainer, layers

from vqwatch.wire import Codes
from vqwatch_daemon.run import Run, Update

SIZE = 8
ONE: list[list[int]] = [[1, 1], [1, 1]]


def opened(ranks: int = 1, window: int = 100) -> tuple[Run, list[Trainer]]:
    run = Run("r", window, now=0.0)
    trainers = [Trainer(rank=rank, session=f"s{rank}", world_size=ranks) for rank in range(ranks)]
    for trainer in trainers:
        run.apply(trainer.hello(layers(2, SIZE)), 0.0)
    return run, trainers


def codes(trainer: Trainer, step: int, indices: Any = ONE, seconds: float = 0.0, **more: Any) -> Codes:
    """Return codes that were sent ``seconds`` after the run began, by the trainer's clock."""
    return replace(trainer.codes(step, indices, **more), time_ns=round(seconds * 1e9))


def take(run: Run, trainer: Trainer, steps: range, apart: float = 0.0, indices: Any = ONE) -> list[Update]:
    """Let a run take the codes of steps that are so many seconds apart; return what was read."""
    return [update for step in steps for update in run.apply(codes(trainer, step, indices, step * apart), 0.0)]


def read(updates: list[Update]) -> list[int]:
    return [update.step for update in updates if "codebook_window_samples" in update.readings]


def test_the_first_eight_steps_are_read_one_by_one_and_then_every_fourth() -> None:
    run, [trainer] = opened()
    assert read(take(run, trainer, range(1, 22))) == [*range(1, 9), 12, 16, 20]


@pytest.mark.parametrize(("apart", "steps"), [(0.05, [12, 16]), (0.1, [10, 12, 14, 16]), (0.2, list(range(9, 18)))])
def test_a_step_is_read_a_fifth_of_a_second_after_the_last_by_the_trainers_clock(
    apart: float, steps: list[int]
) -> None:
    run, [trainer] = opened()
    assert read(take(run, trainer, range(1, 18), apart))[8:] == steps


def test_a_trainers_clock_that_was_put_back_is_no_reason_to_wait() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 9), 1.0)
    assert read(run.apply(codes(trainer, 9, ONE, -3600.0 + 9), 0.0)) == [9]


def test_a_window_shorter_than_four_steps_is_read_before_a_step_has_left_it() -> None:
    run, [trainer] = opened(window=3)
    assert read(take(run, trainer, range(1, 16))) == [*range(1, 10), 12, 15]


def test_a_reading_tells_of_every_step_since_the_last() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 9))
    for step, indices in enumerate(([[0], [-1]], [[1, 1, 1], [0, 1, -1]], [[2, 2], [1, 1]]), start=9):
        assert run.apply(codes(trainer, step, indices), 0.0) == []
    [update] = run.apply(codes(trainer, 12, [[0, 0], [-1, -1]]), 0.0)
    assert update.readings["codebook_zero_index_ratio"] == {("0",): 3 / 8, ("1",): 1 / 4}
    assert update.readings["codebook_tokens_per_step"] == {("0",): 2.0, ("1",): 2.0}
    assert update.readings["codebook_assignments_total"] == {("0",): 24.0, ("1",): 20.0}
    assert update.readings["codebook_ignored_assignments_total"] == {("0",): 0.0, ("1",): 4.0}
    assert update.readings["ema_updates"] == {("0",): 12.0, ("1",): 12.0}
    again = take(run, trainer, range(13, 17))[0]
    assert again.readings["codebook_zero_index_ratio"] == {("0",): 0.0, ("1",): 0.0}


@pytest.mark.parametrize("ends", ["goodbye", "tick"])
def test_what_is_unread_when_training_pauses_or_ends_is_read_then_and_once(ends: str) -> None:
    run, [trainer] = opened()
    assert read(take(run, trainer, range(1, 11))) == list(range(1, 9))
    updates = run.apply(trainer.goodbye(10), 0.0) if ends == "goodbye" else run.tick(0.0)
    assert read(list(updates)) == [10]
    assert run.readings["codebook_assignments_total"] == {("0",): 20.0, ("1",): 20.0}
    assert read(run.tick(1.0)) == []


def test_what_a_pause_had_read_does_not_move_the_readings_after_it() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 11))
    run.tick(0.0)
    updates = take(run, trainer, range(11, 17))
    assert read(updates) == [12, 16]
    assert updates[0].readings["codebook_tokens_per_step"] == {("0",): 2.0, ("1",): 2.0}


def test_steps_that_training_went_back_behind_are_in_no_reading() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 9))
    take(run, trainer, range(9, 12), indices=[[0, 0], [0, 0]])
    resumed = Trainer(session="t")
    run.apply(trainer.step(11), 0.0)
    run.apply(resumed.hello(layers(2, SIZE)), 1.0)
    run.apply(resumed.step(10), 1.0)
    [update] = take(run, resumed, range(10, 13))
    assert update.step == 10
    assert update.readings["codebook_zero_index_ratio"] == {("0",): 2 / 4, ("1",): 2 / 4}
    assert update.readings["codebook_window_samples"] == {("0",): 20.0, ("1",): 20.0}


def test_a_restored_run_reads_the_steps_that_the_one_before_it_had_counted() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 9), 0.01)
    take(run, trainer, range(9, 11), 0.01, [[0, -1], [0, SIZE]])
    restored = Run("r", 100, 0.0)
    restored.restore(run.state())
    for step in range(11, 42):
        message = codes(trainer, step, ONE, 0.01 * step)
        assert run.apply(message, 0.0) == restored.apply(message, 0.0)
    assert restored.readings == run.readings


def test_ranks_are_read_together_and_after_as_many_steps() -> None:
    run, [one, two] = opened(ranks=2)
    seen = [read([*run.apply(codes(one, s), 0.0), *run.apply(codes(two, s), 0.0)]) for s in range(1, 17)]
    assert [step for steps in seen for step in steps] == [*range(1, 9), 12, 16]
    assert run.readings["codebook_tokens_per_step"] == {("0",): 4.0, ("1",): 4.0}


def test_steps_that_wait_for_a_rank_are_one_reading_once_nobody_comes() -> None:
    run, [one, two] = opened(ranks=2)
    for step in range(1, 11):
        run.apply(codes(one, step), 0.0)
        if step < 9:
            run.apply(codes(two, step), 0.0)
    assert read(run.tick(0.0)) == []
    assert read(run.tick(10.0)) == [10]
    assert run.readings["ema_updates"] == {("0",): 10.0, ("1",): 10.0}
    assert run.readings["codebook_tokens_per_step"] == {("0",): 2.0, ("1",): 2.0}


def test_parts_of_a_step_are_counted_as_one_step() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 9))
    for step in range(9, 13):
        run.apply(codes(trainer, step, [[0]], names=("0",), part=0, parts=2), 0.0)
        updates = run.apply(codes(trainer, step, [[1, 1]], names=("1",), part=1, parts=2), 0.0)
    assert read(updates) == [12]
    assert run.readings["codebook_tokens_per_step"] == {("0",): 1.0, ("1",): 2.0}
    assert run.readings["codebook_zero_index_ratio"] == {("0",): 1.0, ("1",): 0.0}


def test_layers_are_compared_at_the_first_reading_and_at_the_next_after_every_twenty_steps() -> None:
    run, [trainer] = opened()
    updates = take(run, trainer, range(1, 62))
    compared = [update.step for update in updates if "codebook_alive_codes_estimate" in update.readings]
    assert compared == [1, 24, 44]


def test_the_slope_is_of_the_last_hundred_steps_however_many_were_read() -> None:
    run, [trainer] = opened()
    take(run, trainer, range(1, 302))
    updates = [updates for updates, _, _ in run.state()["use"]["utilization"]]
    assert (updates[0], updates[-1], len(updates)) == (204, 300, 25)


def test_revivals_are_known_at_their_own_step_whether_it_is_read_or_not() -> None:
    run, [trainer] = opened(window=4)
    book = np.arange(SIZE * 4, dtype=np.float32).reshape(SIZE, 4)
    sizes = np.full(SIZE, 2.0, np.float32)
    take(run, trainer, range(1, 11))
    run.apply(trainer.codebooks(10, codebook={"0": book}, cluster_size={"0": sizes}), 0.0)
    take(run, trainer, range(11, 14))
    run.apply(trainer.codebooks(14, codebook={"0": book}, cluster_size={"0": sizes}), 0.0)
    [update] = take(run, trainer, range(14, 15))
    assert read([update]) == []
    assert update.readings["ema_revivals_exact"] == {("0",): 1.0}
