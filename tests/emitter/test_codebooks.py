"""Finding quantizers in a model and hearing what they assign, whatever is done to the model."""

from __future__ import annotations

import copy
import io
import sys
from types import FrameType
from typing import Any

import pytest
import torch
from tests.emitter.stack import Ear, Quantizer, Stack, listening
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqwatch import codebooks, hooks

# --- what is counted ---------------------------------------------------------------------------------------------


def test_every_forward_of_a_step_with_gradient_accumulation_is_heard_once() -> None:
    model, ear = Stack(Quantizer(), Quantizer()), Ear()
    listening(model, ear)
    for _ in range(3):
        model(torch.randn(2, 4))[0].sum().backward()
    assert ear.layers == ["0", "1"] * 3


def test_a_forward_in_evaluation_mode_is_not_heard() -> None:
    model, ear = Stack(Quantizer()), Ear()
    listening(model, ear)
    model.eval()
    model(torch.randn(2, 4))
    assert ear.layers == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_activation_checkpointing_repeats_in_the_backward_pass_is_not_heard_again(reentrant: bool) -> None:
    model, ear = Stack(Quantizer(), Quantizer()), Ear(wants_residuals=True)
    listening(model, ear)
    repeats: list[int] = []
    model.layers[0].register_forward_hook(lambda *_: repeats.append(1))
    checkpoint(model, torch.randn(2, 4, requires_grad=True), use_reentrant=reentrant)[0].sum().backward()
    assert len(repeats) == 2
    assert ear.layers == ["0", "1"]
    assert len(ear.left) == 2


def test_a_step_that_wants_nothing_ends_in_each_hook_with_one_call() -> None:
    """That call asks whether the model is being compiled; the rest is attribute reads."""
    model, ear = Stack(Quantizer(), Quantizer(), Quantizer()), Ear()
    listening(model, ear)
    ear.wants_codes = False
    called: list[str] = []

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_back is not None and frame.f_back.f_code.co_filename == hooks.__file__:
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        model(torch.randn(2, 4))
    finally:
        sys.setprofile(None)
    assert called == ["is_dynamo_compiling"] * 3
    assert ear.heard == []


def test_a_shared_quantizer_counts_its_layers_in_steps_that_want_nothing() -> None:
    """One without an owner is never told that a pass begins, so no call of it may go uncounted."""
    shared = Quantizer()
    model, ear = nn.ModuleList([shared, shared, shared]), Ear()
    listening(model, ear)
    for call, wanted in enumerate([False, True, True, False, False, True]):
        ear.wants_codes = wanted
        model[call % 3](torch.randn(2, 4))
    assert ear.layers == ["1", "2", "2"]


def test_hooks_are_away_while_nothing_is_wanted_and_hear_again_when_something_is() -> None:
    model, ear = Stack(Quantizer(), Quantizer()), Ear()
    found = listening(model, ear)
    for wanted in (True, False, False, True):
        ear.wants_codes = wanted
        found.listen(wanted)
        ear.heard.clear()
        model(torch.randn(2, 4))
        assert ear.layers == (["0", "1"] if wanted else [])
        assert [len(layer._forward_hooks) for layer in model.layers] == [int(wanted)] * 2
    found.remove()
    assert [len(layer._forward_hooks) for layer in model.layers] == [0, 0]


def test_hooks_that_count_the_layers_of_a_shared_quantizer_stay() -> None:
    shared = Quantizer()
    model, ear = nn.ModuleList([shared, shared, shared]), Ear()
    found = listening(model, ear)
    for call, wanted in enumerate([False, True, True, False, False, True]):
        ear.wants_codes = wanted
        found.listen(wanted)
        model[call % 3](torch.randn(2, 4))
    assert ear.layers == ["1", "2", "2"]


def test_residuals_are_not_computed_in_steps_that_do_not_want_them() -> None:
    model, ear = Stack(Quantizer()), Ear(wants_residuals=False)
    listening(model, ear)
    model(torch.randn(2, 4))
    assert ear.left == []


def test_vectors_that_a_mask_leaves_without_a_code_have_no_energy() -> None:
    layer, ear = Quantizer(), Ear(wants_residuals=True)
    listening(layer, ear)
    layer(torch.randn(2, 3, 4), mask=torch.tensor([[True, True, False], [True, False, False]]))
    _, before, after = ear.left[0]
    assert before.square().sum(-1).eq(0).tolist() == [[False, False, True], [False, True, True]]
    assert after.square().sum(-1).eq(0).tolist() == [[False, False, True], [False, True, True]]


def test_a_model_under_bfloat16_autocast_is_heard_as_it_is() -> None:
    model, ear = Stack(Quantizer(), Quantizer()), Ear(wants_residuals=True)
    listening(model, ear)
    with torch.autocast("cpu", torch.bfloat16):
        _, codes = model(torch.randn(5, 4))
    assert torch.equal(torch.stack([indices for _, indices in ear.heard], -1), codes)
    assert len(ear.left) == 2


def test_codes_do_not_keep_the_graph_alive() -> None:
    model, ear = Stack(Quantizer()), Ear(wants_residuals=True)
    listening(model, ear)
    model(torch.randn(2, 4))
    assert not any(part.requires_grad for _, *parts in ear.left for part in parts)


# --- what is found -----------------------------------------------------------------------------------------------


def test_one_quantizer_in_two_places_of_a_model_is_one_layer() -> None:
    stack = Stack(Quantizer())
    model = nn.ModuleDict({"online": stack, "alias": stack})
    found = codebooks.find(model)
    assert [layer.info.path for layer in found.layers] == ["online.layers.0"]


def test_one_quantizer_several_times_in_a_list_is_as_many_layers_in_turn() -> None:
    shared = Quantizer()
    model, ear = Stack(shared, shared, shared), Ear()
    found = listening(model, ear)
    codes = [model(torch.randn(2, 4))[1] for _ in range(2)]
    assert [layer.info.path for layer in found.layers] == ["layers.0", "layers.1", "layers.2"]
    assert ear.layers == ["0", "1", "2", "0", "1", "2"]
    assert torch.equal(torch.stack([i for _, i in ear.heard], -1), torch.cat(codes, -1))


def test_a_shared_quantizer_starts_anew_after_a_forward_that_used_fewer_layers() -> None:
    shared = Quantizer()
    model, ear = Stack(shared, shared, shared), Ear()
    listening(model, ear)
    layers, model.layers = model.layers, model.layers[:2]
    model(torch.randn(2, 4))
    model.layers = layers
    model(torch.randn(2, 4))
    assert ear.layers == ["0", "1", "0", "1", "2"]


def test_paths_are_those_of_the_model_inside_its_wrappers() -> None:
    model = torch.compile(Stack(Quantizer()))
    assert [layer.info.path for layer in codebooks.find(model).layers] == ["layers.0"]


def test_no_model_has_no_quantizers() -> None:
    found = codebooks.find(None)
    assert (found.layers, found.unknown) == ((), ())


def test_a_language_model_with_an_embedding_is_no_quantizer() -> None:
    class VQTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.attention = nn.MultiheadAttention(4, 1)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 10)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

    assert codebooks.find(nn.ModuleList([VQTransformer(), Tokens(), nn.Embedding(3, 4)])).layers == ()


def test_averages_kept_as_columns_are_turned_into_rows() -> None:
    class Quantize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("embed", torch.randn(4, 8))
            self.register_buffer("cluster_size", torch.zeros(8))
            self.register_buffer("embed_avg", torch.randn(4, 8))

    layer = Quantize()
    (found,) = codebooks.find(layer).layers
    assert (found.info.size, found.info.dim) == (8, 4)
    assert torch.equal(found.read()["codebook"][0], layer.embed.t())
    assert torch.equal(found.read()["embedding_sum"][0], layer.embed_avg.t())


def test_a_buffer_that_the_library_replaces_is_read_anew() -> None:
    layer = Quantizer()
    (found,) = codebooks.find(layer).layers
    layer.embedding = torch.full((8, 4), 3.0)
    assert found.read()["codebook"].eq(3.0).all()


def test_a_codebook_that_has_to_be_computed_is_computed_only_when_it_is_wanted() -> None:
    computed: list[Tensor] = []

    def tensors(layer: nn.Module) -> dict[str, Any]:
        def codebook() -> Tensor:
            computed.append(2 * layer.embedding)
            return computed[-1]

        return {"codebook": codebook, "cluster_size": layer.ema_cluster_size}

    adapter = codebooks.Adapter("computed", lambda module: isinstance(module, Quantizer), tensors)
    (found,) = codebooks.find(Quantizer(), [adapter]).layers
    computed.clear()
    assert list(found.read(("cluster_size",))) == ["cluster_size"]
    assert computed == []
    read = found.read()
    assert len(computed) == 1
    assert torch.equal(read["codebook"], computed[0][None])


# --- manners -----------------------------------------------------------------------------------------------------


class Encoding(nn.Module):
    """A layer without forward, as transformers' codecs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Module()
        self.codebook.register_buffer("embed", torch.randn(8, 4))
        self.codebook.register_buffer("cluster_size", torch.zeros(8))

    def encode(self, x: Tensor) -> Tensor:
        return torch.cdist(x.movedim(1, -1), self.codebook.embed).argmin(-1)

    def decode(self, indices: Tensor) -> Tensor:
        return self.codebook.embed[indices].movedim(-1, 1)


def test_removing_leaves_the_model_as_it_was() -> None:
    model = nn.ModuleList([Stack(Quantizer()), Encoding()])
    before = {path: set(module.__dict__) for path, module in model.named_modules()}
    found = listening(model, Ear())
    found.remove()
    assert {path: set(module.__dict__) for path, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_two_listeners_hear_the_same_and_leave_alone() -> None:
    layer, first, second = Encoding(), Ear(), Ear()
    one, other = listening(layer, first), listening(layer, second)
    layer.encode(torch.randn(2, 4, 5))
    one.remove()
    layer.encode(torch.randn(2, 4, 5))
    other.remove()
    layer.encode(torch.randn(2, 4, 5))
    assert (len(first.heard), len(second.heard)) == (1, 2)


@pytest.mark.parametrize("through", ["deepcopy", "pickle"])
def test_a_copy_of_a_watched_model_works_and_is_not_watched(through: str) -> None:
    class Guarded(Ear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a copy of the model copies the emitter")

        def __reduce__(self) -> Any:
            raise AssertionError("a checkpoint of the model holds the emitter")

    shared = Quantizer()
    model, ear = nn.ModuleList([Stack(shared, shared), Encoding()]), Guarded()
    listening(model, ear)
    if through == "deepcopy":
        other = copy.deepcopy(model)
    else:
        memory = io.BytesIO()
        torch.save(model, memory)
        memory.seek(0)
        other = torch.load(memory, weights_only=False)
    other[1].codebook.embed.fill_(1.0)
    other[0](torch.randn(2, 4))
    assert other[1].encode(torch.randn(2, 4, 5)).eq(0).all()
    assert ear.heard == []
    model[0](torch.randn(2, 4))
    model[1].encode(torch.randn(2, 4, 5))
    assert ear.layers == ["0", "1", "2"]
