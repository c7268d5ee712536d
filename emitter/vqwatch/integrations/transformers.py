"""The callback for Hugging Face's Trainer.

    from vqwatch.integrations.transformers import VqwatchCallback

    Trainer(model, args, train_dataset=data, callbacks=[VqwatchCallback(run="rqvae")]).train()

The Trainer tells its callbacks a loss only where it logs one, averaged and with NaN left out. So the callback reads
what the model returns (see :mod:`vqwatch.integrations` for the names), at every step: of the batches of an
accumulation the last one. Where the daemon asks for a stop, the Trainer ends as it does by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from vqwatch.hooks import Inert, recomputing

from .common import arrays, losses, named, stop_together

if TYPE_CHECKING:
    from torch import nn

    from vqwatch.emitter import Emitter


class _Output(Inert):
    """A hook on the whole model that keeps what the last training forward returned, as far as a step tells it."""

    def __init__(self) -> None:
        self.losses: dict[str, Any] = {}
        self.arrays: dict[str, Any] = {}

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        if module.training and (torch.compiler.is_compiling() or not recomputing()):
            told = named(output)
            self.losses, self.arrays = losses(told), arrays(told)


_TrainerCallback: Any = transformers.TrainerCallback


class VqwatchCallback(_TrainerCallback):  # type: ignore[misc]
    """Watches a ``Trainer.train``. Takes what :func:`vqwatch.attach` takes, but for model, optimizer and ranks."""

    def __init__(self, *, stop_every: int = 20, **attach_options: Any) -> None:
        """With several ranks, ``stop_every`` is the number of steps between two agreements on stopping."""
        self.watch: Emitter | None = None
        self._options = attach_options
        self._stop_every = stop_every
        self._output = _Output()
        self._hook: Any = None

    def on_train_begin(
        self, args: Any, _state: Any, _control: Any, *, model: Any, optimizer: Any, **_rest: Any
    ) -> None:
        """Attach."""
        import vqwatch

        ranks = {"rank": args.process_index, "world_size": args.world_size}
        self.watch = vqwatch.attach(model, optimizer, **{**ranks, **self._options})
        self._hook = model.register_forward_hook(self._output)

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
        """Tell the step while there are gradients; the Trainer counts it only afterwards."""
        if self.watch is not None:
            self.watch.step(state.global_step + 1, losses=self._output.losses, **self._output.arrays)
            self._output.arrays = {}

    def on_step_end(self, _args: Any, state: Any, control: Any, **_rest: Any) -> Any:
        """End the training where the daemon asked for it."""
        if self.watch is not None and stop_together(self.watch, state.global_step, self._stop_every):
            control.should_training_stop = True
        return control

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_rest: Any) -> None:
        """Say goodbye and leave the model."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.watch is not None:
            self.watch.close()
            self.watch = None
