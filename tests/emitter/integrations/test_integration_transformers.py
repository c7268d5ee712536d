"""The callback under Hugging Face's real Trainer, on CPU."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from receiver import Receiver, meet
from small import Autoencoder, features

transformers = importlib.import_module("transformers")
importlib.import_module("accelerate")

from vqwatch.integrations.transformers import VqwatchCallback  # noqa: E402  (needs transformers)


class Told(Autoencoder):
    """Keeps what it returned, for comparison."""

    def __init__(self, nan_at: int | None = None) -> None:
        super().__init__()
        self.nan_at = nan_at
        self.totals: list[float] = []
        self.assigned: list[torch.Tensor] = []

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        output = super().forward(features)
        if len(self.totals) == self.nan_at:
            output["loss"] = output["loss"] * math.nan
        self.totals.append(output["loss"].item())
        self.assigned.append(output["codes"])
        return output


class Acquainted(VqwatchCallback):
    """Waits until the receiver is there, so that nothing of the first step is left out."""

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        super().on_train_begin(*arguments, **named)
        assert self.watch is not None
        meet(self.watch)


def train(model: torch.nn.Module, receiver: Receiver, folder: Path, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1000,
        per_device_train_batch_size=2, **{"num_train_epochs": 1, **options},
    )  # fmt: skip
    callback = Acquainted(run="hf", endpoint=receiver.endpoint, budget=float("inf"), every={"gradients": 1})
    data = [{"features": sample} for sample in features(12)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    return trainer


def test_every_step_tells_its_losses_codes_gradients_and_learning_rate(receiver: Receiver, tmp_path: Path) -> None:
    model = Told()
    train(model, receiver, tmp_path)
    steps = receiver.of("step")
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.losses["total"] for step in steps] == pytest.approx(model.totals)
    assert set(steps[0].losses) == {"total", "recon", "vq"}
    assert steps[0].learning_rates
    assert steps[0].gradient_norm is not None
    for number, codes in enumerate(model.assigned, 1):
        arrived = receiver.codes(number)
        np.testing.assert_array_equal(np.stack([arrived["0"][0], arrived["1"][0]], -1), codes.numpy())
    assert len(receiver.of("goodbye")) == 1
    assert not model._forward_hooks


def test_a_loss_that_the_trainer_would_filter_from_its_log_is_told(receiver: Receiver, tmp_path: Path) -> None:
    train(Told(nan_at=3), receiver, tmp_path)
    finite = [math.isfinite(step.losses["total"]) for step in receiver.of("step")]
    assert finite == [True, True, True, False, *finite[4:]]


def test_the_batches_of_an_accumulation_are_one_step(receiver: Receiver, tmp_path: Path) -> None:
    model = Told()
    train(model, receiver, tmp_path, gradient_accumulation_steps=3)
    assert [step.losses["total"] for step in receiver.of("step")] == pytest.approx(model.totals[2::3])


def test_a_stop_from_the_daemon_ends_the_training(receiver: Receiver, tmp_path: Path) -> None:
    receiver.stop = "VqwatchNonFiniteLoss"
    trainer = train(Told(), receiver, tmp_path, num_train_epochs=2000)
    assert trainer.state.global_step < 12_000
    assert len(receiver.of("goodbye")) == 1
