"""A training whose loss is NaN from a step on, in one of three loops; prints the step at which it ended."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import vqwatch

sys.path.insert(0, str(Path(__file__).parents[1] / "emitter" / "families"))

from small import Autoencoder, features  # needs the path above

MOST_STEPS = 30_000
NAN_FROM = 30


class Breaking(Autoencoder):
    """Its loss is NaN from its 31st batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        output = super().forward(features)
        self.batches += 1
        if self.batches > NAN_FROM:
            output["loss"] = output["loss"] * math.nan
        return output


def plain(endpoint: str) -> int:
    """Train in a loop of one's own."""
    model = Breaking()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    watch = vqwatch.attach(model, optimizer, run="plain", endpoint=endpoint)
    step = 0
    for step in range(1, MOST_STEPS + 1):
        output = model(features(2))
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        watch.step(step, losses={"total": output["loss"]})
        if watch.stop_requested:
            break
    watch.close()
    return step


def lightning(endpoint: str) -> int:
    """Train under Lightning's Trainer, with the callback."""
    library = importlib.import_module("lightning.pytorch")
    callback = importlib.import_module("vqwatch.integrations.lightning").VqwatchCallback

    class Module(library.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Breaking()

        def training_step(self, batch: torch.Tensor, _index: int) -> Any:
            return self.model(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.125)

    trainer = library.Trainer(
        max_steps=MOST_STEPS, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback(run="lightning", endpoint=endpoint)],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(features(64), batch_size=2))
    return int(trainer.global_step)


def transformers(endpoint: str) -> int:
    """Train under the Hugging Face Trainer, with the callback."""
    library = importlib.import_module("transformers")
    callback = importlib.import_module("vqwatch.integrations.transformers").VqwatchCallback
    with tempfile.TemporaryDirectory() as folder:
        arguments = library.TrainingArguments(
            folder, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10**9,
            per_device_train_batch_size=2, max_steps=MOST_STEPS,
        )  # fmt: skip
        data = [{"features": sample} for sample in features(64)]
        trainer = library.Trainer(
            Breaking(), arguments, train_dataset=data, callbacks=[callback(run="transformers", endpoint=endpoint)]
        )
        trainer.train()
        return int(trainer.state.global_step)


LOOPS = {"plain": plain, "lightning": lightning, "transformers": transformers}

if __name__ == "__main__":
    torch.manual_seed(0)
    ended = LOOPS[sys.argv[1]](sys.argv[2])
    print(f"ended at step {ended}")
