"""Watching a compiled model: no graph break, no recompilation, and the same codes as without compilation."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from vqwatch import codebooks

sys.path.insert(0, str(Path(__file__).parent / "families"))

import standins
from training import Recorder


class Model(nn.Module):
    """An encoder, three layers of the proposal's quantizer and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.quantizer = standins.Residual([standins.VectorQuantizerEMA(16, 8) for _ in range(3)])
        self.decoder = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized, loss, codes = self.quantizer(self.encoder(x))
        return (self.decoder(quantized) - x).square().mean() + loss, codes


class Checkpointed(Model):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return checkpoint(super().forward, x, use_reentrant=False)


class Keeper(Recorder):
    """A tap that keeps what it is given until the end of the step, as the emitter does."""

    def codes(self, layer: str, indices: torch.Tensor) -> None:
        self.assigned.append((layer, indices))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()
    torch.manual_seed(3)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(wants_residuals=False)


def test_a_watched_model_compiles_into_one_graph_once_whatever_is_sampled(recorder: Recorder) -> None:
    model = Model()
    found = codebooks.find(model)
    found.install(recorder)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(6):
        recorder.wants_residuals, recorder.wants_codes = step % 2 == 1, step % 3 != 2
        found.listen(recorder.wants_residuals or recorder.wants_codes)
        recorder.assigned.clear()
        recorder.residuals.clear()
        loss, codes = compiled(torch.randn(4, 5, 6))
        loss.backward()
        assert [layer for layer, _ in recorder.assigned] == (["0", "1", "2"] if recorder.wants_codes else [])
        if recorder.wants_codes:
            assert torch.equal(torch.stack([indices for _, indices in recorder.assigned], -1), codes)
        assert set(recorder.residuals) == ({"0", "1", "2"} if recorder.wants_residuals else set())
    assert counter.frame_count == 1


def test_a_model_compiled_again_while_nothing_is_wanted_tells_what_is_wanted_later(recorder: Recorder) -> None:
    model = Model()
    found = codebooks.find(model)
    found.install(recorder)
    compiled = torch.compile(model)
    for size, wanted in ((4, True), (4, False), (7, False), (7, True)):
        recorder.wants_codes = wanted
        found.listen(wanted)
        recorder.assigned.clear()
        compiled(torch.randn(size, 5, 6))[0].backward()
        assert [layer for layer, _ in recorder.assigned] == (["0", "1", "2"] if wanted else [])


def test_a_model_compiled_while_nothing_is_wanted_is_noticed_and_heard_when_it_is_compiled_again(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    found = codebooks.find(model)
    found.install(recorder)

    def heard(run: nn.Module, wanted: bool) -> int:
        recorder.wants_codes = wanted
        found.listen(wanted)
        recorder.assigned.clear()
        run(torch.randn(4, 5, 6))
        return len(recorder.assigned)

    assert [heard(model, True), heard(model, False)] == [3, 0]
    compiled = torch.compile(model)
    assert [heard(compiled, wanted) for wanted in (False, True, False, True, False)] == [0] * 5
    said = [record.message for record in caplog.records if record.name == "vqwatch"]
    assert len(said) == 1
    assert "torch.compiler.reset()" in said[0]
    torch.compiler.reset()
    assert [heard(compiled, wanted) for wanted in (False, True)] == [0, 3]


def test_a_layer_that_is_frozen_for_a_while_is_no_cause_for_a_warning(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.utils.counters.clear()
    model = Model()
    found = codebooks.find(model)
    found.install(recorder)
    for training in (True, False, True):
        model.quantizer.train(training)
        found.listen(True)
        recorder.assigned.clear()
        model(torch.randn(4, 5, 6))
        found.listen(False)
        assert len(recorder.assigned) == (3 if training else 0)
    assert caplog.records == []


def test_a_model_compiled_without_us_has_as_many_graphs() -> None:
    assert torch._dynamo.explain(Model())(torch.randn(4, 5, 6)).graph_break_count == 0


def test_a_compiled_region_tells_the_same_codes_and_energies_as_norms(recorder: Recorder) -> None:
    model, eager = standins.RqVae(16, 8, 3), Recorder()
    twin = copy.deepcopy(model)
    recorder.wants_residuals = True
    codebooks.find(model).install(recorder)
    codebooks.find(twin).install(eager)
    x = torch.randn(20, 8)
    torch.compile(model)(x)
    twin(x)
    for (layer, codes), (_, own) in zip(recorder.assigned, eager.assigned, strict=True):
        assert torch.equal(codes, own)
        for norms, vectors in zip(recorder.residuals[layer], eager.residuals[layer], strict=True):
            assert norms.shape == (20, 1)
            torch.testing.assert_close(norms[:, 0], vectors.norm(dim=-1))


def test_being_watched_changes_nothing_that_a_compiled_model_computes(recorder: Recorder) -> None:
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    codebooks.find(model).install(recorder)
    x = torch.randn(4, 5, 6)
    results = [torch.compile(each, backend="aot_eager")(x) for each in (model, twin)]
    for ours, own in zip(*results, strict=True):
        assert torch.equal(ours, own)
    for (name, ours), own in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, own), name


def test_checkpointing_inside_a_compiled_model_is_heard_once(recorder: Recorder) -> None:
    model = Checkpointed()
    codebooks.find(model).install(recorder)
    compiled = torch.compile(model)
    compiled(torch.randn(4, 5, 6, requires_grad=True))[0].backward()
    assert [layer for layer, _ in recorder.assigned] == ["0", "1", "2"]


def test_a_compiled_model_that_checkpointing_calls_again_is_heard_once(recorder: Recorder) -> None:
    model = Model()
    codebooks.find(model).install(recorder)
    compiled = torch.compile(model, backend="aot_eager")
    checkpoint(compiled, torch.randn(4, 5, 6, requires_grad=True), use_reentrant=False)[0].backward()
    assert [layer for layer, _ in recorder.assigned] == ["0", "1", "2"]


class Indexing(nn.Module):
    """Goes on calculating with the codes, so that the compiler can put the results where the codes were."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = standins.Quantize(64, 64)
        self.head = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized, ids, _ = self.layer(x, 1.0)
        following = self.head(self.head(quantized))[:, 0]
        return ids * 64 + following.mul(100).long()


def test_codes_kept_until_the_step_are_not_overwritten_by_the_compiled_code() -> None:
    model, keeper, eager = Indexing(), Keeper(wants_residuals=False), Recorder()
    twin = copy.deepcopy(model)
    codebooks.find(model).install(keeper)
    codebooks.find(twin).install(eager)
    x = torch.randn(400, 64)
    with torch.no_grad():
        torch.compile(model)(x)
        twin(x)
    assert torch.equal(keeper.assigned[0][1], eager.assigned[0][1])


def test_gradient_accumulation_in_a_compiled_model_adds_up_without_recompilation(recorder: Recorder) -> None:
    model = standins.RqVae(16, 8, 3)
    codebooks.find(model).install(recorder)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(torch.randn(10, 8)).backward()
    assert [layer for layer, _ in recorder.assigned] == ["0", "1", "2"] * 3
    assert counter.frame_count == 1


def test_a_quantizer_shared_by_all_layers_is_told_apart_in_a_compiled_model(recorder: Recorder) -> None:
    model = standins.RQBottleneck(16, 8, 3, shared_codebook=True)
    codebooks.find(model).install(recorder)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    for _ in range(2):
        recorder.assigned.clear()
        _, _, codes = compiled(torch.randn(2, 3, 2, 8))
    assert [layer for layer, _ in recorder.assigned] == ["0", "1", "2"]
    assert torch.equal(torch.stack([indices for _, indices in recorder.assigned], -1), codes)


def test_a_layer_without_forward_is_heard_in_a_compiled_model(recorder: Recorder) -> None:
    class Encoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codebook = nn.Module()
            self.codebook.register_buffer("embed", torch.randn(8, 4))
            self.codebook.register_buffer("cluster_size", torch.zeros(8))

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x.movedim(1, -1), self.codebook.embed).argmin(-1)

        def decode(self, indices: torch.Tensor) -> torch.Tensor:
            return self.codebook.embed[indices].movedim(-1, 1)

    class Codec(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Encoding()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer.encode(x)

    model = Codec()
    codebooks.find(model).install(recorder)
    codes = torch.compile(model, backend="aot_eager")(torch.randn(2, 4, 5))
    ((layer, heard),) = recorder.assigned
    assert layer == "0"
    assert torch.equal(heard, codes)


def test_after_removal_a_compiled_model_says_nothing(recorder: Recorder) -> None:
    model = Model()
    found = codebooks.find(model)
    found.install(recorder)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(torch.randn(4, 5, 6))
    found.remove()
    recorder.assigned.clear()
    compiled(torch.randn(4, 5, 6))
    assert recorder.assigned == []
