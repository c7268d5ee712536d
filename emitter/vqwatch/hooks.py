"""Hooks on the modules that assign codes: from the model's forward pass to a :class:`~vqwatch.codebooks.Tap`.

A hook never raises, changes nothing, and is inert in a copy of the model. Knows no family: what to look for is in the
:class:`~vqwatch.codebooks.Site`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vqwatch.codebooks import Site, Tap

_log = logging.getLogger("vqwatch")


def install(site: Site, tap: Tap) -> Callable[[], None]:
    """Hook one site; return what takes the hook away."""
    hook = _Hook(site, tap)
    if site.adapter.method != "forward":
        return _wrap(site.module, site.adapter.method, hook)
    handles = [site.module.register_forward_hook(hook, with_kwargs=True)]
    if hook.shared and site.owner is not None:
        handles.append(site.owner.register_forward_pre_hook(_Restart(hook)))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _wrap(module: nn.Module, method: str, hook: _Hook) -> Callable[[], None]:
    module.__dict__[method] = _Wrapped(module, method, hook)
    return lambda: module.__dict__.pop(method, None) and None


def integers(output: Any) -> Tensor | None:
    """Return the integer tensor in what a layer returned, however nested; every known family returns just one."""
    return _search(output, _is_integer)


def shaped_like(output: Any, reference: Tensor) -> Tensor | None:
    """Return the first floating tensor in what a layer returned that has the shape of ``reference``."""
    return _search(output, lambda value: value.is_floating_point() and value.shape == reference.shape)


def _is_integer(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def _search(output: Any, wanted: Callable[[Tensor], bool]) -> Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if wanted(output) else None
    if isinstance(output, dict):
        parts = list(output.values())
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        parts = list(vars(output).values()) if hasattr(output, "__dict__") else []
    for part in parts:
        found = _search(part, wanted)
        if found is not None:
            return found
    return None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a hook in a copy of the model."""


def _make_nothing() -> Callable[..., None]:
    return _nothing


class _Inert:
    """What a hook becomes in a copied or pickled model: nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_nothing, ()


class _Hook(_Inert):
    def __init__(self, site: Site, tap: Tap) -> None:
        self.site = site
        self.tap = tap
        self.shared = len(site.layers) > 1 and site.adapter.members is None
        self.scale = site.adapter.scale
        self.calls = 0
        self.failed = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not module.training or _recomputing():
            return
        try:
            self.assigned(module, args, kwargs, output)
        except Exception:
            if not self.failed:
                self.failed = True
                _log.warning("vqwatch: cannot read the codes of layer %s", self.site.layers[0], exc_info=True)

    def assigned(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        indices = integers(output)
        if indices is None:
            return
        indices = indices.detach()
        layers = self.site.layers
        if self.site.adapter.members is not None:
            for layer, part in zip(layers, indices.unbind(-1), strict=False):
                self.tap.codes(layer, part)
            return
        layer = layers[0]
        if self.shared:
            layer = layers[self.calls]
            self.calls = (self.calls + 1) % len(layers)
        self.tap.codes(layer, indices)
        if self.tap.wants_residuals and args:
            residual = self.residual(module, args[0].detach(), indices, kwargs, output)
            if residual is not None:
                self.tap.residual(layer, *residual)

    def residual(
        self, module: nn.Module, before: Tensor, indices: Tensor, kwargs: Any, output: Any
    ) -> tuple[Tensor, Tensor] | None:
        """Return what entered the layer and what it left over, channels last; zeros where a mask leaves no code."""
        quantized = shaped_like(output, before)
        if quantized is None:
            return None
        quantized = quantized.detach()
        channels = self.site.adapter.channels
        axis = channels if isinstance(channels, int) else channels(module, before)
        before, quantized = before.movedim(axis, -1), quantized.movedim(axis, -1)
        if self.scale is not None and self.site.owner is not None:
            scale = self.scale(self.site.owner, self.site.index)
            if scale is not None:
                before, quantized = before * scale, quantized * scale
        after = before - quantized
        if kwargs.get("mask") is not None or kwargs.get("lens") is not None:
            valid = (indices >= 0).reshape(*before.shape[:-1], -1).any(-1, keepdim=True)
            before, after = before * valid, after * valid
        return before, after


class _Restart(_Inert):
    """The layers of a shared module count from 0 at every call of their owner."""

    def __init__(self, hook: _Hook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, _args: Any) -> None:
        if module.training and not _recomputing():
            self.hook.calls = 0


class _Wrapped:
    """A method of one module that reports what it returns; in a copy of the module it is the plain method again."""

    def __init__(self, module: nn.Module, method: str, hook: _Hook) -> None:
        self.module = module
        self.method = method
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = getattr(type(self.module), self.method)(self.module, *args, **kwargs)
        self.hook(self.module, args, kwargs, output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module), self.module)
        return getattr(type(copied), self.method).__get__(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, self.method)


def _recomputing() -> bool:
    """Whether this forward is one that activation checkpointing repeats inside the backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)
