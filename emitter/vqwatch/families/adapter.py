"""What an adapter says about a family of quantizers, and the look-ups that adapters are written with.

Tensors are looked up by name each time they are asked for, in the module's own dictionaries: some libraries replace
them at every step, and some have properties that change the module when read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors: TypeAlias = "Mapping[str, Tensor | Callable[[], Tensor] | None]"


class Settings(NamedTuple):
    """What a layer is configured to do; None where its family has no such thing (units: see ``wire.Layer``)."""

    decay: float | None = None
    threshold: float | None = None
    threshold_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one family is recognised and read.

    ``matches`` says whether a module is one layer (with ``members``: a stack of layers whose own call returns the
    codes of all, along the last axis). ``tensors`` returns a layer's live tensors: "codebook" [K, D] or [H, K, D] and,
    for a codebook moved by averages, "cluster_size" [K] or [H, K] and "embedding_sum" shaped like the codebook. What
    has to be computed may be a function, called when it is wanted.
    ``kind`` is one of ``wire.CODEBOOK_KINDS``, or says which.

    ``methods`` are those that assign codes; others than forward are wrapped. Their result holds one integer tensor,
    the codes, and one shaped like the input, what it was quantized to; where it does not, ``decode`` names the method
    that turns codes into that. ``ready`` says whether codes mean anything yet. ``channels`` is the axis of the
    channels in the input, or says which. ``scale(owner, index)`` is what a stack divided its layer's input by.
    """

    family: str
    matches: Callable[[nn.Module], bool]
    tensors: Callable[[nn.Module], Tensors]
    kind: str | Callable[[nn.Module], str] = "ema"
    settings: Callable[[nn.Module], Settings] | None = None
    channels: int | Callable[[nn.Module, Tensor], int] = -1
    methods: tuple[str, ...] = ("forward",)
    decode: str | None = None
    ready: Callable[[nn.Module], bool] | None = None
    members: Callable[[nn.Module], Sequence[nn.Module]] | None = None
    scale: Callable[[nn.Module, int], Tensor | None] | None = None


def tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter, buffer or plain tensor attribute by its name, or None. Runs no property."""
    for store in (module._buffers, module._parameters, module.__dict__):
        value: Tensor | None = store.get(name)
        if value is not None and hasattr(value, "untyped_storage"):
            return value
    return None


def first(module: nn.Module, names: Sequence[str]) -> Tensor | None:
    """Return the first of several tensors that a module has, or None."""
    for name in names:
        value = tensor(module, name)
        if value is not None:
            return value
    return None


def child(module: nn.Module, name: str) -> nn.Module | None:
    """Return a direct child by its name, without wrappers, or None. Runs no property."""
    found = module._modules.get(name)
    return None if found is None else bare(found)


_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FullyShardedDataParallel and activation checkpointing call the module that they wrap."""


def bare(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers that torch put around it, or itself."""
    while True:
        inner = next((found for name in _WRAPPERS if (found := module._modules.get(name)) is not None), None)
        if inner is None and len(module._modules) == 1 and type(module).__name__.endswith("DataParallel"):
            inner = module._modules.get("module")
        if inner is None:
            return module
        module = inner


def without_wrappers(path: str) -> str:
    """Return a module's path without the names that wrappers put into it.

    >>> without_wrappers("_fsdp_wrapped_module.quantizer.layers.0._orig_mod")
    'quantizer.layers.0'
    """
    return ".".join(name for name in path.split(".") if name not in _WRAPPERS)


def named(module: nn.Module, *, codebook: str, cluster_size: str, embedding_sum: str) -> dict[str, Tensor | None]:
    """Return the tensors of a module under the names that :class:`Adapter` wants."""
    return {
        "codebook": tensor(module, codebook),
        "cluster_size": tensor(module, cluster_size),
        "embedding_sum": tensor(module, embedding_sum),
    }


def number(module: nn.Module, *names: str) -> float | None:
    """Return a plain number attribute by the first name there is; None for none, or 0 (which turns the thing off)."""
    state = vars(module)
    value = next((state[name] for name in names if name in state), None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else None


_QUANTIZER_NAME: Final = re.compile(r"[Qq]uanti[sz]|[Cc]ode[Bb]ook|VQ")


def looks_like_a_quantizer(module: nn.Module) -> bool:
    """Return whether the name of the module's class speaks of quantizing vectors (torch's own speak of integers)."""
    kind = type(module)
    return _QUANTIZER_NAME.search(kind.__name__) is not None and not kind.__module__.startswith("torch.")
