"""Several processes in one gloo group: every rank emits, and all of them stop at the same step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from receiver import Receiver, array
from tests.emitter.integrations.ranks import run_ranks

from vqwatch_daemon.metrics.ema import rank_divergence_ratio

WORKER = Path(__file__).with_name("worker.py")


def launch(receiver: Receiver, folder: Path, ranks: int, mode: str) -> list[dict[str, Any]]:
    """Run the worker on every rank until it ends by itself; return what each wrote."""
    run_ranks(receiver, ranks, lambda rank: [str(WORKER), mode, str(rank), str(ranks), str(folder)])
    return [json.loads((folder / f"{mode}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def drifted() -> Iterator[Receiver]:
    """What arrived from three ranks of DDP that train encodec's quantizer, which keeps its averages to itself."""
    with tempfile.TemporaryDirectory() as folder, Receiver(Path(folder)) as receiver:
        launch(receiver, Path(folder), 3, "encodec")
        yield receiver


def test_rank_and_world_size_are_those_of_the_group(drifted: Receiver) -> None:
    hellos = drifted.of("hello")
    assert sorted(hello.origin.rank for hello in hellos) == [0, 1, 2]
    assert {hello.world_size for hello in hellos} == {3}
    assert {tuple(layer.path for layer in hello.layers) for hello in hellos} == {
        ("quantizer.vq.layers.0", "quantizer.vq.layers.1")
    }


def test_every_rank_tells_every_step_and_its_own_codes(drifted: Receiver) -> None:
    for rank in range(3):
        assert [step.step for step in drifted.of("step") if step.origin.rank == rank] == list(range(1, 7))
        told = [message for message in drifted.of("codes") if message.origin.rank == rank]
        assert {message.step for message in told} == set(range(1, 7))
    one, other, *_ = (array(message.indices) for message in drifted.of("codes", 1))
    assert not np.array_equal(one, other)


def test_sketches_show_codebooks_that_drift_apart(drifted: Receiver) -> None:
    sketches = {
        (message.origin.rank, layer): array(tensor)
        for message in drifted.of("codebooks", 6)
        for (layer, field), tensor in message.tensors.items()
        if field == "sketch"
    }
    assert sorted(sketches) == [(rank, layer) for rank in range(3) for layer in ("0", "1")]
    assert not np.allclose(sketches[0, "0"], sketches[1, "0"])
    for layer in ("0", "1"):
        apart = rank_divergence_ratio({rank: sketches[rank, layer] for rank in range(3)})
        assert 0.01 < apart < 2
        assert rank_divergence_ratio({0: sketches[0, layer], 1: sketches[0, layer].copy()}) == 0


def test_all_ranks_stop_at_the_same_step(receiver: Receiver, tmp_path: Path) -> None:
    receiver.stop = "VqwatchNonFiniteLoss"
    ends = launch(receiver, tmp_path, 2, "stop")
    assert len({end["steps"] for end in ends}) == 1
    assert ends[0]["steps"] < 5000
    assert ends[0]["steps"] % 5 == 1, "the first of ten numbers, of which only the odd ones come"
