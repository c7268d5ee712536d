"""A DataLoader whose workers fork from a watched process: training goes on, and nothing is told twice."""

from __future__ import annotations

import numpy as np
import torch
from receiver import Receiver, meet
from small import Autoencoder, features
from torch.utils.data import DataLoader, Dataset

import vqwatch


class Looking(Dataset[torch.Tensor]):
    """A data set that runs the watched model in the worker, as one that encodes its samples does."""

    def __init__(self, model: Autoencoder, watch: vqwatch.Emitter) -> None:
        self.model, self.watch, self.samples = model, watch, features(8)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            self.model(self.samples[index][None])
        self.watch.step(1000 + index, losses={"total": 1.0})
        return self.samples[index]


def test_forked_workers_neither_disturb_nor_tell(receiver: Receiver) -> None:
    torch.set_num_threads(1)
    model = Autoencoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = vqwatch.attach(model, optimizer, run="forks", endpoint=receiver.endpoint, budget=float("inf"))
    meet(watch)
    loader = DataLoader(Looking(model, watch), batch_size=2, num_workers=2, multiprocessing_context="fork")
    own = []
    for step, batch in enumerate(loader, 1):
        output = model(batch)
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        watch.step(step, losses={"total": output["loss"]})
        own.append(output["codes"])
    assert watch.flush(10)
    watch.close(10)
    assert [step.step for step in receiver.of("step")] == [1, 2, 3, 4]
    for step, codes in enumerate(own, 1):
        (first,) = receiver.codes(step)["0"]
        np.testing.assert_array_equal(first, codes[..., 0].numpy())
