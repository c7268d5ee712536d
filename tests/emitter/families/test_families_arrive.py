"""What arrives at the daemon's side of the wire is what the library itself says it did, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, OLD, Case
from ledger import LEDGER, Row
from libraries import OLD_LUCIDRAINS, older, version
from numpy.typing import NDArray
from receiver import Receiver, meet
from training import Truth, Watched, train

import vqwatch
from vqwatch.schedule import EVERYTHING


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path) as receiver:
        yield receiver


def watched_training(case: Case, receiver: Receiver) -> tuple[Any, list[Truth]]:
    """Train a case with every capture at every step; return the hello and the library's own account of each step."""
    torch.manual_seed(7)
    model = Watched(case)
    truths: list[Truth] = []
    watch = vqwatch.attach(model, run="families", endpoint=receiver.endpoint, budget=float("inf"), every=EVERYTHING)
    meet(watch)

    def tell(step: int, loss: torch.Tensor, truth: Truth) -> None:
        watch.step(step, losses={"total": loss})
        truths.append(truth)

    train(model, tell)
    assert watch.flush(10)
    assert watch.dropped == {}
    watch.close(10)
    (hello,) = receiver.of("hello")
    return hello, truths


def compare(case: Case, name: str, installed: str, receiver: Receiver) -> None:
    """Check codes, codebooks, cluster sizes and residual energies; note in the table what was equal."""
    hello, truths = watched_training(case, receiver)
    row = LEDGER.rows[name] = Row(installed, len(hello.layers), case.kind)
    layers = [layer.name for layer in hello.layers]
    for step, truth in enumerate(truths, 1):
        codes, books = receiver.codes(step), receiver.codebooks(step)
        expected = {layer: own for layer, own in zip(layers, truth.codes, strict=True) if own is not None}
        assert codes.keys() == expected.keys()
        for layer, own in expected.items():
            (arrived,) = codes[layer]
            equal(row, "codes", arrived, own)
        for layer, own in zip(layers, truth.codebooks, strict=bool(truth.codebooks)):
            equal(row, "codebook", books[layer, "codebook"], own.reshape(-1, *own.shape[-2:]))
        for layer, (size, _) in zip(layers, truth.averages, strict=bool(truth.averages)):
            equal(row, "averages", books[layer, "cluster_size"], size.reshape(-1, size.shape[-1]))
        if step > 1:
            (message,) = receiver.of("step", step)
            energies(row, list(expected), truth, message)


def equal(row: Row, column: str, arrived: NDArray[Any], own: torch.Tensor) -> None:
    np.testing.assert_array_equal(arrived, own.numpy())
    row.equal[column] += 1


def energies(row: Row, layers: list[str], truth: Truth, message: Any) -> None:
    """What is left after a layer is what the next one of its chain gets; float32 sums, so to six digits."""
    names = iter(layers)
    for number, chain in enumerate(truth.inputs):
        own = [float(value.double().square().sum(-1).mean()) for value in chain]
        if number == 0 and own:
            assert message.input_energy == pytest.approx(own[0], rel=1e-5)
            row.equal["residuals"] += 1
        for layer, left in zip([next(names) for _ in chain], own[1:], strict=False):
            assert message.residual_energy[layer] == pytest.approx(left, rel=1e-5)
            row.equal["residuals"] += 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_arrives_is_what_the_library_did(case: Case, receiver: Receiver) -> None:
    compare(case, case.name, version(case.distribution), receiver)


@pytest.mark.parametrize("case", OLD, ids=lambda case: case.name)
def test_what_arrives_from_the_older_vector_quantize_pytorch_is_what_it_did(case: Case, receiver: Receiver) -> None:
    with older("vector_quantize_pytorch", OLD_LUCIDRAINS):
        compare(case, f"{case.name} (old)", OLD_LUCIDRAINS, receiver)
