"""Compiled models on a GPU, with CUDA graphs: what hooks tell is true at every replay, and nothing waits."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vqwatch import codebooks

sys.path.insert(0, str(Path(__file__).parent / "families"))

import standins
from training import Recorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    torch.manual_seed(3)
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_codes_and_energies_are_true_at_every_replay_of_a_cuda_graph() -> None:
    model = standins.RqVae(64, 32, 3).cuda()
    twin, watched, own = copy.deepcopy(model), Recorder(), Recorder()
    codebooks.find(model).install(watched)
    codebooks.find(twin).install(own)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for step in range(8):
        watched.wants_residuals = step % 2 == 0
        for tap in (watched, own):
            tap.assigned.clear()
            tap.residuals.clear()
        model.zero_grad(set_to_none=True)  # gradients are outputs of the graph, which the next replay overwrites
        x = torch.randn(500, 32, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        compiled(x).backward()
        twin(x).backward()
        assert [layer for layer, _ in watched.assigned] == ["0", "1", "2"]
        for (layer, codes), (_, expected) in zip(watched.assigned, own.assigned, strict=True):
            assert (codes == expected).float().mean() > 0.98, (
                f"layer {layer}, step {step}"
            )  # fused sums round otherwise
            if watched.wants_residuals:
                norms = watched.residuals[layer][1]
                left = own.residuals[layer][1].norm(dim=-1, keepdim=True)
                torch.testing.assert_close(norms.square().mean(), left.square().mean(), rtol=0.02, atol=0)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


def test_hooks_wait_for_nothing() -> None:
    stack = standins.Residual([standins.VectorQuantizerEMA(64, 32) for _ in range(3)]).cuda()
    found, tap = codebooks.find(stack), Recorder()
    found.install(tap)
    x = torch.randn(20, 50, 32, device="cuda", requires_grad=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    stack.layers[0](x)
    tensors = [layer.read() for layer in found.layers]
    torch.cuda.set_sync_debug_mode("default")
    assert [layer for layer, _ in tap.assigned] == ["0"]
    assert set(tap.residuals) == {"0"}
    assert len(tensors) == 3
