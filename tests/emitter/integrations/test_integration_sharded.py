"""Models whose parameters are sharded over ranks: codes and averages arrive exactly, no shard is called a codebook."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from receiver import Receiver, array
from tests.emitter.integrations.ranks import run_ranks

WORKER = Path(__file__).with_name("sharded_worker.py")
RANKS, STEPS = 2, 4
SHARDED = ("fully_shard", "flat", "original", "units")
ATTACHED_FIRST = ("original, attached first", "flat, attached first", "fully_shard, attached first")
EVERY = (*SHARDED, "whole", *ATTACHED_FIRST)


@dataclass
class Trained:
    """What arrived from two ranks, what each says itself, and what each wrote to its log."""

    receiver: Receiver
    truth: dict[tuple[str, int], Any]
    said: list[str]

    def of(self, kind: str, run: str, rank: int) -> list[Any]:
        return [m for m in self.receiver.of(kind) if (m.origin.run, m.origin.rank) == (run, rank)]

    def codebooks(self, run: str, rank: int, step: int) -> dict[tuple[str, str], Any]:
        (message,) = [m for m in self.of("codebooks", run, rank) if m.step == step]
        return {key: array(tensor) for key, tensor in message.tensors.items()}


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    with tempfile.TemporaryDirectory() as folder, Receiver(Path(folder)) as receiver:
        said = run_ranks(receiver, RANKS, lambda rank: [str(WORKER), str(rank), str(RANKS), folder])
        truth = {(run, r): dict(np.load(Path(folder) / f"{run}-{r}.npz")) for run in EVERY for r in range(RANKS)}
        yield Trained(receiver, truth, said)


@pytest.mark.parametrize("run", EVERY)
def test_every_layer_is_described_as_if_it_were_whole(trained: Trained, run: str) -> None:
    (hello,) = trained.of("hello", run, 0)
    assert [(layer.kind, layer.size, layer.dim, layer.path) for layer in hello.layers] == [
        ("ema", 16, 8, "quantizer.layers.0"),
        ("ema", 16, 8, "quantizer.layers.1"),
        ("learned", 16, 8, "quantizer.layers.2"),
        ("learned", 16, 8, "quantizer.layers.3"),
    ]


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("run", EVERY)
def test_the_codes_of_every_layer_are_the_models_own(trained: Trained, run: str, rank: int) -> None:
    told = {
        (message.step, layer): row
        for message in trained.of("codes", run, rank)
        for layer, row in zip(message.layers, array(message.indices), strict=True)
    }
    assert len(told) == STEPS * 4
    for (step, layer), row in told.items():
        np.testing.assert_array_equal(row, trained.truth[run, rank]["codes"][step - 1, ..., int(layer)])


@pytest.mark.parametrize("run", EVERY)
def test_averages_are_the_models_own(trained: Trained, run: str) -> None:
    truth = trained.truth[run, 0]
    for step in range(1, STEPS + 1):
        books = trained.codebooks(run, 0, step)
        for layer in (0, 1):
            np.testing.assert_array_equal(books[str(layer), "codebook"][0], truth["books"][step - 1, layer])
            np.testing.assert_array_equal(books[str(layer), "cluster_size"][0], truth["sizes"][step - 1, layer])


@pytest.mark.parametrize("run", EVERY)
def test_the_ranks_sketch_what_they_have_whole(trained: Trained, run: str) -> None:
    whole = {"0", "1", "2", "3"} if run == "whole" else {"0", "1"}
    for rank in range(RANKS):
        sketched = {layer for layer, field in trained.codebooks(run, rank, STEPS) if field == "sketch"}
        assert sketched == whole


@pytest.mark.parametrize("run", [*SHARDED, *ATTACHED_FIRST])
def test_no_shard_is_called_a_codebook(trained: Trained, run: str) -> None:
    for step in range(1, STEPS + 1):
        assert {layer for layer, _ in trained.codebooks(run, 0, step)} == {"0", "1"}


@pytest.mark.parametrize("run", [*SHARDED, *ATTACHED_FIRST])
def test_what_is_left_out_is_counted(trained: Trained, run: str) -> None:
    *_, last = trained.of("step", run, 0)
    assert last.dropped["codebooks:absent"] >= 2 * (STEPS - 1)
    assert not [key for key in last.dropped if key.startswith("codebooks:") and not key.endswith(":absent")]


def test_it_is_said_once_for_each_run_which_codebooks_are_left_out(trained: Trained) -> None:
    for said in trained.said:
        assert said.count("the codebooks of layers 2, 3 are sharded over ranks and left out") == len(SHARDED)
        assert "Traceback" not in said
    assert trained.said[0].count("codebooks:absent") == len(SHARDED) + len(ATTACHED_FIRST)


def test_a_learned_codebook_that_is_not_sharded_arrives(trained: Trained) -> None:
    books = trained.codebooks("whole", 0, STEPS)
    np.testing.assert_array_equal(books["2", "codebook"][0], trained.truth["whole", 0]["learned"])


@pytest.mark.parametrize("run", [*SHARDED, *ATTACHED_FIRST])
def test_no_shards_gradient_norm_is_called_a_modules(trained: Trained, run: str) -> None:
    for rank in range(RANKS):
        told = trained.of("step", run, rank)
        assert [(message.gradient_norms, message.gradient_norm) for message in told] == [({}, None)] * STEPS
        assert told[-1].dropped["gradients:sharded"] == STEPS


def test_gradient_norms_that_every_rank_has_whole_arrive(trained: Trained) -> None:
    for rank in range(RANKS):
        told = [message.gradient_norms["encoder"] for message in trained.of("step", "whole", rank)]
        np.testing.assert_allclose(told, trained.truth["whole", rank]["encoder"], rtol=1e-6)
        assert "gradients:sharded" not in trained.of("step", "whole", rank)[-1].dropped
