"""Stand-ins for the monitoring proposal's monitors, to move a training loop over one line at a time.

    from vqwatch.compat import CodebookMonitor, EMAMonitor, ReconstructionMonitor, TrainingMonitor

replaces the classes that a training script had of its own; nothing else has to change. The constructors and methods
are the proposal's. They compute nothing and wait for nothing: what they are given goes to an emitter, and the daemon
computes what they used to. So the dictionaries that they return are empty, but for the learning rate.

The proposal's monitors know nothing of each other, and most of them not even the step. Here they share one emitter, and
a step is sent when all those that took part in the one before have been called; the first step is sent when the second
begins. ``log_step`` gives the steps their numbers, without it they are counted from 0. When the loop has moved over,
``vqwatch.attach`` and ``watch.step`` do the same in two lines.

Every monitor takes ``watch``, an emitter of your own, and else shares one that :func:`vqwatch.attach` makes.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .attaching import attach
from .emitter import Emitter

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CodebookMonitor", "EMAMonitor", "ReconstructionMonitor", "TrainingMonitor", "flush"]

_log = logging.getLogger("vqwatch")

CODEBOOK: Final = "codebook"
EMA: Final = "ema"
RECONSTRUCTION: Final = "reconstruction"
TRAINING: Final = "training"


class _Notebook:
    """What the monitors of one emitter were told since the last step was sent."""

    def __init__(self, watch: Emitter | None) -> None:
        self._watch = watch
        self._noted: dict[str, dict[str, Any]] = {}
        self._members: set[str] = set()
        self._expected: frozenset[str] = frozenset()
        self._opens = ""  # the monitor that is called first in a step
        self._step = -1
        self._model: Any = None
        self._optimizer: Any = None
        self._sizes: tuple[int, ...] = ()
        self._failed = False

    def join(self, who: str) -> None:
        """Learn that there is a monitor of this kind."""
        self._members.add(who)

    def describe(self, *, model: Any = None, optimizer: Any = None, sizes: tuple[int, ...] = ()) -> None:
        """Learn what :func:`vqwatch.attach` needs; the whole model is worth more than its quantizers."""
        self._model = self._model if model is None else model
        self._optimizer = self._optimizer if optimizer is None else optimizer
        self._sizes = self._sizes or sizes

    def note(self, who: str, **told: Any) -> None:
        """Take what one monitor was told; send the step when it is whole. Never raises."""
        try:
            if who == self._opens != RECONSTRUCTION:
                self._noted.pop(RECONSTRUCTION, None)  # from a validation loop between two steps
            if who in self._noted and not self._again(who):
                return
            self._noted[who] = told
            if self._expected and self._expected <= self._noted.keys():
                self.send()
        except Exception:
            if not self._failed:
                _log.exception("vqwatch.compat: a step is not watched (said once)")
            self._failed = True
            self._noted = {}

    def _again(self, who: str) -> bool:
        """Decide about a monitor that is called a second time: send the step before, or return False to ignore it.

        Reconstructions are compared in validation loops too, so one that comes again ends a step only where it began
        it and others came after it.
        """
        first = next(iter(self._noted)) == who
        alone = len(self._noted) == 1
        if who == RECONSTRUCTION and not (first and not alone) and self._members != {RECONSTRUCTION}:
            return first
        self.send()
        return True

    def send(self) -> None:
        """Send what was noted as one step."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        self._expected, self._opens = frozenset(noted), next(iter(noted))
        told = {name: value for part in noted.values() for name, value in part.items()}
        step = told.pop("step", None)
        self._step = self._step + 1 if step is None else int(step)
        self._emitter().step(self._step, **told)

    def _emitter(self) -> Emitter:
        if self._watch is None:
            model = self._model if self._model is not None else _declared(self._sizes)
            self._watch = attach(model, self._optimizer)
            atexit.register(flush)  # runs before the emitter's own
        return self._watch


_notebooks: dict[int, _Notebook] = {}


def _notebook(watch: Emitter | None, who: str) -> _Notebook:
    """Return the notebook of an emitter, or the shared one; it lives as long as the process, as monitors do."""
    notebook = _notebooks.setdefault(id(watch), _Notebook(watch))
    notebook.join(who)
    return notebook


def flush() -> None:
    """Send what is left of the last step; call it before closing an emitter of your own."""
    for notebook in _notebooks.values():
        notebook.send()


class CodebookMonitor:
    """Stands in for the proposal's ``CodebookMonitor`` (1.2)."""

    def __init__(self, num_embeddings: int, num_layers: int, watch: Emitter | None = None) -> None:
        self.num_embeddings = num_embeddings
        self.num_layers = num_layers
        self._notebook = _notebook(watch, CODEBOOK)
        self._notebook.describe(sizes=(num_embeddings,) * num_layers)

    def update(self, all_indices: Tensor) -> None:
        """Take the codes of a step, ``[B, num_layers]`` or ``[B, T, num_layers]``."""
        self._notebook.note(CODEBOOK, codes=_detached(all_indices))

    def get_summary(self) -> dict[str, Any]:
        """Return nothing: utilization, perplexity and dead codes are computed by the daemon, with their trends."""
        return {}


class EMAMonitor:
    """Stands in for the proposal's ``EMAMonitor`` (2.2). ``vq_layers`` are the quantizers, in their order."""

    def __init__(self, vq_layers: Any, watch: Emitter | None = None) -> None:
        self.vq_layers = vq_layers
        self._notebook = _notebook(watch, EMA)
        if self._notebook._model is None:
            self._notebook.describe(model=_as_module(vq_layers))

    def update(self) -> dict[str, Any]:
        """Note that the codebooks have moved; they are read where that is due. Returns nothing."""
        self._notebook.note(EMA)
        return {}


class ReconstructionMonitor:
    """Stands in for the proposal's ``ReconstructionMonitor`` (3.2)."""

    def __init__(self, watch: Emitter | None = None) -> None:
        self._notebook = _notebook(watch, RECONSTRUCTION)

    def compute_metrics(self, original: Tensor, reconstructed: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Take inputs and outputs ``[B, T, D]`` of a step and the mask ``[B, T]``. Returns nothing.

        In a validation loop use ``with watch.evaluation(step) as ev: ev.update(...)``; here it only replaces what the
        step has so far.
        """
        self._notebook.note(
            RECONSTRUCTION, original=_detached(original), reconstructed=_detached(reconstructed), mask=mask
        )
        return {}


class TrainingMonitor:
    """Stands in for the proposal's ``TrainingMonitor`` (4.1)."""

    def __init__(self, watch: Emitter | None = None) -> None:
        self._notebook = _notebook(watch, TRAINING)

    def log_step(
        self, model: nn.Module, optimizer: Any, loss_components: Mapping[str, Any], step: int
    ) -> dict[str, Any]:
        """Take a step's losses by name. Returns the learning rate under the proposal's key, where it is a number.

        Gradient norms are taken from the model.
        """
        self._notebook.describe(model=model, optimizer=optimizer)
        losses = {name: _detached(value) for name, value in loss_components.items()}
        self._notebook.note(TRAINING, losses=losses, step=step)
        rate = optimizer.param_groups[0]["lr"]
        return {"train/lr": rate} if isinstance(rate, float) else {}


def _detached(value: Any) -> Any:
    return value.detach() if hasattr(value, "detach") else value


def _as_module(layers: Any) -> Any:
    """Return a module that holds these layers."""
    if hasattr(layers, "named_modules"):
        return layers
    from torch import nn

    return nn.ModuleList(layers)


def _declared(sizes: tuple[int, ...]) -> Any:
    """Return a stand-in for a model of which nothing is known but how many codes its layers have."""
    if not sizes:
        return None
    import torch
    from torch import nn

    from .codebooks import Adapter, register

    class DeclaredCodebook(nn.Module):
        pass

    layers = nn.ModuleList(DeclaredCodebook() for _ in sizes)
    for layer, size in zip(layers, sizes, strict=True):
        layer.register_buffer("declared_codebook", torch.empty(size, 1, device="meta"), persistent=False)
    register(
        Adapter(
            "declared",
            lambda module: "declared_codebook" in module._buffers,
            lambda module: {"codebook": module._buffers["declared_codebook"]},
            "implicit",
        )
    )
    return layers
