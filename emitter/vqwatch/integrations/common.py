"""What the integrations share: reading what a training step returned, and stopping all ranks at the same step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from vqwatch.emitter import Emitter

ARRAYS: Final = ("codes", "original", "reconstructed", "mask")
"""Parts of a step's output that :meth:`vqwatch.Emitter.step` takes under the same name."""

_turns: WeakKeyDictionary[Emitter, int] = WeakKeyDictionary()
"""In which turn of so many steps each emitter was when it was asked about stopping."""


def named(output: Any) -> dict[str, Any]:
    """Return what a training step returned by name: a mapping as it is, a lone tensor as "loss", None as nothing."""
    if output is None:
        return {}
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "detach"):
        return {"loss": output}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def losses(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the losses in a step's output: one-element floating tensors and floats, detached; "loss" is "total"."""
    found: dict[str, Any] = {}
    for name, value in output.items():
        if name in ARRAYS:
            continue
        if isinstance(value, float):
            found[name] = value
        elif hasattr(value, "detach") and value.numel() == 1 and value.is_floating_point():
            found["total" if name == "loss" else name] = value.detach()
    return found


def arrays(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays in a step's output that the emitter knows by name."""
    return {name: output[name] for name in ARRAYS if output.get(name) is not None}


def stop_together(watch: Emitter, step: int, every: int = 20) -> bool:
    """Return whether training is to end at this step, the same on every rank; call it after each ``watch.step``.

    Ranks learn of a stop at steps of their own, and one that left alone would keep the others waiting for it. So with
    several ranks they ask each other, once in ``every`` steps, whichever of them come: one reduction of one number.
    """
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    alone = distributed is None or not distributed.is_available() or not distributed.is_initialized()
    if torch is None or distributed is None or alone or distributed.get_world_size() == 1:
        return watch.stop_requested
    turn = step // every
    before, _turns[watch] = _turns.get(watch), turn
    if turn == before:
        return False
    on_gpu = distributed.get_backend() == "nccl"
    flag = torch.tensor(float(watch.stop_requested), device="cuda" if on_gpu else "cpu")
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())
