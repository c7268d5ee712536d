"""The table of quantizer families: for each, how to recognise a layer and where it keeps what.

    register(Adapter(
        family="mine",
        matches=lambda module: type(module).__name__ == "MyQuantizer",
        tensors=lambda module: {"codebook": module.weight, "cluster_size": module.counts},
    ))

teaches vqwatch a family it does not know; call it before ``attach``. A layer is the module whose call maps vectors to
codes; the codebook may be its own or a child's. Knows no hook and no emitter; torch is needed only when a model is
looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vqwatch.families import averages, fixed, learned
from vqwatch.families.adapter import Adapter, Settings, bare, looks_like_a_quantizer, without_wrappers

__all__ = [
    "TABLE",
    "Adapter",
    "Settings",
    "adapters",
    "bare",
    "looks_like_a_quantizer",
    "register",
    "without_wrappers",
]

TABLE: Final[tuple[Adapter, ...]] = (
    averages.LUCIDRAINS_BEAMS,
    averages.LUCIDRAINS,
    averages.ENCODEC,
    averages.MOSHI,
    fixed.TRANSFORMERS_ENCODEC,
    fixed.TRANSFORMERS_MIMI,
    learned.DAC,
    averages.RQ_VAE_TRANSFORMER,
    learned.RECOMMENDER,
    learned.LC_REC,
    learned.TAMING,
    learned.GRID,
    averages.JUKEBOX,
    fixed.FSQ,
    fixed.LFQ,
    fixed.SIMVQ,
    averages.OWN,
)
"""Every family that vqwatch knows; the first that matches wins."""

_registered: list[Adapter] = []


def register(adapter: Adapter) -> Callable[[], None]:
    """Put an adapter before those that vqwatch knows; return a function that takes it back."""
    _registered.insert(0, adapter)
    return lambda: _registered.remove(adapter) if adapter in _registered else None


def adapters() -> tuple[Adapter, ...]:
    """Return every adapter in the order in which they are asked: those of :func:`register`, then :data:`TABLE`."""
    return (*_registered, *TABLE)
