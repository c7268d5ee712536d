"""The example's faults: each breaks something, and taking it out leaves nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import documents
import pytest
import torch
import train_documents
from faults import CATALOGUE, Schedule, Site, Span, summary
from model import DocumentRQVAE
from tests.emitter.families.libraries import skeleton

from vqwatch_daemon.demo_story import FAULTS as DEMO_FAULTS

ENDS_THE_PROCESS_OR_SLEEPS = {"kill", "stall"}
ACTS_ON_OTHERS = {"silent-rank", "rank-drift"}
SETTINGS = (
    "decay",
    "dead_code_threshold",
    "threshold_ema_dead_code",
    "threshold_usage_ratio",
    "replaced_per_step",
    "synchronized",
)
IN_PROCESS = sorted(set(CATALOGUE) - ENDS_THE_PROCESS_OR_SLEEPS)


class Quiet:
    """A watch that counts how often it was told to pause."""

    def __init__(self) -> None:
        self.pauses = 0

    def pause(self) -> Quiet:
        self.pauses += 1
        return self

    def resume(self) -> None:
        self.pauses -= 1


def trained(quantizer: str = "ema", steps: int = 3) -> tuple[DocumentRQVAE, torch.optim.Optimizer, list[Any]]:
    if quantizer == "moshi":
        skeleton("moshi")
    torch.manual_seed(0)
    model = train_documents.build_model(quantizer, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train, _ = documents.load()
    stream = documents.batches(train, 8, 32, seed=0)
    batches = [next(stream) for _ in range(4)]
    for batch in batches[:steps]:
        step(model, optimizer, batch)
    return model, optimizer, batches


def step(model: DocumentRQVAE, optimizer: torch.optim.Optimizer, batch: Any) -> dict[str, float]:
    output = model(*batch)
    optimizer.zero_grad()
    output.losses["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if norm.isfinite():
        optimizer.step()
    return {"norm": float(norm), **{name: float(loss.detach()) for name, loss in output.losses.items()}}


def settings(model: DocumentRQVAE, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    """Everything that a fault may bend: hooks, attributes of codebooks, learning rates."""
    found: dict[str, Any] = {"lr": [group["lr"] for group in optimizer.param_groups]}
    for name, module in model.named_modules():
        found[name] = (len(module._forward_hooks), len(module._forward_pre_hooks))
        for key in SETTINGS:
            if hasattr(module, key):
                found[f"{name}.{key}"] = getattr(module, key)
        for key in ("replace_dead_codes", "expire_codes_", "_replace_expired_codes"):
            if hasattr(module, key):
                found[f"{name}.{key}"] = getattr(module, key).__func__
    for name, parameter in model.named_parameters():
        found[name] = len(parameter._backward_hooks or ())
    return found


@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.parametrize("quantizer", ["ema", "lucidrains", "moshi"])
def test_a_fault_that_is_over_leaves_every_setting_as_it_was(name: str, quantizer: str) -> None:
    model, optimizer, batches = trained(quantizer)
    before = settings(model, optimizer)
    with CATALOGUE[name](Site(model, optimizer, Quiet())):
        step(model, optimizer, batches[3])
    assert settings(model, optimizer) == before


@pytest.mark.parametrize("name", sorted(set(IN_PROCESS) - ACTS_ON_OTHERS))
def test_a_fault_makes_the_next_steps_differ(name: str) -> None:
    model, optimizer, batches = trained()
    with CATALOGUE[name](Site(model, optimizer)):
        torch.manual_seed(1)
        broken = [step(model, optimizer, batch) for batch in batches]
    model, optimizer, batches = trained()
    torch.manual_seed(1)
    healthy = [step(model, optimizer, batch) for batch in batches]
    assert str(broken) != str(healthy)


@pytest.mark.parametrize("name", ["nan-vector", "lr-x100"])
def test_a_fault_that_ruins_the_weights_ends_with_the_checkpoint_from_before(name: str) -> None:
    model, optimizer, batches = trained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with CATALOGUE[name](Site(model, optimizer)):
        for batch in batches:
            step(model, optimizer, batch)
        assert not all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_nan_vector_reaches_every_code_of_every_layer() -> None:
    model, optimizer, batches = trained()
    with CATALOGUE["nan-vector"](Site(model, optimizer)):
        step(model, optimizer, batches[0])
        codes = model(*batches[1]).codes
        assert all(book.codes.isnan().all() for book in Site(model, optimizer).books)
    assert (codes[batches[1][1]] == 0).all()


@pytest.mark.parametrize("quantizer", ["ema", "lucidrains", "moshi"])
def test_collapse_maps_everything_to_one_code_in_each_layer(quantizer: str) -> None:
    model, optimizer, batches = trained(quantizer)
    for batch in batches * 2:  # moshi fills one layer after the other, a step each
        step(model, optimizer, batch)
    with CATALOGUE["collapse"](Site(model, optimizer)):
        step(model, optimizer, batches[0])
        codes = model(*batches[1]).codes[batches[1][1]]
    assert [len(layer.unique()) for layer in codes.T] == [1] * 8


def test_the_silent_rank_speaks_again_at_the_end() -> None:
    model, optimizer, _ = trained(steps=0)
    watch = Quiet()
    with CATALOGUE["silent-rank"](Site(model, optimizer, watch)):
        assert watch.pauses == 1
    assert watch.pauses == 0


def test_the_schedule_puts_a_fault_in_and_takes_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer, batches = trained()
    schedule = Schedule(["nan-loss@1:3"], model, optimizer, None)
    losses = []
    for number in range(4):
        schedule.at(number)
        losses.append(step(model, optimizer, batches[number])["total"])
    assert [loss == loss for loss in losses] == [True, False, False, True]
    assert capsys.readouterr().out.splitlines() == ["step 1: fault nan-loss begins", "step 3: fault nan-loss ends"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colapse@3", "no fault is called 'colapse'; there are collapse"),
        ("collapse@x", "steps as whole numbers"),
        ("collapse@5:5", "ends after the step it begins at"),
        ("collapse@-2", "ends after the step it begins at"),
    ],
)
def test_a_span_that_cannot_be_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Span.parse(text)


def test_every_fault_says_what_it_is_in_one_line() -> None:
    assert all(0 < len(summary(fault)) <= 120 for fault in CATALOGUE.values())


def test_the_demo_plays_only_faults_that_there_are() -> None:
    assert set(DEMO_FAULTS) <= set(CATALOGUE)
