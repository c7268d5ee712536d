"""Families whose codebooks are moved by exponential averages of the vectors assigned to each code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vqwatch.families.adapter import (
    Adapter,
    Settings,
    Tensors,
    bare,
    child,
    first,
    looks_like_a_quantizer,
    named,
    number,
    tensor,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor, nn


def inside(name: str, read: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """Return ``read`` applied to a layer's child of that name."""

    def of_layer(layer: nn.Module) -> Any:
        book = child(layer, name)
        assert book is not None
        return read(book)

    return of_layer


def has(name: str, *tensors: str, dimensions: int = 2) -> Callable[[nn.Module], bool]:
    """Return a matcher of layers with a child of that name that holds these tensors, the first [K, D] or [H, K, D]."""

    def matches(layer: nn.Module) -> bool:
        book = child(layer, name)
        found = [] if book is None else [tensor(book, each) for each in tensors]
        return (
            bool(found)
            and all(each is not None and each.dim() <= dimensions for each in found)
            and (found[0] is not None and found[0].dim() == dimensions)
        )

    return matches


def embed_and_average(book: nn.Module) -> Tensors:
    """Return the tensors of the layout that most implementations share: embed, cluster_size, embed_avg."""
    return named(book, codebook="embed", cluster_size="cluster_size", embedding_sum="embed_avg")


def quotient(sums: str, counts: str) -> Callable[[nn.Module], Tensors]:
    """Return a reader of a codebook that is kept as sums and counts only: their quotient, computed when read."""

    def read(book: nn.Module) -> Tensors:
        import torch

        total, count = tensor(book, sums), tensor(book, counts)
        if total is None or count is None:
            return {}

        def codebook() -> Tensor:
            with torch.no_grad():
                return total / count.clamp(min=number(book, "epsilon") or 1e-5)[:, None]

        return {"codebook": codebook, "cluster_size": count, "embedding_sum": total}

    return read


def _absolute(book: nn.Module) -> Settings:
    return Settings(number(book, "decay"), number(book, "threshold_ema_dead_code"))


# vector-quantize-pytorch: the codebook is [H, K, D]; one book may serve all layers; a beam search calls the layers
# with candidates, so that only the stack knows which codes were chosen.


def _lucidrains_kind(book: nn.Module) -> str:
    if book._parameters.get("embed") is not None:
        return "learned"
    return "ema" if vars(book).get("ema_update", True) else "frozen"


def _lucidrains_channels(layer: nn.Module, _vectors: Tensor) -> int:
    state = vars(layer)
    image = state.get("accept_image_fmap") or state.get("accept_3d_fmap")
    return 1 if image or not state.get("channel_last", True) else -1


def _beams(stack: nn.Module) -> bool:
    layers = _layers_of(stack)
    return bool(layers) and (number(stack, "beam_size") or 0) > 1 and all(map(LUCIDRAINS.matches, layers))


def _layers_of(stack: nn.Module) -> tuple[nn.Module, ...]:
    layers = child(stack, "layers")
    return () if layers is None else tuple(map(bare, layers.children()))


LUCIDRAINS: Final = Adapter(
    "vector-quantize-pytorch",
    has("_codebook", "embed", "cluster_size", dimensions=3),
    inside("_codebook", embed_and_average),
    inside("_codebook", _lucidrains_kind),
    inside("_codebook", _absolute),
    _lucidrains_channels,
)
LUCIDRAINS_BEAMS: Final = Adapter(
    LUCIDRAINS.family, _beams, LUCIDRAINS.tensors, LUCIDRAINS.kind, LUCIDRAINS.settings, members=_layers_of
)

# encodec, audiocraft, speechtokenizer and their descendants
ENCODEC: Final = Adapter(
    "encodec",
    has("_codebook", "embed", "cluster_size"),
    inside("_codebook", embed_and_average),
    settings=inside("_codebook", _absolute),
    channels=1,
)


# moshi (Mimi): the property ``embedding`` registers a buffer, and the next forward throws it away


def _relative(book: nn.Module) -> Settings:
    return Settings(number(book, "decay"), None, number(book, "threshold_usage_ratio"))


MOSHI: Final = Adapter(
    "moshi",
    has("_codebook", "embedding_sum", "cluster_usage"),
    inside("_codebook", quotient("embedding_sum", "cluster_usage")),
    settings=inside("_codebook", _relative),
    channels=1,
)


# rq-vae-transformer: an nn.Embedding with one row more than codes, the last one padding


def _padded(layer: nn.Module) -> bool:
    rows, weight = vars(layer).get("n_embed"), tensor(layer, "weight")
    return isinstance(rows, int) and weight is not None and len(weight) == rows + 1 and looks_like_a_quantizer(layer)


def _padded_tensors(layer: nn.Module) -> Tensors:
    tensors = named(layer, codebook="weight", cluster_size="cluster_size_ema", embedding_sum="embed_ema")
    weight = tensors["codebook"]
    return {**tensors, "codebook": None if weight is None else weight[:-1]}


def _padded_kind(layer: nn.Module) -> str:
    return "learned" if tensor(layer, "cluster_size_ema") is None else "ema"


def _padded_settings(layer: nn.Module) -> Settings:
    return Settings(number(layer, "decay"), 1.0 if vars(layer).get("restart_unused_codes") else None)


RQ_VAE_TRANSFORMER: Final = Adapter("rq-vae-transformer", _padded, _padded_tensors, _padded_kind, _padded_settings)


# jukebox: the sums are plain attributes, None before the first batch


def _jukebox(layer: nn.Module) -> bool:
    return "k" in layer._buffers and "k_elem" in vars(layer)


JUKEBOX: Final = Adapter(
    "jukebox",
    _jukebox,
    lambda layer: named(layer, codebook="k", cluster_size="k_elem", embedding_sum="k_sum"),
    settings=lambda layer: Settings(number(layer, "mu"), number(layer, "threshold")),
    channels=1,
)

# everything else that keeps a codebook and its averages in the layer itself: the proposal's VectorQuantizerEMA,
# sonnet's, the one of vq-vae-2 (which keeps it as [D, K])

_SIZES: Final = ("cluster_size", "ema_cluster_size", "cluster_usage", "cluster_size_ema", "ema_count")
_BOOKS: Final = ("embedding", "embed", "codebook", "weight", "centroids")
_SUMS: Final = ("embed_avg", "embedding_sum", "embed_sum", "ema_w", "ema_weight", "embed_ema")


def _own(layer: nn.Module) -> bool:
    size, book = first(layer, _SIZES), first(layer, _BOOKS)
    return size is not None and book is not None and size.dim() == 1 and book.dim() == 2 and len(size) in book.shape


def _own_tensors(layer: nn.Module) -> Tensors:
    size, book, total = first(layer, _SIZES), first(layer, _BOOKS), first(layer, _SUMS)
    if size is not None and book is not None and book.shape[0] != len(size):
        book, total = book.t(), None if total is None else total.t()
    return {"codebook": book, "cluster_size": size, "embedding_sum": total}


def _own_settings(layer: nn.Module) -> Settings:
    return Settings(
        number(layer, "decay"), number(layer, "threshold_ema_dead_code", "dead_code_threshold", "revival_threshold")
    )


OWN: Final = Adapter("ema", _own, _own_tensors, settings=_own_settings)
