"""Families whose codebooks are learned by gradient: rows of an nn.Embedding beside the layer, or a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vqwatch.families.adapter import Adapter, Settings, Tensors, child, looks_like_a_quantizer, named, number, tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROWS: Final = ("embedding", "embed", "codebook")


def _rows(layer: nn.Module) -> nn.Module | None:
    """Return the child that holds rows in ``weight``."""
    for name in _ROWS:
        module = child(layer, name)
        if module is not None and (weight := tensor(module, "weight")) is not None and weight.dim() == 2:
            return module
    return None


def _has_rows(layer: nn.Module) -> bool:
    """Whether a layer is a quantizer by name and has rows; a model that embeds tokens has more children than three."""
    return looks_like_a_quantizer(layer) and len(layer._modules) <= 3 and _rows(layer) is not None


def _tensors(layer: nn.Module) -> dict[str, Tensor | None]:
    rows = _rows(layer)
    if rows is None:
        return {}
    return named(rows, codebook="weight", cluster_size="cluster_size", embedding_sum="embed_avg")


def _kind(layer: nn.Module) -> str:
    tensors = _tensors(layer)
    if tensors.get("cluster_size") is not None:
        return "ema"
    weight = tensors.get("codebook")
    return "learned" if weight is not None and weight.requires_grad else "frozen"


def _settings(layer: nn.Module) -> Settings:
    rows = _rows(layer)
    return Settings(None if rows is None else number(rows, "decay"))


# descript-audio-codec and transformers' Dac: rows are looked up in a space of their own, normalised
DAC: Final = Adapter(
    "descript-audio-codec",
    lambda layer: None not in (child(layer, "in_proj"), child(layer, "codebook"), _rows(layer)),
    _tensors,
    _kind,
    channels=1,
)


# RQ-VAE-Recommender: what is compared with the input is a projection of the rows


def _projected(layer: nn.Module) -> bool:
    return _has_rows(layer) and child(layer, "out_proj") is not None


def _projected_tensors(layer: nn.Module) -> Tensors:
    import torch

    weight, project = _tensors(layer).get("codebook"), child(layer, "out_proj")
    if weight is None or project is None:
        return {}
    with torch.no_grad():
        return {"codebook": project(weight)}


RECOMMENDER: Final = Adapter("rq-vae-recommender", _projected, _projected_tensors, _kind)

LC_REC: Final = Adapter("lc-rec", lambda layer: "sk_epsilon" in vars(layer) and _has_rows(layer), _tensors, _kind)


# taming-transformers and the many layers written after it, images [B, C, h, w] or vectors [..., C]


def _image_channels(_layer: nn.Module, vectors: Tensor) -> int:
    return 1 if vectors.dim() == 4 else -1


TAMING: Final = Adapter("taming-transformers", _has_rows, _tensors, _kind, _settings, _image_channels)


# GRID: layers are called by name, not through forward; until a buffer is full every code is 0


def _ready(layer: nn.Module) -> bool:
    state = vars(layer)
    return bool(state.get("is_initialized", True) or state.get("is_initial_step"))


GRID: Final = Adapter(
    "grid",
    lambda layer: tensor(layer, "centroids") is not None and hasattr(type(layer), "model_step"),
    lambda layer: {"codebook": tensor(layer, "centroids")},
    "learned",
    methods=("model_step", "predict_step"),
    ready=_ready,
)
