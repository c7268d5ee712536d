"""Faults that a training run can have, each put in for a span of steps and taken out again.

They act from outside, through hooks, buffers and optimizer settings, so that the training loop stays the one a user
would write. A fault is a context manager over a :class:`Site`: entering it breaks something, leaving it mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from faults import codebooks, network, process
from faults.site import Site, Watch, books

Fault = Callable[[Site], AbstractContextManager[None]]

CATALOGUE: Mapping[str, Fault] = {
    "collapse": codebooks.collapse,
    "slow-death": codebooks.slow_death,
    "deep-layer-unused": codebooks.deep_layer_unused,
    "nan-vector": codebooks.nan_vector,
    "ema-decay": codebooks.ema_decay,
    "ema-frozen": codebooks.ema_frozen,
    "replacement-no-op": codebooks.replacement_no_op,
    "churn": codebooks.churn,
    "re-init": codebooks.re_init,
    "rank-drift": codebooks.rank_drift,
    "nan-loss": network.nan_loss,
    "exploding-gradients": network.exploding_gradients,
    "vanishing-gradients": network.vanishing_gradients,
    "lr-x100": network.lr_x100,
    "point-embeddings": network.point_embeddings,
    "decoupled": network.decoupled,
    "scrambled": network.scrambled,
    "low-pass": network.low_pass,
    "stall": process.stall,
    "kill": process.kill,
    "silent-rank": process.silent_rank,
}


@dataclass(frozen=True)
class Span:
    """A fault's name, its first step, and the step at which it is gone (None: never)."""

    name: str
    first: int
    gone: int | None

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read ``NAME@FROM:TO``, ``NAME@FROM`` or ``NAME``; raises ValueError with what is allowed.

        >>> Span.parse("collapse@300:450")
        Span(name='collapse', first=300, gone=450)
        """
        name, _, steps = text.partition("@")
        if name not in CATALOGUE:
            raise ValueError(f"no fault is called {name!r}; there are {', '.join(CATALOGUE)}")
        first, _, gone = steps.partition(":")
        try:
            span = cls(name, int(first or 0), int(gone) if gone else None)
        except ValueError:
            raise ValueError(f"{text!r}: expected NAME@FROM:TO with steps as whole numbers") from None
        if span.first < 0 or (span.gone is not None and span.gone <= span.first):
            raise ValueError(f"{text!r}: a fault ends after the step it begins at")
        return span


class Schedule:
    """Puts faults in and takes them out by step; ``at`` is called before each step."""

    def __init__(
        self, spans: Sequence[str], model: nn.Module, optimizer: Optimizer, watch: Watch | None = None
    ) -> None:
        self._site = Site(model, optimizer, watch)
        self._spans = [Span.parse(text) for text in spans]
        self._active: dict[Span, ExitStack] = {}

    def at(self, step: int) -> None:
        """Enter the faults that begin at this step and leave those that end."""
        for span in self._spans:
            if step == span.first:
                self._active[span] = ExitStack()
                self._active[span].enter_context(CATALOGUE[span.name](self._site))
                print(f"step {step}: fault {span.name} begins", flush=True)
            elif step == span.gone and span in self._active:
                self._active.pop(span).close()
                print(f"step {step}: fault {span.name} ends", flush=True)


def summary(fault: Fault) -> str:
    """Return the first line of a fault's docstring."""
    return (fault.__doc__ or "").strip().partition("\n")[0]


__all__ = ["CATALOGUE", "Fault", "Schedule", "Site", "Span", "books", "summary"]
