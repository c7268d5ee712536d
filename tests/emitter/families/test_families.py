"""What vqwatch sees of every family is what the library itself says it did, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import CASES, OLD, Case
from training import Recorder, Truth, Watched, train

from vqwatch import codebooks

every_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def test_the_page_of_families_has_a_row_for_each_case_and_no_other() -> None:
    page = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == [*(case.name for case in CASES), *(f"{case.name} (old)" for case in OLD)]


@every_family
def test_every_layer_is_found_and_described(case: Case) -> None:
    model = Watched(case)
    found = codebooks.find(model)
    infos = [layer.info for layer in found.layers]
    assert [info.name for info in infos] == [str(i) for i in range(len(infos))]
    assert len(infos) == case.layers
    assert {info.kind for info in infos} == {case.kind}
    assert {(info.decay, info.threshold, info.threshold_ratio) for info in infos} == {case.settings}
    assert found.unknown == ()


@every_family
def test_codes_codebooks_averages_and_residuals_are_the_librarys_own(case: Case) -> None:
    model = Watched(case)
    found = codebooks.find(model)
    tap = Recorder()
    found.install(tap)

    def compare(_step: int, _loss: torch.Tensor, truth: Truth) -> None:
        expected = [(layer.info.name, c) for layer, c in zip(found.layers, truth.codes, strict=True) if c is not None]
        assert [name for name, _ in tap.assigned] == [name for name, _ in expected]
        for (_, seen), (_, own) in zip(tap.assigned, expected, strict=True):
            assert torch.equal(seen, own)
        for layer, own in zip(found.layers, truth.codebooks, strict=bool(truth.codebooks)):
            assert torch.equal(layer.read()["codebook"], own.reshape(-1, *own.shape[-2:]))
        for layer, (size, total) in zip(found.layers, truth.averages, strict=bool(truth.averages)):
            assert torch.equal(layer.read()["cluster_size"], size.reshape(-1, size.shape[-1]))
            assert torch.equal(layer.read()["embedding_sum"], total.reshape(-1, *total.shape[-2:]))
        compare_residuals(truth)
        tap.assigned.clear()
        tap.residuals.clear()

    def compare_residuals(truth: Truth) -> None:
        tolerance = {} if case.exact_residuals else {"rtol": 1e-5, "atol": 1e-6}
        same = (
            torch.testing.assert_close if tolerance else lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0)
        )
        names = iter([name for name, _ in tap.assigned])
        for chain in truth.inputs:
            seen = [tap.residuals[next(names)] for _ in chain]
            for (before, _), own in zip(seen, chain, strict=True):
                same(before, own, **tolerance)
            for (_, after), own in zip(seen, chain[1:], strict=False):
                same(after, own, **tolerance)

    train(model, compare)
