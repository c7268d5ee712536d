"""The callback for PyTorch Lightning (``lightning`` or ``pytorch_lightning``, whichever the script uses).

    from vqwatch.integrations.lightning import VqwatchCallback

    trainer = Trainer(callbacks=[VqwatchCallback(run="rqvae")])

A step is an optimizer step: batches of an accumulation add up. What ``training_step`` returns is told by name (see
:mod:`vqwatch.integrations`), and so is what ``validation_step`` returns. Where the daemon asks for a stop, training
ends as Lightning ends it by itself, with the last checkpoint saved.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .common import arrays, losses, named, stop_together

if TYPE_CHECKING:
    from vqwatch.emitter import Emitter


def _library() -> Any:
    names = ("lightning.pytorch", "pytorch_lightning")
    loaded = [name for name in names if name in sys.modules]
    for name in (*loaded, *names):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError("vqwatch.integrations.lightning needs lightning or pytorch_lightning")


_Callback: Any = _library().Callback


class VqwatchCallback(_Callback):  # type: ignore[misc]
    """Watches a ``Trainer.fit``. Takes what :func:`vqwatch.attach` takes, but for model, optimizer and ranks."""

    def __init__(self, *, stop_every: int = 20, **attach_options: Any) -> None:
        """With several ranks, ``stop_every`` is the number of steps between two agreements on stopping."""
        super().__init__()
        self.watch: Emitter | None = None
        self._options = attach_options
        self._stop_every = stop_every
        self._step = 0
        self._pass: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, with optimizers and ranks in place and before the first training forward is compiled."""
        import vqwatch

        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        self.watch = vqwatch.attach(pl_module, trainer.optimizers, **{**ranks, **self._options})
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_rest: Any) -> None:
        """Tell the step, if this batch completed one."""
        if self.watch is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        output = named(outputs)
        found = losses(output)
        if "total" in found and pl_module.automatic_optimization:
            found["total"] = found["total"] * trainer.accumulate_grad_batches  # Lightning divided it
        self.watch.step(self._step, losses=found, **arrays(output))
        if stop_together(self.watch, self._step, self._stop_every):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Any, *_rest: Any) -> None:
        """Begin a validation pass; Lightning's trial pass comes before the training and is none."""
        if self.watch is not None:
            self._pass = self.watch.evaluation(trainer.global_step)
            self._pass.__enter__()

    def on_validation_batch_end(self, _trainer: Any, _pl_module: Any, outputs: Any, *_rest: Any) -> None:
        """Tell one batch of the pass what ``validation_step`` returned."""
        output = named(outputs)
        if self._pass is not None and "original" in output and "reconstructed" in output:
            self._pass.update(**arrays(output))

    def on_validation_end(self, *_rest: Any) -> None:
        """End the pass."""
        if self._pass is not None:
            self._pass.__exit__(None, None, None)
            self._pass = None

    def on_train_end(self, *_rest: Any) -> None:
        """Say goodbye."""
        self._close("close")

    def on_exception(self, _trainer: Any, _pl_module: Any, exception: BaseException) -> None:
        """Say goodbye, and that an exception ended the training."""
        self._close(type(exception).__name__)

    def _close(self, reason: str) -> None:
        if self.watch is not None:
            self.watch.close(reason=reason)
            self.watch = None
