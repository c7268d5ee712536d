"""Families that nobody knows, adapters that are registered for them, and layers that cannot be watched."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from tests.emitter.stack import Ear, Quantizer, Stack, listening
from torch import Tensor, nn

from vqwatch import codebooks
from vqwatch.codebooks import Adapter
from vqwatch.wire import MAX_LAYERS


class StrangeQuantizer(nn.Module):
    """A quantizer that no adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        ids = torch.cdist(x, self.atoms).argmin(-1)
        return {"out": self.atoms[ids], "ids": ids}


STRANGE = Adapter(
    family="strange",
    matches=lambda module: type(module).__name__ == "StrangeQuantizer",
    tensors=lambda module: {"codebook": module.atoms},
    kind="learned",
)


def test_a_quantizer_that_nobody_knows_is_named_with_the_way_to_teach_it() -> None:
    found = codebooks.find(nn.ModuleDict({"encoder": nn.Linear(2, 2), "bottleneck": StrangeQuantizer()}))
    assert (found.layers, found.unknown) == ((), ("bottleneck",))
    assert "bottleneck" in codebooks.advice(found.unknown)
    assert "register(Adapter(" in codebooks.advice(found.unknown)


def test_known_layers_and_what_contains_them_are_not_called_unknown() -> None:
    class ResidualVQ(Stack):
        pass

    assert codebooks.find(nn.ModuleList([ResidualVQ(Quantizer()), StrangeQuantizer()])).unknown == ("1",)


def test_a_registered_adapter_teaches_a_family_and_can_be_taken_back() -> None:
    model, ear = nn.ModuleList([StrangeQuantizer()]), Ear(wants_residuals=True)
    forget = codebooks.register(STRANGE)
    try:
        found = listening(model, ear)
    finally:
        forget()
    output = model[0](torch.randn(3, 4))
    assert [(layer.info.family, layer.info.kind, layer.info.size) for layer in found.layers] == [
        ("strange", "learned", 6)
    ]
    assert torch.equal(ear.heard[0][1], output["ids"])
    assert len(ear.left) == 1
    assert codebooks.find(model).layers == ()


def test_a_family_can_be_registered_before_torch_is_loaded() -> None:
    script = (
        "import sys, vqwatch.codebooks as c; c.register(c.Adapter('mine', bool, dict)); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_an_adapter_that_fails_costs_its_layer_only(caplog: pytest.LogCaptureFixture) -> None:
    broken = Adapter(
        "broken", lambda module: isinstance(module, StrangeQuantizer), lambda module: {"codebook": module.no}
    )
    with caplog.at_level(logging.WARNING, "vqwatch"):
        found = codebooks.find(nn.ModuleList([StrangeQuantizer(), Quantizer()]), extra=[broken])
    assert [layer.info.path for layer in found.layers] == ["1"]
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(("family", "kind"), [("", "of my own"), ("f" * 129, "learned"), ("two\nlines", "learned")])
def test_a_layer_that_the_daemon_would_refuse_costs_itself_only(
    caplog: pytest.LogCaptureFixture, family: str, kind: str
) -> None:
    odd = Adapter(
        family,
        lambda module: isinstance(module, StrangeQuantizer),
        lambda _module: {"codebook": torch.zeros(4, 2)},
        kind,
    )
    with caplog.at_level(logging.WARNING, "vqwatch"):
        found = codebooks.find(nn.ModuleList([StrangeQuantizer(), Quantizer()]), extra=[odd])
    assert [layer.info.path for layer in found.layers] == ["1"]
    assert "cannot be read" in caplog.text


def test_of_more_layers_than_a_message_holds_the_first_are_watched(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vqwatch"):
        found = codebooks.find(nn.ModuleList([Quantizer() for _ in range(MAX_LAYERS + 9)]))
    assert [layer.info.name for layer in found.layers] == [str(index) for index in range(MAX_LAYERS)]
    assert found.unknown == ()
    assert "9 more are not" in caplog.text


def test_a_hook_that_fails_says_so_once_and_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(Ear):
        def codes(self, layer: str, indices: Tensor) -> None:
            raise RuntimeError("no ear")

    model = Stack(Quantizer())
    listening(model, Deaf())
    with caplog.at_level(logging.WARNING, "vqwatch"):
        model(torch.randn(2, 4))
        model(torch.randn(2, 4))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
