"""The Lightning callback under the real Trainer, on CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from receiver import Receiver, meet
from small import Autoencoder, features
from torch.utils.data import DataLoader

lightning = importlib.import_module("lightning.pytorch")

from vqwatch.integrations.lightning import VqwatchCallback  # noqa: E402  (needs lightning)


class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
    def __init__(self, broken_at: int | None = None) -> None:
        super().__init__()
        self.model = Autoencoder()
        self.broken_at = broken_at
        self.totals: list[float] = []
        self.codes: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, torch.Tensor]:
        if batch_idx == self.broken_at:
            raise ZeroDivisionError
        output = self.model(batch)
        self.totals.append(output["loss"].item())
        self.codes.append(output.pop("codes"))
        return output

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, torch.Tensor]:
        return self.model(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.125)


class Adversarial(Module):
    """Two optimizers that each take a step in every batch: Lightning counts two."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = torch.nn.Linear(6, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, torch.Tensor]:
        output = self.model(batch)
        self.codes.append(output.pop("codes"))
        losses = output["loss"], self.critic(output["reconstructed"].detach()).mean()
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {**output, "critic": losses[1]}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        rates = {self.model: 0.125, self.critic: 0.5}
        return [torch.optim.SGD(part.parameters(), lr=rate) for part, rate in rates.items()]


class Acquainted(VqwatchCallback):
    """Waits until the receiver is there, so that nothing of the first step is left out."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        assert self.watch is not None
        meet(self.watch)


def fit(module: Module, receiver: Receiver, **options: Any) -> Any:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    every = {"codebooks": 1, "energies": 4}
    callback = Acquainted(run="lit", endpoint=receiver.endpoint, budget=float("inf"), every=every)
    trainer = lightning.Trainer(**{**defaults, **quiet, **options}, callbacks=[callback])
    loader = DataLoader(features(12), batch_size=2)
    trainer.fit(module, loader, DataLoader(features(4), batch_size=2))
    return trainer


def test_every_optimizer_step_tells_its_losses_codes_and_learning_rate(receiver: Receiver) -> None:
    module = Module()
    fit(module, receiver)
    steps = receiver.of("step")
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.losses["total"] for step in steps] == pytest.approx(module.totals)
    assert set(steps[0].losses) == {"total", "recon", "vq"}
    assert set(steps[0].learning_rates.values()) == {0.125}
    for number, codes in enumerate(module.codes, 1):
        arrived = receiver.codes(number)
        np.testing.assert_array_equal(np.stack([arrived["0"][0], arrived["1"][0]], -1), codes.numpy())
    (hello,) = receiver.of("hello")
    assert [layer.path for layer in hello.layers] == ["model.quantizer.layers.0", "model.quantizer.layers.1"]
    assert receiver.of("goodbye")[0].reason == "close"


def test_the_batches_of_an_accumulation_are_one_step(receiver: Receiver) -> None:
    module = Module()
    fit(module, receiver, accumulate_grad_batches=3)
    steps = receiver.of("step")
    assert [step.step for step in steps] == [1, 2]
    assert [step.losses["total"] for step in steps] == pytest.approx(module.totals[2::3])
    assert [len(receiver.codes(step)["0"]) for step in (1, 2)] == [3, 3]


def test_two_optimizers_make_a_step_of_two_and_everything_comes_as_often(receiver: Receiver) -> None:
    module = Adversarial()
    fit(module, receiver)
    steps = receiver.of("step")
    assert [step.step for step in steps] == [2, 4, 6, 8, 10, 12]
    assert set(steps[0].losses) >= {"total", "critic"}
    assert [*steps[0].learning_rates.values()] == [0.125, 0.5]
    energies = [step.step for step in steps if step.residual_energy]
    assert energies == [2, 6, 8, 12], "at the first, how far the next is is not known: 6 makes up for 4"
    for number, codes in zip([step.step for step in steps], module.codes, strict=True):
        arrived = receiver.codes(number)
        np.testing.assert_array_equal(np.stack([arrived["0"][0], arrived["1"][0]], -1), codes.numpy())


def test_validation_is_a_pass_of_its_own_and_the_trial_pass_is_none(receiver: Receiver) -> None:
    fit(Module(), receiver)
    parts = receiver.of("evaluation")
    assert [part.phase for part in parts] == ["begin", "batch", "batch", "end"]
    assert {part.step for part in parts} == {6}


def test_a_stop_from_the_daemon_ends_the_fit(receiver: Receiver) -> None:
    receiver.stop = "VqwatchNonFiniteLoss"
    trainer = fit(Module(), receiver, max_epochs=2000)
    assert trainer.should_stop
    assert trainer.current_epoch < 2000
    assert len(receiver.of("goodbye")) == 1


def test_an_exception_in_the_training_is_the_reason_of_the_goodbye(receiver: Receiver) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(Module(broken_at=2), receiver)
    assert [goodbye.reason for goodbye in receiver.of("goodbye")] == ["ZeroDivisionError"]


def test_a_script_that_uses_pytorch_lightning_gets_a_callback_of_that() -> None:
    script = "import pytorch_lightning as pl; from vqwatch.integrations.lightning import VqwatchCallback as V; "
    checked = subprocess.run([sys.executable, "-c", script + "assert issubclass(V, pl.Callback)"], check=False)
    assert checked.returncode == 0
