"""The table of quantizer families: for each, how to recognise a layer and where it keeps what.

    register(Adapter(
        family="mine",
        matches=lambda module: type(module).__name__ == "MyQuantizer",
        tensors=lambda module: {"codebook": module.weight, "cluster_size": module.counts},
    ))

teaches vqwatch a family it does not know (call it before ``attach``). A layer is the module whose call maps vectors
to codes; the codebook may be its own or a child's. Tensors are looked up by name each time they are asked for: some
libraries replace them at every step, and some have properties that change the module when read.

Knows no hook and no emitter. torch is needed only by the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    for a codebook moved by averages, "cluster_size" [K] or [H, K] and "embedding_sum" shaped like the codebook.
    ``kind`` is one of ``wire.CODEBOOK_KINDS``, or says which. ``method`` is what is called to assign codes: "forward", or a method
    that is wrapped where the family defines no forward. ``channels`` is the axis of the channels in the layer's
    input, or says which. ``scale(owner, index)`` is the factor by which a residual stack divided what the layer got.
    """

    family: str
    matches: Callable[[nn.Module], bool]
    tensors: Callable[[nn.Module], Mapping[str, Tensor | None]]
    kind: str | Callable[[nn.Module], str] = "ema"
    settings: Callable[[nn.Module], Settings] | None = None
    channels: int | Callable[[nn.Module, Tensor], int] = -1
    method: str = "forward"
    members: Callable[[nn.Module], Sequence[nn.Module]] | None = None
    scale: Callable[[nn.Module, int], Tensor | None] | None = None


_registered: list[Adapter] = []


def register(adapter: Adapter) -> Callable[[], None]:
    """Put an adapter before those that vqwatch knows; return a function that takes it back."""
    _registered.insert(0, adapter)
    return lambda: _registered.remove(adapter) if adapter in _registered else None


def adapters() -> tuple[Adapter, ...]:
    """Return every adapter, the first that matches wins: those of :func:`register`, then :data:`TABLE`."""
    return (*_registered, *TABLE)


def tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter, buffer or plain tensor attribute by its name, or None. Runs no property."""
    for store in (module._parameters, module._buffers, vars(module)):
        value: Tensor | None = store.get(name)
        if value is not None and hasattr(value, "untyped_storage"):
            return value
    return None


def child(module: nn.Module, name: str) -> nn.Module | None:
    """Return a direct child by its name, or None. Runs no property."""
    return module._modules.get(name)


def named(module: nn.Module, *, codebook: str, cluster_size: str, embedding_sum: str) -> dict[str, Tensor | None]:
    """Return the tensors of a module under the names that :class:`Adapter` wants."""
    return {
        "codebook": tensor(module, codebook),
        "cluster_size": tensor(module, cluster_size),
        "embedding_sum": tensor(module, embedding_sum),
    }


def number(module: nn.Module, name: str) -> float | None:
    """Return a plain number attribute, or None when there is none or it is 0 (which turns the thing off)."""
    value = vars(module).get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else None


# --- codebooks moved by averages, held by a child called _codebook ----------------------------------------------


def _book(layer: nn.Module) -> nn.Module | None:
    return child(layer, "_codebook")


def _book_has(*names: str, dimensions: int) -> Callable[[nn.Module], bool]:
    def matches(layer: nn.Module) -> bool:
        book = _book(layer)
        if book is None:
            return False
        first = tensor(book, names[0])
        return first is not None and first.dim() == dimensions and all(tensor(book, name) is not None for name in names)

    return matches


def _of_book(read: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    def of_layer(layer: nn.Module) -> Any:
        book = _book(layer)
        assert book is not None
        return read(book)

    return of_layer


def _lucidrains_kind(book: nn.Module) -> str:
    if book._parameters.get("embed") is not None:
        return "learned"
    return "ema" if vars(book).get("ema_update", True) else "frozen"


def _lucidrains_channels(layer: nn.Module, _vectors: Tensor) -> int:
    state = vars(layer)
    image = state.get("accept_image_fmap") or state.get("accept_3d_fmap")
    return 1 if image or not state.get("channel_last", True) else -1


def _absolute(book: nn.Module) -> Settings:
    return Settings(number(book, "decay"), number(book, "threshold_ema_dead_code"))


def _embed(book: nn.Module) -> dict[str, Tensor | None]:
    return named(book, codebook="embed", cluster_size="cluster_size", embedding_sum="embed_avg")


def _beams(stack: nn.Module) -> bool:
    layers = child(stack, "layers")
    return (number(stack, "beam_size") or 0) > 1 and layers is not None and len(layers._modules) > 0


def _layers_of(stack: nn.Module) -> tuple[nn.Module, ...]:
    layers = child(stack, "layers")
    return tuple(layers.children()) if layers is not None else ()


def mean_of_sums(sums: str, counts: str) -> Callable[[nn.Module], dict[str, Tensor | None]]:
    """Return a reader of a codebook that is kept as sums and counts only: their quotient, computed when read."""

    def read(book: nn.Module) -> dict[str, Tensor | None]:
        import torch

        total, count = tensor(book, sums), tensor(book, counts)
        if total is None or count is None:
            return {}
        epsilon = number(book, "epsilon") or 1e-5
        with torch.no_grad():
            codebook = total / count.clamp(min=epsilon)[:, None]
        return {"codebook": codebook, "cluster_size": count, "embedding_sum": total}

    return read


def _moshi_settings(book: nn.Module) -> Settings:
    return Settings(number(book, "decay"), None, number(book, "threshold_usage_ratio"))


# --- codebooks learned by gradient, held by a child that is an nn.Embedding -------------------------------------

_QUANTIZER_NAME: Final = re.compile(r"[Qq]uanti[sz]|[Cc]ode[Bb]ook|VQ")


def looks_like_a_quantizer(module: nn.Module) -> bool:
    """Return whether the name of the module's class speaks of quantizing vectors (torch's own speak of integers)."""
    kind = type(module)
    return _QUANTIZER_NAME.search(kind.__name__) is not None and not kind.__module__.startswith("torch.")


def _table(layer: nn.Module, *names: str) -> nn.Module | None:
    """Return the child that holds rows in ``weight``, by the first of the names that is one."""
    for name in names:
        module = child(layer, name)
        if module is not None and (weight := tensor(module, "weight")) is not None and weight.dim() == 2:
            return module
    return None


def _factorized(layer: nn.Module) -> bool:
    return _table(layer, "codebook") is not None and child(layer, "in_proj") is not None


def _embedding_table(layer: nn.Module) -> bool:
    """A quantizer by name, with rows; a whole model with an embedding of its own has more children than three."""
    rows = _table(layer, "embedding", "embed", "codebook")
    return rows is not None and looks_like_a_quantizer(layer) and len(layer._modules) <= 3


def _table_tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    table = _table(layer, "embedding", "embed", "codebook")
    assert table is not None
    if tensor(table, "cluster_size") is not None:
        return named(table, codebook="weight", cluster_size="cluster_size", embedding_sum="embed_avg")
    return {"codebook": tensor(table, "weight")}


def _table_kind(layer: nn.Module) -> str:
    table = _table(layer, "embedding", "embed", "codebook")
    assert table is not None
    if tensor(table, "cluster_size") is not None:
        return "ema"
    weight = tensor(table, "weight")
    return "learned" if weight is not None and weight.requires_grad else "frozen"


def _table_channels(_layer: nn.Module, vectors: Tensor) -> int:
    return 1 if vectors.dim() == 4 else -1


def _projected_table(layer: nn.Module) -> bool:
    return _embedding_table(layer) and child(layer, "out_proj") is not None


def _projected_tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    import torch

    table, project = _table(layer, "embedding"), child(layer, "out_proj")
    weight = tensor(table, "weight") if table is not None else None
    if weight is None or project is None:
        return {}
    with torch.no_grad():
        return {"codebook": project(weight)}


# --- codebooks of the layer itself ------------------------------------------------------------------------------

_SIZES: Final = ("cluster_size", "ema_cluster_size", "cluster_usage", "cluster_size_ema")
_BOOKS: Final = ("embedding", "embed", "codebook", "weight", "centroids")
_SUMS: Final = ("embed_avg", "embedding_sum", "embed_sum", "ema_w", "ema_weight", "embed_ema")


def _first(module: nn.Module, names: Sequence[str]) -> Tensor | None:
    return next((value for name in names if (value := tensor(module, name)) is not None), None)


def _own_averages(layer: nn.Module) -> bool:
    size, book = _first(layer, _SIZES), _first(layer, _BOOKS)
    return size is not None and book is not None and size.dim() == 1 and len(size) in book.shape


def _own_tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    size, book, total = _first(layer, _SIZES), _first(layer, _BOOKS), _first(layer, _SUMS)
    if size is not None and book is not None and book.shape[0] != len(size):  # kept as [D, K]
        book, total = book.t(), None if total is None else total.t()
    return {"codebook": book, "cluster_size": size, "embedding_sum": total}


def _own_settings(layer: nn.Module) -> Settings:
    threshold = number(layer, "threshold_ema_dead_code") or number(layer, "dead_code_threshold")
    return Settings(number(layer, "decay"), threshold)


def _padded(layer: nn.Module) -> bool:
    size, weight = tensor(layer, "cluster_size_ema"), tensor(layer, "weight")
    return size is not None and weight is not None and weight.shape[0] == len(size) + 1


def _padded_tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    tensors = named(layer, codebook="weight", cluster_size="cluster_size_ema", embedding_sum="embed_ema")
    weight = tensors["codebook"]
    return {**tensors, "codebook": None if weight is None else weight[:-1]}  # the last row is padding


def _padded_settings(layer: nn.Module) -> Settings:
    return Settings(number(layer, "decay"), 1.0 if vars(layer).get("restart_unused_codes") else None)


def _jukebox(layer: nn.Module) -> bool:
    return "k" in layer._buffers and "k_elem" in vars(layer)


def _jukebox_tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    return named(layer, codebook="k", cluster_size="k_elem", embedding_sum="k_sum")


# --- codebooks given by a rule ----------------------------------------------------------------------------------


def _scalar_channels(layer: nn.Module, vectors: Tensor) -> int:
    return 1 if vars(layer).get("channel_first") or vectors.dim() >= 4 else -1


def _scalar_scale(owner: nn.Module, index: int) -> Tensor | None:
    scales = tensor(owner, "scales")
    return None if scales is None else scales[index]


def _lookup_free(layer: nn.Module) -> bool:
    return "codebook" in layer._buffers and "mask" in layer._buffers


def _transformed(layer: nn.Module) -> dict[str, Tensor | None]:
    import torch

    frozen, transform = tensor(layer, "frozen_codebook"), child(layer, "code_transform")
    if frozen is None or transform is None:
        return {}
    with torch.no_grad():
        return {"codebook": transform(frozen)}


def _flag_channels(layer: nn.Module, _vectors: Tensor) -> int:
    return 1 if vars(layer).get("channel_first") else -1


# --- codebooks of models that define no forward -----------------------------------------------------------------


def _encodes_only(*names: str) -> Callable[[nn.Module], bool]:
    def matches(layer: nn.Module) -> bool:
        book = child(layer, "codebook")
        return (
            book is not None
            and hasattr(type(layer), "encode")
            and hasattr(type(layer), "decode")
            and all(tensor(book, name) is not None for name in names)
        )

    return matches


def _of_codebook(read: Callable[[nn.Module], dict[str, Tensor | None]]) -> Callable[[nn.Module], dict[str, Any]]:
    def of_layer(layer: nn.Module) -> dict[str, Any]:
        book = child(layer, "codebook")
        assert book is not None
        return read(book)

    return of_layer


TABLE: Final[tuple[Adapter, ...]] = (
    Adapter(
        "vector-quantize-pytorch", _beams, _of_book(_embed), _of_book(_lucidrains_kind), _of_book(_absolute),
        members=_layers_of,
    ),
    Adapter(
        "vector-quantize-pytorch", _book_has("embed", "cluster_size", dimensions=3), _of_book(_embed),
        _of_book(_lucidrains_kind), _of_book(_absolute), _lucidrains_channels,
    ),
    Adapter(
        "encodec", _book_has("embed", "cluster_size", dimensions=2), _of_book(_embed),
        settings=_of_book(_absolute), channels=1,
    ),
    Adapter(
        "moshi", _book_has("embedding_sum", "cluster_usage", dimensions=2),
        _of_book(mean_of_sums("embedding_sum", "cluster_usage")), settings=_of_book(_moshi_settings),
        channels=1,
    ),
    Adapter(
        "transformers-encodec", _encodes_only("embed", "cluster_size"), _of_codebook(_embed), "frozen",
        channels=1, method="encode",
    ),
    Adapter(
        "transformers-mimi", _encodes_only("embed_sum", "cluster_usage"),
        _of_codebook(mean_of_sums("embed_sum", "cluster_usage")), "frozen", channels=1, method="encode",
    ),
    Adapter("descript-audio-codec", _factorized, _table_tensors, _table_kind, channels=1),
    Adapter("rq-vae-transformer", _padded, _padded_tensors, settings=_padded_settings),
    Adapter("rq-vae-recommender", _projected_table, _projected_tensors, "learned"),
    Adapter("embedding-table", _embedding_table, _table_tensors, _table_kind, channels=_table_channels),
    Adapter(
        "jukebox", _jukebox, _jukebox_tensors, channels=1,
        settings=lambda layer: Settings(number(layer, "mu"), number(layer, "threshold")),
    ),
    Adapter("fsq", lambda layer: "implicit_codebook" in layer._buffers,
            lambda layer: {"codebook": tensor(layer, "implicit_codebook")},
            "implicit", channels=_scalar_channels, scale=_scalar_scale),
    Adapter("lfq", _lookup_free, lambda layer: {"codebook": tensor(layer, "codebook")}, "implicit",
            channels=_scalar_channels),
    Adapter("simvq", lambda layer: "frozen_codebook" in layer._buffers, _transformed, "learned",
            channels=_flag_channels),
    Adapter("averages", _own_averages, _own_tensors, settings=_own_settings),
)  # fmt: skip
"""Every family that vqwatch knows; the first that matches wins."""
