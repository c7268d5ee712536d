"""How many codes the codebooks of a model have, told from its tensors; ``--codebook-size`` says it otherwise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

_CODEBOOK: Final = re.compile(r"(^|_)(codebook|codebooks|embed|embedding|embeddings|codes)($|_)")
_NOT_ONE: Final = re.compile(r"(avg|sum|ema|mean|pos)")
_QUANTIZER: Final = re.compile(r"(quant|codebook|\bvq|vq\b|rvq)", re.IGNORECASE)


class CodebooksUnknown(ValueError):
    """The codebooks' sizes cannot be told from the model."""


def sizes(model: nn.Module, layers: int, given: int | None) -> tuple[int, ...]:
    """Return the number of codes of each of so many layers. Raises :class:`CodebooksUnknown`."""
    if given is not None:
        return (given,) * layers
    found = [size for name, module in model.named_modules() if (size := _size(name, module)) is not None]
    if len(found) == layers:
        return tuple(found)
    if len(set(found)) == 1:  # one codebook that all layers share, or a few that are not codebooks but as large
        return (found[0],) * layers
    raise CodebooksUnknown(f"{layers} layers of codes, and codebooks of {found or 'no'} codes; say --codebook-size")


def _size(name: str, module: nn.Module) -> int | None:
    """Return the codes of a module's own codebook, None when it has none."""
    if type(module).__name__ == "Embedding":
        owner = name.rpartition(".")[0]
        weight: Tensor = module.get_parameter("weight")
        return int(weight.shape[0]) if _QUANTIZER.search(owner) else None
    for own, tensor in [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]:
        if _CODEBOOK.search(own) and not _NOT_ONE.search(own) and tensor.dim() in (2, 3):
            return int(tensor.shape[-2])
    return None
