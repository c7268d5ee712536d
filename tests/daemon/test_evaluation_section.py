"""Validation passes: against float64 loops over the whole corpus, on several ranks, abandoned, repeated and late."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.messages import layers, tensor

from vqwatch.wire import Evaluation, Origin
from vqwatch_daemon.readings import Readings
from vqwatch_daemon.sections.corpus import Corpus, Spread
from vqwatch_daemon.sections.evaluation import Evaluations
from vqwatch_daemon.sections.refused import Refused

SIZE, DIM = 8, 6
NO_TRAINING = np.zeros((2, SIZE), np.int64)


def part(phase: str, rank: int = 0, step: int = 5, batch: int = 0, **more: Any) -> Evaluation:
    arrays = {name: tensor(value) for name, value in more.items() if name != "scalars"}
    return Evaluation(
        Origin("r", rank, f"s{rank}"), 1, 1, 0, step, phase, batch=batch,
        layers=("0", "1") if "codes" in arrays else (), scalars=more.get("scalars", {}), **arrays,
    )  # fmt: skip


Batch = dict[str, NDArray[Any]]


def batches(sizes: tuple[int, ...] = (5, 1, 7, 2), length: int = 9, seed: int = 0) -> list[Batch]:
    """Return batches of different size and length with ragged masks; padding holds rubbish."""
    rng = np.random.default_rng(seed)
    out = []
    for number, size in enumerate(sizes):
        frames = length + number
        original = rng.normal(size=(size, frames, DIM))
        mask = np.arange(frames) < rng.integers(1, frames + 1, size)[:, None]
        reconstructed = original + rng.normal(scale=rng.uniform(0.05, 1.0, (size, 1, 1)), size=original.shape)
        reconstructed[~mask] = np.nan
        codes = rng.integers(0, SIZE // 2, (2, size, frames))
        codes[:, ~mask] = -1
        out.append({"original": original, "reconstructed": reconstructed, "mask": mask, "codes": codes})
    return out


def send(evaluations: Evaluations, found: list[Batch], rank: int = 0, training: Any = NO_TRAINING) -> Readings | None:
    """Send a whole pass of one rank; return what its end says."""
    evaluations.add(part("begin", rank), training)
    for number, batch in enumerate(found):
        assert evaluations.add(part("batch", rank, batch=number, **batch), training) is None
    return evaluations.add(part("end", rank, batch=len(found)), training)


def series(readings: Readings | None) -> dict[tuple[str, ...], float]:
    assert readings is not None
    return readings["evaluation"]


def sample_scores(original: NDArray[Any], reconstructed: NDArray[Any], mask: NDArray[Any]) -> dict[str, float]:
    """Score one sample frame by frame, in float64, as the metrics' definitions say."""
    frames = [t for t in range(len(mask)) if mask[t]]
    errors = [(float(original[t][d]) - float(reconstructed[t][d])) ** 2 for t in frames for d in range(DIM)]
    powers = [float(original[t][d]) ** 2 for t in frames for d in range(DIM)]
    cosines = [
        float(original[t] @ reconstructed[t] / np.linalg.norm(original[t]) / np.linalg.norm(reconstructed[t]))
        for t in frames
    ]
    steps = [t for t in range(len(mask) - 1) if mask[t] and mask[t + 1]]
    x = np.array([np.linalg.norm(original[t + 1] - original[t]) for t in steps])
    y = np.array([np.linalg.norm(reconstructed[t + 1] - reconstructed[t]) for t in steps])
    scores = {
        "mse": sum(errors) / len(errors),
        "snr_db": 10 * math.log10(sum(powers) / sum(errors)),
        "cosine_similarity": sum(cosines) / len(cosines),
    }
    if steps:
        scores["temporal_consistency"] = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    return scores


def corpus_scores(found: list[Batch]) -> dict[tuple[str, str], float]:
    """Return every statistic of a corpus from a loop over its samples."""
    scores = [
        sample_scores(*sample)
        for batch in found
        for sample in zip(batch["original"], batch["reconstructed"], batch["mask"], strict=True)
    ]
    out = {}
    for name in ("mse", "snr_db", "cosine_similarity", "temporal_consistency"):
        values = np.array([score[name] for score in scores if name in score])
        out |= {(name, "mean"): values.mean(), (name, "std"): values.std(), (name, "min"): values.min(),
                (name, "max"): values.max()}  # fmt: skip
    return out


def test_scores_are_those_of_a_float64_loop_over_all_samples() -> None:
    found = batches()
    readings = series(send(Evaluations(layers(2, SIZE)), found))
    expected = corpus_scores(found)
    assert {key: readings[key] for key in expected} == pytest.approx(expected, rel=1e-9)


def test_a_mean_is_over_samples_and_not_over_batches() -> None:
    found = batches((1, 9))
    readings = series(send(Evaluations(layers(2, SIZE)), found))
    of_batches = np.mean([corpus_scores([batch])["mse", "mean"] for batch in found])
    assert readings["mse", "mean"] != pytest.approx(of_batches, rel=0.01)


def test_usage_is_counted_over_the_whole_pass_without_window() -> None:
    found = batches()
    readings = series(send(Evaluations(layers(2, SIZE)), found))
    every = [np.concatenate([batch["codes"][layer][batch["mask"]] for batch in found]) for layer in range(2)]
    counts = [Counter(codes.tolist()) for codes in every]
    utilization = [len(count) / SIZE for count in counts]
    perplexity = [
        math.exp(-sum(n / len(codes) * math.log(n / len(codes)) for n in count.values()))
        for count, codes in zip(counts, every, strict=True)
    ]
    assert readings["codebook_utilization_ratio", "min"] == min(utilization)
    assert readings["codebook_perplexity", "mean"] == pytest.approx(np.mean(perplexity), rel=1e-12)
    identifiers = list(zip(*(codes.tolist() for codes in every), strict=True))
    assert readings["identifier_unique_ratio", "mean"] == len(set(identifiers)) / len(identifiers)
    assert readings["identifier_collision_ratio", "mean"] == pytest.approx(1 - len(set(identifiers)) / len(identifiers))


def test_the_gap_is_the_distance_between_usage_in_training_and_in_evaluation() -> None:
    codes = np.zeros((2, 1, 4), np.int16)
    balanced = np.full((2, SIZE), 10)
    readings = series(send(Evaluations(layers(2, SIZE)), [{"codes": codes}], training=balanced))
    assert readings["codebook_usage_gap_ratio", "mean"] == 1 - 1 / SIZE


def test_without_training_there_is_no_gap() -> None:
    readings = series(send(Evaluations(layers(2, SIZE)), [{"codes": np.zeros((2, 1, 4), np.int16)}]))
    assert ("codebook_usage_gap_ratio", "mean") not in readings


def test_a_sample_that_is_not_finite_is_left_out_of_scores_and_told() -> None:
    original = np.ones((4, 3, DIM), np.float32)
    reconstructed = original * 0.5
    reconstructed[1, 2, 0] = np.inf
    readings = series(send(Evaluations(layers(2, SIZE)), [{"original": original, "reconstructed": reconstructed}]))
    assert readings["nonfinite_ratio", "mean"] == 0.25
    assert readings["mse", "max"] == 0.25


@pytest.mark.parametrize("interleaved", [True, False], ids=["side by side", "one after the other"])
def test_the_passes_of_several_ranks_are_one(interleaved: bool) -> None:
    found = batches()
    evaluations = Evaluations(layers(2, SIZE))
    halves = [found[:2], found[2:]]
    if interleaved:
        for rank in (0, 1):
            evaluations.add(part("begin", rank), NO_TRAINING)
        for number in range(2):
            for rank in (0, 1):
                evaluations.add(part("batch", rank, batch=number, **halves[rank][number]), NO_TRAINING)
        assert evaluations.add(part("end", 1, batch=2), NO_TRAINING) is None
        readings = evaluations.add(part("end", 0, batch=2), NO_TRAINING)
    else:
        assert send(evaluations, halves[0], 0) is not None
        readings = send(evaluations, halves[1], 1)
    expected = corpus_scores(found)
    assert {key: series(readings)[key] for key in expected} == pytest.approx(expected, rel=1e-9)


def test_an_abandoned_pass_makes_no_readings_and_the_next_is_whole() -> None:
    evaluations = Evaluations(layers(2, SIZE))
    found = batches()
    evaluations.add(part("begin"), NO_TRAINING)
    evaluations.add(part("batch", **found[0]), NO_TRAINING)
    assert evaluations.add(part("abandon", batch=1), NO_TRAINING) is None
    assert evaluations.add(part("batch", batch=1, **found[1]), NO_TRAINING) is None
    assert series(send(evaluations, found))["mse", "mean"] == pytest.approx(corpus_scores(found)["mse", "mean"])


def test_a_pass_begun_again_counts_nothing_twice() -> None:
    evaluations = Evaluations(layers(2, SIZE))
    found = batches()
    evaluations.add(part("begin"), NO_TRAINING)
    evaluations.add(part("batch", **found[0]), NO_TRAINING)
    once = series(send(evaluations, found))
    again = series(send(evaluations, found))
    total = sum(int(batch["mask"].sum()) for batch in found)
    assert once["codebook_assignments", "min"] == again["codebook_assignments", "min"] == total


def test_a_pass_with_a_missing_part_is_refused() -> None:
    evaluations = Evaluations(layers(2, SIZE))
    evaluations.add(part("begin"), NO_TRAINING)
    evaluations.add(part("batch", **batches()[0]), NO_TRAINING)
    with pytest.raises(Refused, match="sent 2 parts, 1 arrived"):
        evaluations.add(part("end", batch=2), NO_TRAINING)


@pytest.mark.parametrize("phase", ["batch", "end"])
def test_a_late_part_makes_no_reading_of_its_own(phase: str) -> None:
    evaluations = Evaluations(layers(2, SIZE))
    send(evaluations, batches())
    with pytest.raises(Refused) as refusal:
        evaluations.add(part(phase, scalars={"score": 1.0}), NO_TRAINING)
    assert refusal.value.reason == "evaluation_begin"


def test_passes_that_never_end_do_not_pile_up() -> None:
    evaluations = Evaluations(layers(2, SIZE))
    for step in range(20):
        evaluations.add(part("begin", step=step), NO_TRAINING)
    assert len(evaluations.state()["passes"]) == 4


def test_a_pass_goes_on_after_a_restart_in_the_middle() -> None:
    found = batches()
    before, after = Evaluations(layers(2, SIZE)), Evaluations(layers(2, SIZE))
    before.add(part("begin"), NO_TRAINING)
    for number, batch in enumerate(found[:2]):
        before.add(part("batch", batch=number, **batch), NO_TRAINING)
    after.restore(before.state())
    for number, batch in enumerate(found[2:], 2):
        after.add(part("batch", batch=number, **batch), NO_TRAINING)
    expected = series(send(Evaluations(layers(2, SIZE)), found))
    assert series(after.add(part("end", batch=4), NO_TRAINING)) == pytest.approx(expected)


def test_codes_of_an_unknown_layer_are_refused() -> None:
    evaluations = Evaluations(layers(1, SIZE))
    evaluations.add(part("begin"), NO_TRAINING)
    with pytest.raises(Refused, match="announced"):
        evaluations.add(part("batch", codes=np.zeros((2, 1, 4), np.int16)), NO_TRAINING)


def test_a_spread_in_pieces_is_the_spread_of_the_whole() -> None:
    values = 1e8 + np.random.default_rng(1).normal(size=1000)
    spread = Spread()
    for piece in np.array_split(values, [3, 3, 500, 999]):
        spread.add(piece)
    expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    assert spread.statistics() == pytest.approx(expected, rel=1e-9)


def test_identifiers_beyond_those_kept_are_judged_by_a_sample() -> None:
    corpus = Corpus([64, 64])
    rng = np.random.default_rng(0)
    for _ in range(30):
        corpus.assign([0, 1], rng.integers(0, 64, (2, 10_000)))
    unique = corpus.statistics()["identifier_unique_ratio", "mean"]
    assert unique == pytest.approx(4096 / (1 << 18), rel=1e-3)
