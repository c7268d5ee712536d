"""Finds the quantizers of a model and reads them.

    quantizers = find(model)
    quantizers.install(tap)           # from now on the tap is told which codes are assigned
    quantizers.layers[0].read()       # {"codebook": [H, K, D], "cluster_size": [H, K], ...}, live tensors

What a family looks like is said in :mod:`vqwatch.families`. Only forwards in training mode count; those that
activation checkpointing repeats during the backward pass do not. Knows no socket, no schedule and no staging buffer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vqwatch import families, sharded, wire
from vqwatch.families import Adapter, bare, register, without_wrappers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vqwatch.hooks import Hooked

__all__ = ["Adapter", "QuantizerLayer", "Quantizers", "Tap", "find", "register"]

_log = logging.getLogger("vqwatch")


class Tap(Protocol):
    """Who is told of the codes; called from inside the model's forward pass, so it must be quick and never raise."""

    wants_codes: bool
    """Whether :meth:`codes` needs to be called in this step; where neither is wanted the hooks return at once."""

    wants_residuals: bool
    """Whether :meth:`residual` is to be called in this step."""

    def codes(self, layer: str, indices: Tensor) -> None:
        """Take a layer's codes as its family returned them: integers, any shape, negative where there is no code."""

    def residual(self, layer: str, before: Tensor, after: Tensor) -> None:
        """Take what entered a layer and what it left over, ``[..., D]`` each. They may change after the call.

        In compiled regions D is 1: both are then the norms of the vectors.
        """


@dataclass(frozen=True, eq=False, slots=True)
class QuantizerLayer:
    """One quantizer of the residual stack: what ``hello`` says about it, and its tensors."""

    info: wire.Layer
    module: nn.Module
    adapter: Adapter
    sharded: bool = False

    def read(self, wanted: Sequence[str] = ("codebook", "cluster_size", "embedding_sum")) -> dict[str, Tensor | None]:
        """Return the live tensors by field: "codebook" [H, K, D], "cluster_size" [H, K], "embedding_sum" [H, K, D].

        Read them at once: the next training step changes or replaces them. The statistics are there for a codebook
        that is moved by averages only, and nothing is there for an implicit one. None stands for what is sharded over
        ranks, or was not when the layer was found.
        """
        kind = self.info.kind
        if kind == "implicit":
            return {}
        if self.sharded and kind != "ema":
            return {"codebook": None}
        try:
            found = self._tensors(wanted)
        except RuntimeError:  # computed from what this rank has let go of
            if kind == "ema" or not sharded.has_let_go(self.module):
                raise
            return {"codebook": None}
        tensors: dict[str, Tensor | None] = {}
        for field in wanted:
            if field != "codebook" and kind != "ema":
                continue
            value = found.get(field)
            if value is None:
                if field == "codebook":  # there was one when the layer was found
                    tensors[field] = None
                continue
            if not self._is_whole(field, value):
                tensors[field] = None
                continue
            value = value.detach()
            tensors[field] = value if value.dim() == (2 if field == "cluster_size" else 3) else value[None]
        return tensors

    def place(self, field: str) -> tuple[str, ...] | None:
        """Return by which names :meth:`at` finds a field's tensor, None where it is no whole buffer of the module."""
        value = None if self.sharded or self.info.kind == "implicit" else self._tensors((field,)).get(field)
        if value is None or not self._is_whole(field, value):
            return None
        for path, module in self.module.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is value:
                    return (*path.split("."), name) if path else (name,)
        return None

    def at(self, place: tuple[str, ...]) -> Tensor | None:
        """Return the buffer that is now where :meth:`place` said, None where there is none."""
        module = self.module
        for name in place[:-1]:
            inner = module._modules.get(name)
            if inner is None:
                return None
            module = inner
        return module._buffers.get(place[-1])

    def _tensors(self, wanted: Sequence[str]) -> dict[str, Tensor | None]:
        """Return what the adapter has of these fields, computed where it has to be."""
        found = self.adapter.tensors(self.module)
        return {field: value() if callable(value := found.get(field)) else value for field in wanted}

    def _is_whole(self, field: str, value: Tensor) -> bool:
        """Return whether a tensor is what the layer was found with, and not a shard or a view of freed memory."""
        if field == "codebook" and (self.sharded or value.dim() < 2):
            return False
        return not hasattr(value, "to_local") and (value.is_meta or value.untyped_storage().nbytes() > 0)


class Quantizers:
    """The quantizers of one model, in the order of its modules, named "0", "1", …

    ``unknown`` holds the paths of modules that look like quantizers but match no adapter. ``listening`` tells what
    :meth:`listen` was told last.
    """

    def __init__(self, layers: Sequence[QuantizerLayer], unknown: Sequence[str], sites: Sequence[Site]) -> None:
        self.layers = tuple(layers)
        self.unknown = tuple(unknown)
        self._sites = tuple(sites)
        self.listening = True
        self._hooked: list[Hooked] = []
        self._heard = self._silent = False

    def install(self, tap: Tap) -> None:
        """Tell ``tap`` of every assignment from now on. Under torch.compile: before the first compiled call."""
        from vqwatch import hooks

        self.remove()
        self.listening, self._heard, self._silent = True, False, False
        self._hooked = [hooks.Hooked(site, tap) for site in self._sites]

    def listen(self, wanted: bool) -> None:
        """Say whether the tap will want anything in the next forward pass; hooks are away meanwhile where they can be.

        Where a pass that was wanted tells nothing, and something was compiled in between, they stay from then on.
        """
        self.listening = wanted
        if not wanted and not self._silent:
            heard = any(hooked.heard for hooked in self._hooked)
            self._silent = self._heard and not heard and _has_compiled()
            self._heard |= heard
            if self._silent:
                _log.warning(
                    "vqwatch: no layer told its codes in a step that wanted them; where the model was compiled after "
                    "its first watched step, torch.compiler.reset() lets it be compiled anew, with them"
                )
        for hooked in self._hooked:
            hooked.listen(wanted or self._silent)

    def remove(self) -> None:
        """Leave the model as it was found."""
        while self._hooked:
            self._hooked.pop().remove()


def _has_compiled() -> bool:
    """Return whether torch.compile has compiled anything in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return bool(dynamo is not None and dynamo.counters.get("frames"))


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """A module whose calls assign codes, and the layers they are for.

    With several layers and no ``members`` the module is shared: call after call is for the next layer, and starts
    anew with each call of ``owner``.
    """

    module: nn.Module
    adapter: Adapter
    layers: tuple[str, ...]
    owner: nn.Module | None
    index: int


def find(model: nn.Module | None, extra: Sequence[Adapter] = ()) -> Quantizers:
    """Return the quantizers in a model: those that an adapter of ``extra``, ``register`` or the table matches.

    The model and modules in it may be wrapped (DistributedDataParallel, FullyShardedDataParallel, torch.compile,
    activation checkpointing); paths are those without the wrappers.
    """
    if model is None:
        return Quantizers((), (), ())
    known = (*extra, *families.adapters())
    with sharded.whole(model) as in_pieces:
        found = _find(bare(model), known, in_pieces)
    apart = ", ".join(layer.info.name for layer in found.layers if layer.sharded)
    if apart:
        _log.warning(
            "vqwatch: the codebooks of layers %s are sharded over ranks and left out; their codes are watched", apart
        )
    return found


def _find(model: nn.Module, known: Sequence[Adapter], in_pieces: frozenset[int]) -> Quantizers:
    layers: list[QuantizerLayer] = []
    sites: list[Site] = []
    inside: set[int] = set()  # ids of modules that belong to a layer
    beyond = 0
    for place in _places(model):
        if id(place.module) in inside:
            continue
        adapter = next((adapter for adapter in known if _matches(adapter, place.module)), None)
        if adapter is None:
            continue
        inside.update(id(module) for module in place.module.modules())
        members = adapter.members(place.module) if adapter.members else [place.module] * len(place.paths)
        paths = [f"{place.paths[0]}.{i}" for i in range(len(members))] if adapter.members else place.paths
        names = []
        for path, member in zip(paths, members, strict=True):
            if len(layers) == wire.MAX_LAYERS:
                beyond += 1
                continue
            layer = _layer(str(len(layers)), path, member, adapter, in_pieces)
            if layer is not None:
                layers.append(layer)
                names.append(layer.info.name)
        if len(names) == len(members):
            sites.append(Site(place.module, adapter, tuple(names), place.owner, place.index))
    if beyond:
        _log.warning("vqwatch: the first %d layers are watched, %d more are not", wire.MAX_LAYERS, beyond)
    return Quantizers(layers, _unknown(model, inside), sites)


@dataclass(frozen=True, slots=True)
class _Place:
    module: nn.Module
    paths: tuple[str, ...]  # several where one list holds the same module several times
    owner: nn.Module | None  # the nearest module above that is not a list
    index: int  # the position in that list


def _places(model: nn.Module) -> Iterator[_Place]:
    """Yield every module once, in the order in which they were defined, each before those inside it."""
    yield _Place(model, ("",), None, 0)
    yield from _below(model, "", None, {id(model)})


def _below(parent: nn.Module, prefix: str, above: nn.Module | None, seen: set[int]) -> Iterator[_Place]:
    owner = above if _is_list(parent) else parent
    places: dict[int, tuple[nn.Module, list[str], int]] = {}
    for index, (name, module) in enumerate(parent._modules.items()):
        if module is not None:
            module = bare(module)
            places.setdefault(id(module), (module, [], index))[1].append(f"{prefix}{name}")
    for key, (module, paths, index) in places.items():
        if key not in seen:
            seen.add(key)
            yield _Place(module, tuple(paths), owner, index)
            yield from _below(module, f"{paths[0]}.", owner, seen)


def _is_list(module: nn.Module) -> bool:
    return type(module).__name__ in ("ModuleList", "ModuleDict", "Sequential")


def _matches(adapter: Adapter, module: nn.Module) -> bool:
    try:
        return bool(adapter.matches(module))
    except Exception:
        _log.warning("vqwatch: the adapter for %s failed on %s", adapter.family, type(module).__name__, exc_info=True)
        return False


def _layer(
    name: str, path: str, module: nn.Module, adapter: Adapter, in_pieces: frozenset[int]
) -> QuantizerLayer | None:
    """Return the layer, or None (and a warning) where its tensors are not what the adapter expects."""
    try:
        codebook = adapter.tensors(module).get("codebook")
        codebook = codebook() if callable(codebook) else codebook
        if codebook is None or codebook.dim() not in (2, 3):
            raise ValueError(f"no codebook [K, D] or [H, K, D] in {path or 'the model itself'}")
        kind = adapter.kind if isinstance(adapter.kind, str) else adapter.kind(module)
        settings = adapter.settings(module) if adapter.settings else families.Settings()
        info = wire.Layer(name, kind, codebook.shape[-2], codebook.shape[-1], adapter.family, path, *settings)
        # A daemon that refuses the layer refuses the session: find out here.
        wire.decode(wire.encode(wire.Hello(wire.Origin("-", 0, "-"), 1, 1, 0, 1, (info,))))
        apart = codebook.is_meta and any(id(part) in in_pieces for part in module.modules())
        return QuantizerLayer(info, module, adapter, apart)
    except Exception:
        _log.warning("vqwatch: %s looks like %s but cannot be read", path, adapter.family, exc_info=True)
        return None


def _unknown(model: nn.Module, inside: set[int]) -> list[str]:
    """Return the paths of the innermost modules that look like quantizers, belong to no layer and contain none."""
    candidates = {
        path: module
        for path, module in model.named_modules()
        if families.looks_like_a_quantizer(module) and not any(id(part) in inside for part in module.modules())
    }
    ids = {id(module) for module in candidates.values()}
    return [
        without_wrappers(path) or type(module).__name__
        for path, module in candidates.items()
        if not any(id(part) in ids for part in module.modules() if part is not module)
    ]


def advice(unknown: Sequence[str]) -> str:
    """Return the log line for a model in which no quantizer was found, or some that match no adapter."""
    seen = (
        f"{', '.join(unknown)} look like quantizers of a family it does not know" if unknown else "no quantizer found"
    )
    return (
        f"vqwatch: {seen}; without codes= in step() their codes are not watched, everything else is. To teach it: "
        "vqwatch.codebooks.register(Adapter(family, matches, tensors)), see help(vqwatch.families)"
    )
