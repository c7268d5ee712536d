"""Hooks on the modules that assign codes: from the model's forward pass to a :class:`~vqwatch.codebooks.Tap`.

A hook never raises, changes nothing, and is inert in a copy of the model. Knows no family: what to look for is in the
:class:`~vqwatch.codebooks.Site`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from vqwatch import traced

if TYPE_CHECKING:
    from vqwatch.codebooks import Site, Tap

_log = logging.getLogger("vqwatch")
_keys = itertools.count()


class Hooked:
    """The hooks on one site, from now until :meth:`remove`."""

    def __init__(self, site: Site, tap: Tap) -> None:
        self._site = site
        self._hook = _Hook(site, tap)
        self._handles: list[RemovableHandle] = []
        self._by_method = site.adapter.methods != ("forward",)
        if self._by_method:
            for method in site.adapter.methods:
                _wrapped(site.module, method).hooks.append(self._hook)
        else:
            self._register()

    def listen(self, wanted: bool) -> None:
        """Take the hook away while nothing is ``wanted``, as a module that has one takes 7 µs longer to call.

        It stays where it was compiled, as it would have to be compiled again, where it counts the calls of a shared
        module, and where it stands for a method, which takes no longer.
        """
        if self._by_method or self._hook.shared or self._hook.noted.compiled:
            wanted = True
        if wanted and not self._handles and not self._by_method:
            self._hook.noted.heard = False
            self._register()
        elif not wanted:
            self._unregister()

    @property
    def heard(self) -> bool:
        """Return whether the hook told anything since it was wanted last."""
        return self._hook.noted.heard

    def remove(self) -> None:
        """Leave the module as it was found."""
        if self._by_method:
            for method in self._site.adapter.methods:
                _unwrap(self._site.module, method, self._hook)
        else:
            self._unregister()

    def _register(self) -> None:
        site = self._site
        self._handles = [site.module.register_forward_hook(self._hook, with_kwargs=True)]
        if self._hook.shared and site.owner is not None:
            self._handles.append(site.owner.register_forward_pre_hook(_Restart(self._hook)))

    def _unregister(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _wrapped(module: nn.Module, method: str) -> _Wrapped:
    """Return the wrapper of a method, a new one if it has none."""
    wrapper = module.__dict__.get(method)
    if not isinstance(wrapper, _Wrapped):
        wrapper = module.__dict__[method] = _Wrapped(module, method)
    return wrapper


def _unwrap(module: nn.Module, method: str, hook: _Hook) -> None:
    wrapper = module.__dict__.get(method)
    if isinstance(wrapper, _Wrapped) and hook in wrapper.hooks:
        wrapper.hooks.remove(hook)
        if not wrapper.hooks:
            del module.__dict__[method]


# --- what a layer returned --------------------------------------------------------------------------------------


def integers(output: Any) -> Tensor | None:
    """Return the integer tensor in what a layer returned, however nested; every known family returns just one."""
    return _search(output, _is_integer)


def shaped_like(output: Any, reference: Tensor) -> Tensor | None:
    """Return the first floating tensor in what a layer returned that has the shape of ``reference``."""
    return _search(output, lambda value: value.is_floating_point() and value.shape == reference.shape)


def _is_integer(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def _search(output: Any, wanted: Callable[[Tensor], bool]) -> Tensor | None:
    if isinstance(output, Tensor):
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


def _first_tensor(args: Any, kwargs: Any) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


# --- hooks ------------------------------------------------------------------------------------------------------


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for a hook in a copy of the model."""


def _make_nothing() -> Callable[..., None]:
    return _nothing


class Inert:
    """What a hook becomes in a copied or pickled model: nothing."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_nothing, ()


class _Noted:
    """What is known of a hook: whether it told anything since it was wanted last, and whether it was ever compiled."""

    heard = compiled = False


class _Hook(Inert):
    def __init__(self, site: Site, tap: Tap) -> None:
        self.site = site
        self.tap = tap
        self.shared = len(site.layers) > 1 and site.adapter.members is None
        self.calls = 0
        self.within = False
        self.failed = False
        self.noted = _Noted()
        held = itertools.chain(site.module.buffers(), site.module.parameters())
        device = next((value.device for value in held), None)
        key = next(_keys)
        self.doors = [
            traced.Door(key * 1000 + i, _Report(tap, layer, self.noted), device or torch.device("cpu"))
            for i, layer in enumerate(site.layers)
        ]

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Most calls are of steps that want nothing: they end here, before anything that costs. What is being compiled
        # must not ask, because dynamo would guard on the answer; there the first question is a constant.
        if not is_dynamo_compiling():
            tap = self.tap
            if not (tap.wants_codes or tap.wants_residuals or self.shared):
                return
        if not module.training or (self.site.adapter.ready is not None and not self.site.adapter.ready(module)):
            return
        try:
            if torch.compiler.is_compiling():
                self.trace(module, args, kwargs, output)
            elif not recomputing():
                self.noted.heard = True
                self.report(module, args, kwargs, output)
        except Exception:
            if not self.failed:
                self.failed = True
                _log.warning("vqwatch: cannot read the codes of layer %s", self.site.layers[0], exc_info=True)

    def report(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Tell the tap, at once."""
        if not (self.tap.wants_codes or self.tap.wants_residuals):
            self.turn()
            return
        indices = integers(output)
        if indices is None:
            return
        if self.site.adapter.members is not None:
            for layer, part in zip(self.site.layers, indices.unbind(-1), strict=False):
                self.tap.codes(layer, part)
            return
        layer = self.site.layers[self.turn()]
        self.tap.codes(layer, indices)
        if self.tap.wants_residuals:
            residual = self.residual(module, args, kwargs, indices, output)
            if residual is not None:
                self.tap.residual(layer, *residual)

    def trace(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Put the telling of the tap into the graph that is being compiled."""
        indices = integers(output)
        if indices is None:
            return
        if self.site.adapter.members is not None:
            for door, part in zip(self.doors, indices.unbind(-1), strict=False):
                door.leave(part, None, None)
            return
        door = self.doors[self.turn()]
        residual = self.residual(module, args, kwargs, indices, output)
        if residual is None:
            door.leave(indices, None, None)
        else:
            door.leave(indices, *(torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in residual))

    def turn(self) -> int:
        """Return which of the site's layers this call is for."""
        if not self.shared:
            return 0
        turn = self.calls
        self.calls = (turn + 1) % len(self.site.layers)
        return turn

    def residual(
        self, module: nn.Module, args: Any, kwargs: Any, indices: Tensor, output: Any
    ) -> tuple[Tensor, Tensor] | None:
        """Return what entered the layer and what it left over, channels last; zeros where a mask leaves no code."""
        adapter, before = self.site.adapter, _first_tensor(args, kwargs)
        if before is None:
            return None
        before = before.detach()
        if adapter.decode is not None:
            with torch.no_grad():
                output = getattr(type(module), adapter.decode)(module, indices)
        quantized = shaped_like(output, before)
        if quantized is None:
            return None
        quantized = quantized.detach()
        axis = adapter.channels if isinstance(adapter.channels, int) else adapter.channels(module, before)
        if axis not in (-1, before.dim() - 1):
            before, quantized = before.movedim(axis, -1), quantized.movedim(axis, -1)
        scale = self.scale()
        if scale is not None:
            before, quantized = before * scale, quantized * scale
        after = before - quantized
        if kwargs.get("mask") is not None or kwargs.get("lens") is not None:
            valid = (indices >= 0).reshape(*before.shape[:-1], -1).any(-1, keepdim=True)
            before, after = before * valid, after * valid
        return before, after

    def scale(self) -> Tensor | None:
        """Return the factor by which the stack divided what this layer got, if it did."""
        if self.site.adapter.scale is None or self.site.owner is None:
            return None
        return self.site.adapter.scale(self.site.owner, self.site.index)


class _Report:
    """What comes out of a compiled region, told to the tap."""

    def __init__(self, tap: Tap, layer: str, noted: _Noted) -> None:
        self.tap = tap
        self.layer = layer
        self.noted = noted  # and not the hook, which must be gone as soon as it is removed

    def __call__(self, indices: Tensor, before: Tensor | None, after: Tensor | None) -> None:
        self.noted.compiled = self.noted.heard = True
        tap = self.tap
        if not (tap.wants_codes or tap.wants_residuals) or recomputing():
            return
        if tap.wants_codes:
            tap.codes(self.layer, indices.clone())  # the compiled code uses its memory again
        if before is not None and after is not None and tap.wants_residuals:
            tap.residual(self.layer, before, after)


class _Restart(Inert):
    """The layers of a shared module count from 0 at every call of their owner."""

    def __init__(self, hook: _Hook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, _args: Any) -> None:
        if module.training:
            self.hook.calls = 0


class _Wrapped:
    """A method of one module that reports what it returns; in a copy of the module it is the plain method again.

    Where wrapped methods of one module call each other, the outermost reports.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self.module = module
        self.method = method
        self.hooks: list[_Hook] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(type(self.module), self.method)
        outermost = [hook for hook in self.hooks if not hook.within]
        for hook in outermost:
            hook.within = True
        try:
            output = plain(self.module, *args, **kwargs)
        finally:
            for hook in outermost:
                hook.within = False
        for hook in outermost:
            hook(self.module, args, kwargs, output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module), self.module)
        return getattr(type(copied), self.method).__get__(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, self.method)


def recomputing() -> bool:
    """Whether this forward is one that activation checkpointing repeats inside the backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)
