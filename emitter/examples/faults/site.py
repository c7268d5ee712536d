"""Where faults happen: the model, its codebooks whatever library they come from, the optimizer, the watch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Pause(Protocol):
    """What pausing the emitter gives."""

    def resume(self) -> None:
        """Let it go on."""
        ...


class Watch(Protocol):
    """What a fault may do with the emitter: make it go quiet."""

    def pause(self) -> Pause:
        """Send nothing from now on."""
        ...


class Book:
    """One EMA codebook: its codes ``[K, D]``, their counts ``[K]`` and sums ``[K, D]``, all live views."""

    def __init__(self, module: Any, codes: str, counts: str, sums: str, threshold: str) -> None:
        self.module = module
        self._names = (codes, counts, sums)
        self._threshold = threshold

    def _buffer(self, which: int) -> Tensor:
        buffer: Tensor = getattr(self.module, self._names[which])
        return buffer if buffer.ndim == (1 if which == 1 else 2) else buffer[0]

    @property
    def codes(self) -> Tensor:
        """The codes, ``[K, D]``."""
        return self._buffer(0)

    @property
    def counts(self) -> Tensor:
        """The moving average of assignments per step, ``[K]``."""
        return self._buffer(1)

    @property
    def sums(self) -> Tensor:
        """The moving sum of assigned vectors, ``[K, D]``."""
        return self._buffer(2)

    def put(self, rows: Tensor, codes: Tensor) -> None:
        """Overwrite these rows for good: the sums go with the codes."""
        self.codes[rows] = codes
        self.sums[rows] = codes * self.counts[rows, None]

    @property
    def threshold_now(self) -> float:
        """The count below which a code is replaced."""
        value: float = getattr(self.module, self._threshold)
        return value

    @contextmanager
    def threshold(self, value: float) -> Iterator[None]:
        """Replace codes whose count falls below this; 0 switches replacement off."""
        with changed(self.module, self._threshold, value):
            yield


def books(model: nn.Module) -> list[Book]:
    """Return the EMA codebooks of a model in the order of its layers: the example's own and lucidrains'."""
    found = []
    for module in model.modules():
        if "ema_cluster_size" in module._buffers:
            found.append(Book(module, "embedding", "ema_cluster_size", "ema_w", "dead_code_threshold"))
        elif "cluster_size" in module._buffers:
            found.append(Book(module, "embed", "cluster_size", "embed_avg", "threshold_ema_dead_code"))
    return found


@dataclass
class Site:
    """What a fault can reach."""

    model: nn.Module
    optimizer: Optimizer
    watch: Watch | None = None

    @property
    def books(self) -> list[Book]:
        """The model's EMA codebooks, first layer first."""
        return books(self.model)

    def part(self, name: str) -> nn.Module:
        """Return a part of the model by its name."""
        return self.model.get_submodule(name)

    @contextmanager
    def around_every_step(self, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
        """Call ``before()`` and ``after()`` around each forward pass of the model."""
        first = self.model.register_forward_pre_hook(lambda _module, _inputs: before())
        last = self.model.register_forward_hook(lambda _module, _inputs, _output: after())
        try:
            yield
        finally:
            first.remove()
            last.remove()

    @contextmanager
    def checkpoint_restored_after(self) -> Iterator[None]:
        """Keep what there is now and load it back at the end: what people do after a fault that ruins the weights."""
        model, optimizer = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        try:
            yield
        finally:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)


@contextmanager
def changed(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute and put the old value back at the end."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)
