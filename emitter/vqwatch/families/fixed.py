"""Families whose codebooks do not move by themselves: given by a rule, transformed as a whole, or never trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vqwatch.families.adapter import Adapter, Tensors, child, tensor
from vqwatch.families.averages import embed_and_average, has, inside, quotient

if TYPE_CHECKING:
    from torch import Tensor, nn


def _scalar_channels(layer: nn.Module, vectors: Tensor) -> int:
    return 1 if vars(layer).get("channel_first") or vectors.dim() >= 4 else -1


def _scale(owner: nn.Module, index: int) -> Tensor | None:
    scales = tensor(owner, "scales")
    return None if scales is None else scales[index]


FSQ: Final = Adapter(
    "fsq",
    lambda layer: "implicit_codebook" in layer._buffers,
    lambda layer: {"codebook": tensor(layer, "implicit_codebook")},
    "implicit",
    channels=_scalar_channels,
    scale=_scale,
)

LFQ: Final = Adapter(
    "lfq",
    lambda layer: "codebook" in layer._buffers and "mask" in layer._buffers,
    lambda layer: {"codebook": tensor(layer, "codebook")},
    "implicit",
    channels=_scalar_channels,
)


# SimVQ: the rows never change, the transformation of them is learned


def _transformed(layer: nn.Module) -> Tensors:
    import torch

    frozen, transform = tensor(layer, "frozen_codebook"), child(layer, "code_transform")
    if frozen is None or transform is None:
        return {}
    with torch.no_grad():
        return {"codebook": transform(frozen)}


SIMVQ: Final = Adapter(
    "simvq",
    lambda layer: "frozen_codebook" in layer._buffers,
    _transformed,
    "learned",
    channels=lambda layer, _vectors: 1 if vars(layer).get("channel_first") else -1,
)

# transformers' Encodec and Mimi: layers with encode and decode and no forward; their averages are never updated
TRANSFORMERS_ENCODEC: Final = Adapter(
    "transformers-encodec",
    has("codebook", "embed", "cluster_size"),
    inside("codebook", embed_and_average),
    "frozen",
    channels=1,
    methods=("encode",),
    decode="decode",
)
TRANSFORMERS_MIMI: Final = Adapter(
    "transformers-mimi",
    has("codebook", "embed_sum", "cluster_usage"),
    inside("codebook", quotient("embed_sum", "cluster_usage")),
    "frozen",
    channels=1,
    methods=("encode",),
    decode="decode",
)
