"""The recipe for Accelerate, as the integrations' page gives it, with the real Accelerator on CPU."""

from __future__ import annotations

import importlib

import torch
from receiver import Receiver, meet
from small import Autoencoder, features
from torch.utils.data import DataLoader

import vqwatch
from vqwatch.integrations import stop_together

accelerate = importlib.import_module("accelerate")


def train(receiver: Receiver, epochs: int = 1, accumulation: int = 1) -> int:
    """Run the recipe; return the number of steps taken."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = Autoencoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(features(12), batch_size=2))
    watch = vqwatch.attach(
        model, optimizer, run="accelerate", endpoint=receiver.endpoint, rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )  # fmt: skip
    meet(watch)
    step, stopped = 0, False
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                output = model(batch)
                accelerator.backward(output["loss"])
                optimizer.step()
                if accelerator.sync_gradients:
                    step += 1
                    watch.step(step, losses={"total": output["loss"]})
                optimizer.zero_grad()
            if accelerator.sync_gradients and stop_together(watch, step):
                stopped = True
                break
        if stopped:
            break
    watch.close()
    return step


def test_every_step_arrives(receiver: Receiver) -> None:
    assert train(receiver) == 6
    assert [step.step for step in receiver.of("step")] == [1, 2, 3, 4, 5, 6]
    assert set(receiver.codes(6)) == {"0", "1"}


def test_accumulated_batches_are_one_step(receiver: Receiver) -> None:
    assert train(receiver, accumulation=3) == 2
    assert [len(receiver.codes(step)["0"]) for step in (1, 2)] == [3, 3]


def test_a_stop_from_the_daemon_ends_the_loop(receiver: Receiver) -> None:
    receiver.stop = "VqwatchNonFiniteLoss"
    assert train(receiver, epochs=2000) < 12_000
