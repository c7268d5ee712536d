"""One evaluation: a model over all batches, into a corpus and, if wanted, to a daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqwatch_daemon.evaluate.forward import Forward, ForwardError, Sample, run
from vqwatch_daemon.evaluate.pushing import Push
from vqwatch_daemon.evaluate.quantizers import sizes
from vqwatch_daemon.sections.corpus import Corpus, Spread

if TYPE_CHECKING:
    from torch import nn


class NamedNothing(ValueError):
    """A ``module:name`` that leads nowhere; the message says why."""


def named(text: str) -> Any:
    """Return what ``module:name`` names; modules are looked for in the working directory too."""
    module, separator, name = text.partition(":")
    if not separator or not module or not name:
        raise NamedNothing(f"{text!r} is not MODULE:NAME")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NamedNothing(f"{text}: {error}") from error
    return found


def batches(source: Any) -> Iterable[Any]:
    """Return the batches of one pass: those of an iterable, or of what a function returns when called."""
    return source() if callable(source) and not hasattr(source, "__iter__") else source  # type: ignore[no-any-return]


@dataclass(slots=True)
class Measured:
    """What one evaluation found; ``losses`` are means over samples, by name."""

    corpus: Corpus
    samples: int = 0
    losses: dict[str, float] = field(default_factory=dict)


Progress = Callable[[int, int | None], None]


def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    device: str = "cpu",
    adapter: Forward | None = None,
    codebook_size: int | None = None,
    progress: Progress = lambda _done, _total: None,
    push: Callable[[tuple[int, ...]], Push] | None = None,
) -> Measured:
    """Run a model in eval mode over all batches and return what they add up to.

    ``progress`` is told how many batches are done of how many, None when that is unknown. ``push`` makes the way to a
    daemon, once the codebooks' sizes are known. Raises ForwardError, CodebooksUnknown and PushError.
    """
    model.eval()
    total = len(data) if isinstance(data, Sized) else None
    found: Measured | None = None
    losses: dict[str, Spread] = {}
    with ExitStack() as stack:
        way: Push | None = None
        for number, batch in enumerate(data, 1):
            layers = None if found is None or not len(found.corpus.sizes) else len(found.corpus.sizes)
            sample = run(model, batch, device, adapter, layers)
            if found is None:
                stack_sizes = () if sample.codes is None else sizes(model, len(sample.codes), codebook_size)
                found = Measured(Corpus(stack_sizes))
                way = None if push is None else stack.enter_context(push(stack_sizes))
            _take(found, sample, losses)
            if way is not None:
                way.add(sample)
            progress(number, total)
    if found is None:
        raise ForwardError("the data has no batches")
    found.losses = {name: spread.mean for name, spread in losses.items()}
    return found


def _take(found: Measured, sample: Sample, losses: dict[str, Spread]) -> None:
    import numpy as np

    found.samples += len(sample.original)
    found.corpus.compare(sample.original, sample.reconstructed, sample.mask)
    if sample.codes is not None:
        found.corpus.assign(range(len(sample.codes)), sample.codes, sample.mask)
    for name, value in sample.losses.items():
        losses.setdefault(name, Spread()).add(np.full(len(sample.original), value))
    found.corpus.note({f"loss_{name}": value for name, value in sample.losses.items()})
