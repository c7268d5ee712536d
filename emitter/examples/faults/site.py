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


@dataclass(frozen=True)
class Library:
    """What one implementation of an EMA codebook calls its parts.

    ``codes`` is empty where there are none, only sums and counts, whose quotient they are. ``replace`` is the method
    that replaces dead codes, ``begun`` the flag that says that the codebook was initialised. A ``relative`` threshold
    counts in fair shares, any other in assignments per step.
    """

    codes: str
    counts: str
    sums: str
    threshold: str
    replace: str
    begun: str
    relative: bool = False


OWN = Library("embedding", "ema_cluster_size", "ema_w", "dead_code_threshold", "replace_dead_codes", "num_updates")
LUCIDRAINS = Library("embed", "cluster_size", "embed_avg", "threshold_ema_dead_code", "expire_codes_", "initted")
MOSHI = Library(
    "", "cluster_usage", "embedding_sum", "threshold_usage_ratio", "_replace_expired_codes", "_initialized", True
)


class Book:
    """One EMA codebook: its codes ``[K, D]``, their counts ``[K]`` and sums ``[K, D]``; counts and sums are live."""

    def __init__(self, module: Any, library: Library) -> None:
        self.module = module
        self.library = library

    def _buffer(self, name: str, dimensions: int) -> Tensor:
        buffer: Tensor = getattr(self.module, name)
        return buffer if buffer.ndim == dimensions else buffer[0]

    @property
    def codes(self) -> Tensor:
        """The codes, ``[K, D]``."""
        if self.library.codes:
            return self._buffer(self.library.codes, 2)
        return self.sums / self.counts.clamp(min=self.module.epsilon)[:, None]

    @property
    def counts(self) -> Tensor:
        """The moving average of assignments per step, ``[K]``."""
        return self._buffer(self.library.counts, 1)

    @property
    def sums(self) -> Tensor:
        """The moving sum of assigned vectors, ``[K, D]``."""
        return self._buffer(self.library.sums, 2)

    def put(self, rows: Tensor, codes: Tensor) -> None:
        """Overwrite these rows for good: the sums go with the codes."""
        if self.library.codes:
            self.codes[rows] = codes
        self.sums[rows] = codes * self.counts[rows, None]

    def begin_again(self) -> None:
        """Forget that the codebook was initialised, as a flag outside the state dict does."""
        getattr(self.module, self.library.begun).zero_()
        if hasattr(self.module, "_cached_initialized"):
            self.module._cached_initialized = False

    @contextmanager
    def threshold(self, shares: float) -> Iterator[None]:
        """Replace codes whose count falls below so many fair shares; 0 switches replacement off."""
        value = shares if self.library.relative else shares * float(self.counts.mean())
        with changed(self.module, self.library.threshold, value):
            yield

    @contextmanager
    def replacing(self, replace: Callable[..., None]) -> Iterator[None]:
        """Replace dead codes in this way."""
        with changed(self.module, self.library.replace, replace):
            yield


def books(model: nn.Module) -> list[Book]:
    """Return the EMA codebooks of a model in the order of its layers: the example's own, lucidrains' and moshi's."""
    return [
        Book(module, library)
        for module in model.modules()
        for library in (OWN, LUCIDRAINS, MOSHI)
        if {library.counts, library.sums} <= module._buffers.keys()
    ]


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
