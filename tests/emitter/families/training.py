"""Trains a case for some steps under the eyes of vqwatch, and keeps what the library did beside what was seen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case, laid_out
from torch import Tensor, nn

BATCH, FRAMES, FEATURES = 2, 12, 6


class Watched(nn.Module):
    """An encoder, the quantizer of a case and a decoder."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder = nn.Linear(FEATURES, 8)
        self.quantizer = case.build()
        self.decoder = nn.Linear(8, FEATURES)

    def forward(self, features: Tensor) -> tuple[Tensor, Any]:
        latents = laid_out(self.encoder(features), self.case.layout)
        quantized, cost, codes = self.case.run(self.quantizer, latents)
        aligned = latents - latents.detach() + quantized  # every case has a gradient for the encoder
        return aligned.square().mean() + cost.sum(), codes


@dataclass
class Recorder:
    """A tap that keeps copies."""

    wants_residuals: bool = True
    wants_codes: bool = True
    assigned: list[tuple[str, Tensor]] = field(default_factory=list)
    residuals: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def codes(self, layer: str, indices: Tensor) -> None:
        self.assigned.append((layer, indices.clone()))

    def residual(self, layer: str, before: Tensor, after: Tensor) -> None:
        self.residuals[layer] = (before.clone(), after.clone())


@dataclass
class Truth:
    """What the library did in one step, by its own account."""

    codes: list[Tensor | None]
    codebooks: list[Tensor]
    averages: list[tuple[Tensor, Tensor]]
    inputs: list[list[Tensor]]  # for each chain, what each layer in turn was given, channels last


def train(model: Watched, after_step: Callable[[int, Tensor, Truth], None]) -> None:
    """Train for the case's steps; tell ``after_step`` the step's number, its loss and the library's own account."""
    case, quantizer = model.case, model.quantizer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for step in range(1, case.steps + 1):
        features = torch.randn(BATCH, FRAMES, FEATURES)
        with ExitStack() as hooks:
            chains = case.chains(quantizer) if case.chains else []
            inputs = [_record(hooks, chain) for chain in chains]
            loss, codes = model(features)
            by_hand = _inputs_by_hand(model, features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            averages = case.averages(quantizer) if case.averages else []
            truth = Truth(
                list(codes),
                [book.detach().clone() for book in case.codebooks(quantizer)],
                [(size.detach().clone(), total.detach().clone()) for size, total in averages],
                [[_scaled(case, quantizer, i, v) for i, v in enumerate(chain)] for chain in [*inputs, *by_hand]],
            )
        after_step(step, loss, truth)


def _record(hooks: ExitStack, chain: Any) -> list[Tensor]:
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: Any) -> None:
        seen.append(args[0].detach().clone())

    for module in {id(module): module for module in chain}.values():
        handle = module.register_forward_pre_hook(keep)
        hooks.callback(handle.remove)
    return seen


def _inputs_by_hand(model: Watched, features: Tensor) -> list[list[Tensor]]:
    if model.case.inputs is None:
        return []
    with torch.no_grad():
        return [
            list(c) for c in model.case.inputs(model.quantizer, laid_out(model.encoder(features), model.case.layout))
        ]


def _scaled(case: Case, quantizer: nn.Module, index: int, value: Tensor) -> Tensor:
    if case.layout in ("first", "image"):
        value = value.movedim(1, -1)
    return value * case.scales(quantizer)[index] if case.scales else value
