"""One run, fed with messages as an emitter sends them; time is an argument."""

from __future__ import annotations

import math
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.messages import Trainer, layers

from vqwatch_daemon.readings import Readings
from vqwatch_daemon.run import Run
from vqwatch_daemon.sections.refused import Refused

SIZE = 8


def opened(ranks: int = 1, stack: int = 2, window: int = 4) -> tuple[Run, list[Trainer]]:
    run = Run("r", window, now=0.0)
    trainers = [Trainer(rank=rank, session=f"s{rank}", world_size=ranks) for rank in range(ranks)]
    for trainer in trainers:
        run.apply(trainer.hello(layers(stack, SIZE)), 0.0)
    return run, trainers


def usage(run: Run, layer: str = "0") -> list[int]:
    return run.usage()[layer].tolist()


def changed(updates: list[Any]) -> Readings:
    return {name: series for update in updates for name, series in update.readings.items()}


def test_counts_are_those_of_the_last_steps_of_the_window() -> None:
    run, [trainer] = opened(window=3)
    for step in range(1, 6):
        run.apply(trainer.codes(step, [[step], [0]]), 0.0)
    assert usage(run) == [0, 0, 0, 1, 1, 1, 0, 0]
    assert usage(run, "1") == [3, 0, 0, 0, 0, 0, 0, 0]


def test_masked_and_negative_entries_are_no_codes() -> None:
    run, [trainer] = opened()
    message = trainer.codes(1, np.array([[0, 1, -1, 3], [0, 1, 2, 3]], np.int16))
    run.apply(message, 0.0)
    assert usage(run) == [1, 1, 0, 1, 0, 0, 0, 0]
    assert run.readings["codebook_ignored_assignments_total"] == {("0",): 1.0, ("1",): 0.0}


def test_indices_beyond_the_codebook_are_counted_as_invalid() -> None:
    run, [trainer] = opened()
    run.apply(trainer.codes(1, np.array([[0, 8, 255, 3], [0, 1, 2, 3]], np.uint8)), 0.0)
    assert run.readings["codebook_invalid_assignments_total"] == {("0",): 2.0, ("1",): 0.0}


@settings(deadline=None)
@given(st.lists(st.integers(0, SIZE - 1), min_size=4, max_size=40), st.integers(1, 4))
def test_a_window_split_over_ranks_reads_as_if_one_rank_had_seen_all(codes: list[int], ranks: int) -> None:
    whole, [single] = opened(stack=1)
    split, trainers = opened(ranks, stack=1)
    whole.apply(single.codes(1, [codes]), 0.0)
    for rank, trainer in enumerate(trainers):
        split.apply(trainer.codes(1, [codes[rank::ranks]]), 0.0)
    assert usage(whole) == usage(split)
    for name in ("codebook_window_samples", "codebook_tokens_per_step", "codebook_zero_index_ratio"):
        assert whole.readings[name] == split.readings[name], name


def test_a_step_of_two_ranks_is_read_when_both_have_spoken() -> None:
    run, [one, two] = opened(ranks=2)
    assert run.apply(one.step(5, losses={"total": 1.0}), 0.0) == []
    [update] = run.apply(two.step(5, losses={"total": 3.0}), 0.0)
    assert update.step == 5
    assert update.readings["loss"] == {("total",): 2.0}


def test_a_step_does_not_wait_for_a_rank_that_never_comes() -> None:
    run, [one, _] = opened(ranks=2)
    run.apply(one.step(5, losses={"total": 1.0}), 0.0)
    assert changed(run.tick(2.0))["loss"] == {("total",): 1.0}


def test_scalars_that_come_after_their_step_was_read_are_counted_for_their_rank() -> None:
    run, [first, second] = opened(2)
    run.apply(first.step(1, losses={"total": 1.0}), 0.0)
    run.apply(second.step(1, losses={"total": 3.0}), 0.0)
    assert changed(run.tick(0.5))["messages_late_total"] == {}
    run.apply(first.step(2, losses={"total": 1.0}), 10.0)
    assert changed(run.tick(12.0))["loss"] == {("total",): 1.0}
    assert changed(run.apply(second.step(2, losses={"total": 9.0}), 12.1)) == {}
    assert changed(run.tick(13.0))["messages_late_total"] == {("1",): 1.0}
    assert run.readings["loss"] == {("total",): 1.0}
    restored = Run("r", 4, 0.0)
    restored.restore(run.state())
    assert changed(restored.tick(13.0))["messages_late_total"] == {("1",): 1.0}


def test_a_nan_loss_counts_at_once_even_while_other_ranks_are_awaited() -> None:
    run, [one, _] = opened(ranks=2)
    [update] = run.apply(one.step(5, losses={"total": math.nan}), 0.0)
    assert update.readings["nonfinite_total"]["loss",] == 1.0


def test_a_nan_loss_is_shown_as_nan_and_leaves_the_smoothed_loss_alone() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(1, losses={"total": 2.0}), 0.0)
    run.apply(trainer.step(2, losses={"total": math.nan}), 0.0)
    assert math.isnan(run.readings["loss"]["total",])
    assert run.readings["loss_smoothed"] == {("total",): 2.0}


def test_shares_and_the_ratio_of_vq_to_reconstruction_follow_from_the_losses() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(1, losses={"total": 4.0, "recon": 1.0, "vq": 3.0}), 0.0)
    assert run.readings["loss_share_ratio"] == {("recon",): 0.25, ("vq",): 0.75}
    assert run.readings["loss_vq_to_reconstruction_ratio"] == {(): 3.0}


def test_residual_energies_become_ratios_and_gains() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(1, input_energy=10.0, residual_energy={"0": 1.0, "1": 1.0}), 0.0)
    assert run.readings["residual_energy_ratio"] == {("0",): 0.1, ("1",): 0.1}
    assert run.readings["residual_gain_db"] == {("0",): pytest.approx(10.0), ("1",): 0.0}


def test_an_update_ratio_that_a_trainer_tells_is_read_and_one_it_does_not_is_absent() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(1, losses={"total": 1.0}), 1.0)
    assert "update_to_weight_ratio" not in run.readings
    run.apply(trainer.step(2, update_ratio=1e-3), 2.0)
    assert run.readings["update_to_weight_ratio"] == {(): 1e-3}


def test_a_step_told_twice_is_refused_and_changes_nothing() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(10, losses={"total": 1.0}), 0.0)
    with pytest.raises(Refused) as caught:
        run.apply(trainer.step(10, losses={"total": 2.0}), 0.0)
    assert caught.value.reason == "step_repeated"
    assert run.readings["loss"] == {("total",): 1.0}


def tell(run: Run, trainer: Trainer, steps: range, code: int) -> None:
    """Let a rank tell steps in which every vector got one code."""
    for step in steps:
        run.apply(trainer.step(step, losses={"total": float(code)}), 0.0)
        run.apply(trainer.codes(step, [[code], [code]]), 0.0)


def test_a_training_that_goes_back_in_the_same_session_takes_the_run_back() -> None:
    run, [trainer] = opened(window=20)
    tell(run, trainer, range(1, 5), 1)
    tell(run, trainer, range(3, 6), 2)
    assert run.readings["loss"] == {("total",): 2.0}
    assert run.readings["step"] == {(): 5.0}
    assert usage(run)[:3] == [0, 2, 3]


def test_a_training_that_numbers_the_steps_of_each_epoch_anew_is_watched_in_every_epoch() -> None:
    run, [trainer] = opened(window=20)
    for epoch in range(3):
        tell(run, trainer, range(10), epoch)
        assert run.readings["loss"] == {("total",): float(epoch)}
        assert usage(run)[: epoch + 1] == [0] * epoch + [10]


def test_ranks_that_go_back_one_after_another_go_back_once() -> None:
    run, trainers = opened(ranks=2, window=20)
    for step in range(1, 9):
        for trainer in trainers:
            tell(run, trainer, range(step, step + 1), 1)
    tell(run, trainers[0], range(3, 5), 2)
    tell(run, trainers[1], range(9, 11), 1)  # on their way when the other one went back
    tell(run, trainers[1], range(3, 5), 3)
    assert usage(run)[:4] == [0, 4, 2, 2]
    for trainer, code in zip(trainers, (2, 3), strict=True):
        tell(run, trainer, range(5, 11), code)
    assert usage(run)[:4] == [0, 4, 8, 8]
    assert run.readings["loss"] == {("total",): 2.5}
    assert run.readings["step"] == {(): 10.0}


def test_what_a_rank_told_before_it_went_back_too_makes_no_later_step_late() -> None:
    run, trainers = opened(ranks=2, window=20)
    for trainer in trainers:
        tell(run, trainer, range(1, 9), 1)
    tell(run, trainers[0], range(3, 5), 2)
    tell(run, trainers[1], range(9, 11), 1)
    run.tick(100.0)  # longer than anybody waits for the rank that does not come
    for trainer in trainers[::-1]:
        tell(run, trainer, range(5 if trainer is trainers[0] else 3, 7), 2)
    assert run.readings["loss"] == {("total",): 2.0}
    assert not run.training.is_late(7)


def test_a_new_session_that_starts_earlier_takes_the_run_back() -> None:
    run, [trainer] = opened()
    for step in range(1, 5):
        run.apply(trainer.step(step, losses={"total": 1.0}), 0.0)
        run.apply(trainer.codes(step, [[1], [1]]), 0.0)
    resumed = Trainer(session="t")
    run.apply(resumed.hello(layers(2, SIZE)), 1.0)
    run.apply(resumed.step(3, losses={"total": 5.0}), 1.0)
    assert run.readings["loss"] == {("total",): 5.0}
    assert usage(run)[1] == 2
    run.apply(resumed.codes(3, [[2], [2]]), 1.0)
    assert usage(run)[:3] == [0, 2, 1]


def test_ranks_that_follow_a_resumed_one_do_not_take_the_run_back_again() -> None:
    run, trainers = opened(ranks=2)
    for step in range(1, 5):
        for trainer in trainers:
            run.apply(trainer.step(step, losses={"total": 1.0}), 0.0)
            run.apply(trainer.codes(step, [[1], [1]]), 0.0)
    resumed = [Trainer(rank=rank, session=f"t{rank}", world_size=2) for rank in range(2)]
    for trainer in resumed:
        run.apply(trainer.hello(layers(2, SIZE)), 1.0)
    for step in (3, 4):
        run.apply(resumed[0].step(step, losses={"total": 1.0}), 1.0)
        run.apply(resumed[0].codes(step, [[2], [2]]), 1.0)
    for step in (3, 4):
        run.apply(resumed[1].step(step, losses={"total": 1.0}), 1.0)
        run.apply(resumed[1].codes(step, [[3], [3]]), 1.0)
    assert usage(run)[:4] == [0, 4, 2, 2]


def test_a_codebook_of_another_size_in_a_new_session_begins_anew() -> None:
    run, [trainer] = opened()
    run.apply(trainer.codes(1, [[1], [1]]), 0.0)
    run.apply(Trainer(session="t").hello(layers(2, 2 * SIZE)), 1.0)
    assert usage(run) == [0] * 16
    assert "codebook_window_samples" not in run.readings


def test_a_snapshot_of_another_size_than_announced_is_refused() -> None:
    run, [trainer] = opened()
    with pytest.raises(Refused) as caught:
        run.apply(trainer.codebooks(1, codebook={"0": np.zeros((SIZE + 1, 4), np.float32)}), 0.0)
    assert caught.value.reason == "codebook_size_changed"


def test_codes_of_a_layer_that_nobody_announced_are_refused() -> None:
    run, [trainer] = opened()
    with pytest.raises(Refused) as caught:
        run.apply(trainer.codes(1, [[1]], names=("9",)), 0.0)
    assert caught.value.reason == "unknown_layer"


def test_codes_of_layers_with_different_shapes_make_one_step() -> None:
    run, [trainer] = opened()
    assert run.apply(trainer.codes(1, [[1, 2]], ("0",), part=0, parts=2), 0.0) == []
    [update] = run.apply(trainer.codes(1, [[3]], ("1",), part=1, parts=2), 0.0)
    assert update.readings["codebook_tokens_per_step"] == {("0",): 2.0, ("1",): 1.0}


def test_a_step_that_lost_a_part_of_its_codes_is_read_when_the_next_one_comes() -> None:
    run, [trainer] = opened()
    assert run.apply(trainer.codes(1, [[1, 2]], ("0",), part=0, parts=2), 0.0) == []
    first, second = run.apply(trainer.codes(2, [[1], [1]]), 0.0)
    assert (first.step, first.readings["codebook_tokens_per_step"]) == (1, {("0",): 2.0})
    assert (second.step, second.readings["codebook_tokens_per_step"]) == (2, {("0",): 1.0, ("1",): 1.0})


def test_parts_of_steps_that_never_become_whole_are_not_kept_for_ever() -> None:
    run, [trainer] = opened()
    for step in range(1, 100):
        run.apply(trainer.codes(step, [[1, 2]], ("0",), part=0, parts=2), 0.0)
    assert len(run.state()["use"]["parts"]) == 1


def ema_step(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return (0.9 * sizes + 0.1 * counts).astype(np.float32)


@pytest.mark.parametrize("codes_first", [True, False])
def test_a_replaced_code_is_found_exactly_whichever_message_comes_first(codes_first: bool) -> None:
    run, [trainer] = opened(stack=1)
    book = np.arange(SIZE * 4, dtype=np.float32).reshape(SIZE, 4)
    sizes = np.full(SIZE, 2.0, np.float32)
    sizes[5] = 0.1
    run.apply(trainer.codes(1, [[0, 1]]), 0.0)
    run.apply(trainer.codebooks(1, codebook={"0": book}, cluster_size={"0": sizes}), 0.0)
    after = ema_step(sizes, np.bincount([0, 1, 2], minlength=SIZE))
    after[5] = 2.0
    snapshot = trainer.codebooks(2, codebook={"0": book}, cluster_size={"0": after})
    messages = [trainer.codes(2, [[0, 1, 2]]), snapshot]
    for message in messages if codes_first else reversed(messages):
        run.apply(message, 0.0)
    run.apply(trainer.codes(3, [[0]]), 0.0)
    assert run.readings["ema_revived_codes_total"] == {("0",): 1.0}
    assert run.readings["ema_revivals_exact"] == {("0",): 1.0}


def test_a_nan_in_a_codebook_is_counted_and_named() -> None:
    run, [trainer] = opened(stack=1)
    book = np.ones((SIZE, 4), np.float32)
    book[3] = np.nan
    run.apply(trainer.codebooks(1, codebook={"0": book}, cluster_size={"0": np.ones(SIZE, np.float32)}), 0.0)
    assert run.readings["codebook_nonfinite_values"] == {("0",): 4.0}
    assert run.readings["nonfinite_total"]["codebook",] == 4.0


def test_layers_take_turns_with_their_effective_rank_and_keep_it_meanwhile() -> None:
    run, [trainer] = opened(stack=8)
    rng, resumed, seen = np.random.default_rng(0), None, []
    for snapshot in range(1, 10):
        books = {str(layer): rng.standard_normal((SIZE, 4)).astype(np.float32) for layer in range(8)}
        message = trainer.codebooks(snapshot * 50, codebook=books)
        run.apply(message, 0.0)
        if resumed is not None:
            resumed.apply(message, 0.0)
            assert resumed.readings["codebook_effective_rank"] == run.readings["codebook_effective_rank"]
        if snapshot == 6:
            resumed = Run("r", 4, now=0.0)
            resumed.restore(run.state())
        seen.append(dict(run.readings["codebook_effective_rank"]))
        assert len(seen[-1]) == 8
    changed = [[int(layer) for (layer,) in now if now[layer,] != before[layer,]] for before, now in pairwise(seen)]
    assert [len(layers) for layers in changed] == [2] * 8
    for round_ in (changed[:4], changed[4:]):
        assert sorted(chain(*round_)) == list(range(8))
    books["3"][0, 0] = np.nan
    run.apply(trainer.codebooks(1000, codebook=books), 0.0)
    assert ("3",) not in run.readings["codebook_effective_rank"]


def test_ranks_whose_codebooks_differ_are_told_apart() -> None:
    run, [one, two] = opened(ranks=2, stack=1)
    run.apply(one.codebooks(1, sketch={"0": np.array([3.0, 4.0])}), 0.0)
    run.apply(two.codebooks(1, sketch={"0": np.array([3.0, 3.0])}), 0.0)
    assert run.readings["codebook_rank_divergence_ratio"] == {("0",): pytest.approx(0.2)}


def test_a_perfect_reconstruction_has_a_high_snr_and_an_empty_mask_has_no_reading() -> None:
    run, [trainer] = opened()
    sample = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    run.apply(trainer.reconstruction(1, sample, sample), 0.0)
    assert run.readings["reconstruction_snr_db"][()] > 100
    updates = run.apply(trainer.reconstruction(2, sample, sample, np.zeros((1, 4), bool)), 0.0)
    assert changed(updates)["reconstruction_snr_db"] == {}


def test_nan_in_a_reconstruction_is_counted_and_does_not_look_healthy() -> None:
    run, [trainer] = opened()
    sample = np.ones((1, 4, 3), np.float32)
    spoilt = sample.copy()
    spoilt[0, 1, 1] = np.nan
    run.apply(trainer.reconstruction(1, sample, spoilt), 0.0)
    assert run.readings["nonfinite_total"]["reconstruction",] == 1.0
    assert math.isnan(run.readings["reconstruction_snr_db"][()])


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 2, 1), (3, 1, 2)])
def test_the_smallest_samples_give_defined_readings(shape: tuple[int, ...]) -> None:
    run, [trainer] = opened()
    run.apply(trainer.reconstruction(1, np.ones(shape, np.float32), np.ones(shape, np.float32)), 0.0)
    assert run.readings["reconstruction_mse"] == {(): 0.0}


def test_a_codebook_of_one_code_and_a_stack_of_one_layer_give_defined_readings() -> None:
    run = Run("r", 4, 0.0)
    trainer = Trainer()
    run.apply(trainer.hello(layers(1, 1)), 0.0)
    for step in range(1, 30):
        run.apply(trainer.codes(step, [[0]]), 0.0)
        run.apply(
            trainer.codebooks(
                step, codebook={"0": np.ones((1, 4), np.float32)}, cluster_size={"0": np.ones(1, np.float32)}
            ),
            0.0,
        )
    assert run.readings["codebook_utilization_ratio"] == {("0",): 1.0}
    assert run.readings["codebook_perplexity"] == {("0",): 1.0}


def test_silence_and_standstill_grow_with_time_and_end_with_the_goodbye() -> None:
    run, [trainer] = opened()
    for step in range(40):
        run.heard(0, float(step), 0)
        run.apply(trainer.step(step, time=float(step)), float(step))
    readings = changed(run.tick(139.0))
    assert readings["stalled_ratio"] == {(): 100.0}
    assert readings["rank_silent_seconds"] == {("0",): 100.0}
    run.apply(trainer.goodbye(39), 139.0)
    readings = changed(run.tick(140.0))
    assert readings["stalled_ratio"] == {}
    assert readings["rank_silent_seconds"] == {}


def test_a_rank_behind_the_others_has_its_lag() -> None:
    run, [one, two] = opened(ranks=2)
    run.apply(one.step(9), 0.0)
    run.apply(two.step(4), 0.0)
    assert changed(run.tick(0.0))["rank_lag_steps"] == {("0",): 0.0, ("1",): 5.0}


def test_drops_that_an_emitter_reports_survive_its_restart() -> None:
    run, [trainer] = opened()
    run.apply(trainer.step(1, dropped={"codes:busy": 3}), 0.0)
    resumed = Trainer(session="t")
    run.apply(resumed.hello(layers(2, SIZE)), 1.0)
    run.apply(resumed.step(2, dropped={"codes:busy": 2}), 1.0)
    assert changed(run.tick(1.0))["emitter_dropped_total"] == {("0", "codes", "busy"): 5.0}


def test_a_codebook_drawn_anew_by_a_resumed_run_is_told_from_one_that_learned_for_long() -> None:
    run, [trainer] = opened(stack=1)
    rng = np.random.default_rng(0)
    books = [rng.normal(size=(SIZE, 4)).astype(np.float32) for _ in range(3)]
    run.apply(trainer.codebooks(100, codebook={"0": books[0]}), 0.0)
    far = changed(run.apply(trainer.codebooks(600, codebook={"0": books[1]}), 0.0))
    assert "codebook_reinitialised_ratio" not in far
    resumed = Trainer(session="t")
    run.apply(resumed.hello(layers(1, SIZE)), 1.0)
    anew = changed(run.apply(resumed.codebooks(900, codebook={"0": books[2]}), 1.0))
    assert anew["codebook_reinitialised_ratio"]["0",] > 0.5
