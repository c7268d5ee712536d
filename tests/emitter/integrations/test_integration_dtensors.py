"""DTensors handed to ``step()``: what a rank has whole, or for itself, is sent; addends and parts are refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from receiver import Receiver, array
from tests.emitter.integrations.dtensor_worker import STEPS
from tests.emitter.integrations.ranks import run_ranks

WORKER = Path(__file__).with_name("dtensor_worker.py")
RANKS = 2


@dataclass
class Told:
    """What arrived from two ranks, what each has itself, and what each wrote to its log."""

    receiver: Receiver
    truth: list[dict[str, Any]]
    said: list[str]

    def of(self, kind: str, name: str) -> list[Any]:
        """Return what arrived of a step, in the order of the ranks."""
        return sorted(self.receiver.of(kind, STEPS.index(name)), key=lambda message: message.origin.rank)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    with tempfile.TemporaryDirectory() as folder, Receiver(Path(folder)) as receiver:
        said = run_ranks(receiver, RANKS, lambda rank: [str(WORKER), str(rank), str(RANKS), folder])
        yield Told(receiver, [dict(np.load(Path(folder) / f"{rank}.npz")) for rank in range(RANKS)], said)


def test_of_what_is_sharded_by_sample_each_rank_sends_its_own(told: Told) -> None:
    for truth, codes in zip(told.truth, told.of("codes", "sharded by sample"), strict=True):
        np.testing.assert_array_equal(array(codes.indices), np.moveaxis(truth["codes"], -1, 0))
    for truth, sample in zip(told.truth, told.of("reconstruction", "sharded by sample"), strict=True):
        np.testing.assert_array_equal(array(sample.original), truth["original"])
        np.testing.assert_array_equal(array(sample.reconstructed), 2 * truth["original"])


def test_what_every_rank_has_whole_is_sent_as_it_is(told: Told) -> None:
    assert [step.losses for step in told.of("step", "sharded by sample")] == [{"total": 1.5}] * RANKS
    for truth, codes in zip(told.truth, told.of("codes", "whole"), strict=True):
        np.testing.assert_array_equal(array(codes.indices), np.moveaxis(truth["whole"], -1, 0))


def test_an_addend_is_not_taken_for_the_sum(told: Told) -> None:
    assert told.of("codes", "codes are addends") == []
    assert [step.losses for step in told.of("step", "loss is an addend")] == [{"aux": 0.5}] * RANKS
    assert [step.gradient_norm for step in told.of("step", "norm is an addend")] == [None] * RANKS


@pytest.mark.parametrize(("name", "truth"), [("its full tensor", "norm"), ("norm of the clipping", "clipped")])
def test_a_norm_that_every_rank_has_whole_arrives(told: Told, name: str, truth: str) -> None:
    norms = [step.gradient_norm for step in told.of("step", name)]
    assert norms == [rank[truth] for rank in told.truth]
    assert norms[0] == norms[1] > 0


def test_a_part_of_the_layers_is_not_taken_for_the_first_layers(told: Told) -> None:
    assert told.of("codes", "layers are sharded") == []


def test_beside_a_layer_that_is_an_addend_the_other_arrives(told: Told) -> None:
    codes = told.of("codes", "a list of both")
    assert [message.layers for message in codes] == [("0",)] * RANKS
    for truth, message in zip(told.truth, codes, strict=True):
        np.testing.assert_array_equal(array(message.indices)[0], truth["codes"][..., 0])


def test_one_of_several_numbers_is_not_taken_for_the_loss(told: Told) -> None:
    assert [step.losses for step in told.of("step", "loss is sharded")] == [{"aux": 0.5}] * RANKS


def test_a_part_of_the_features_is_not_taken_for_the_features(told: Told) -> None:
    assert told.of("reconstruction", "features are sharded") == []


def test_what_is_left_out_is_counted_and_said_once_on_every_rank(told: Told) -> None:
    for step in told.of("step", STEPS[-1]):
        assert step.dropped == {
            "codes:partial": 2, "codes:sharded": 1, "losses:partial": 2, "losses:shape": 1, "grad_norm:partial": 1,
            "reconstruction:sharded": 1,
        }  # fmt: skip
    for said in told.said:
        assert said.count("vqwatch left out") == 6
        assert "Traceback" not in said
