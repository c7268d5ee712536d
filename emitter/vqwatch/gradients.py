"""Gradient norms by module, and codebook sketches: small tensors computed where the data is. Imports torch lazily."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .arrays import Refused
from .sharded import has_flat_gradients

if TYPE_CHECKING:
    import torch

MOST_MODULES: Final = 32
PART_PARAMETERS: Final = 32
SKETCH_SIZE: Final = 64
_SEED: Final = 0x76717763


def module_names(parameters: Sequence[str], most: int = MOST_MODULES) -> list[str]:
    """Return for each parameter the module that it is reported under: as deep as ``most`` names allow, up to 3 levels.

    >>> module_names(["encoder.0.weight", "encoder.0.bias", "decoder.weight"])
    ['encoder.0', 'encoder.0', 'decoder']
    """
    paths = [_plain(name).split(".")[:-1] for name in parameters]
    for depth in (3, 2, 1):
        names = [".".join(path[:depth]) or "model" for path in paths]
        if len(set(names)) <= most:
            return names
    return ["model"] * len(paths)


def _plain(name: str) -> str:
    for wrapper in ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "") if wrapper != "module." else name.removeprefix(wrapper)
    return name


class Gradients:
    """The parameters of a model and the modules that they are reported under.

    A norm costs the host some microseconds for each parameter, so that those of a large model are taken a part at a
    time: :attr:`parts` parts, each of whole modules. The parameters are looked up when gradients are first wanted:
    until the training begins, what shards a model may put others in their place.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    @functools.cached_property
    def _flat(self) -> bool:
        return has_flat_gradients(self._model)

    @functools.cached_property
    def _parts(self) -> list[list[tuple[str, torch.nn.Parameter]]]:
        named = [(name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        names = module_names([name for name, _ in named])
        by_name: dict[str, list[torch.nn.Parameter]] = {}
        for name, (_, parameter) in zip(names, named, strict=True):
            by_name.setdefault(name, []).append(parameter)
        parts: list[list[tuple[str, torch.nn.Parameter]]] = []
        for name, parameters in by_name.items():
            if not parts or len(parts[-1]) + len(parameters) > PART_PARAMETERS:
                parts.append([])
            parts[-1].extend((name, parameter) for parameter in parameters)
        return parts

    @property
    def parts(self) -> int:
        """Return how many parts there are."""
        return len(self._parts)

    def norms(self, part: int | None = None) -> tuple[torch.Tensor, list[str]] | None:
        """Return the norm of each parameter's gradient, float32 ``[n]`` on its device, and each one's module.

        Of one part, or of all where it is None. None where there are no gradients. Raises :class:`Refused` where they
        are sharded over ranks: a shard's norm is not the gradient's.
        """
        import torch

        gradients: list[torch.Tensor] = []
        names: list[str] = []
        for parameters in self._parts if part is None else [self._parts[part]]:
            for name, parameter in parameters:
                gradient = parameter.grad
                if gradient is None or gradient.layout is not torch.strided:
                    continue
                gradients.append(gradient)
                names.append(name)
        if not gradients:
            return None
        if self._flat or any(hasattr(gradient, "to_local") for gradient in gradients):
            raise Refused("sharded", "gradients are sharded over ranks; give grad_norm to step()")
        with torch.no_grad():
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            return torch.stack(norms), names


def by_module(norms: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Return each module's gradient norm from the norms of its parameters.

    >>> by_module([3.0, 4.0, 1.0], ["a", "a", "b"])
    {'a': 5.0, 'b': 1.0}
    """
    squares: dict[str, float] = {}
    for norm, name in zip(norms, names, strict=True):
        squares[name] = squares.get(name, 0.0) + norm * norm
    return {name: math.sqrt(square) if square == square else math.nan for name, square in squares.items()}


class Sketcher:
    """Linear sketches of codebooks: sums of the values with fixed signs, in :data:`SKETCH_SIZE` buckets.

    Equal codebooks have equal sketches on every rank, and the squared distance of two sketches is, on average, the
    squared distance of the codebooks (a count sketch: Charikar, Chen and Farach-Colton, 2002).
    """

    def __init__(self) -> None:
        self._signs: dict[Any, torch.Tensor] = {}

    def sketch(self, book: torch.Tensor) -> torch.Tensor:
        """Return the sketch, float32 ``[64]``, of a tensor of any shape, on its device."""
        import torch

        with torch.no_grad():
            values = book.reshape(-1)
            count = values.numel()
            rows = -(-count // SKETCH_SIZE)
            if rows * SKETCH_SIZE != count:
                values = torch.nn.functional.pad(values, (0, rows * SKETCH_SIZE - count))
            key = (rows, values.device)
            signs = self._signs.get(key)
            if signs is None:
                signs = self._signs[key] = torch.from_numpy(fixed_signs(rows)).to(values.device)
            sums: torch.Tensor = torch.linalg.vecdot(values.float().view(rows, SKETCH_SIZE), signs, dim=0)
            return sums


def fixed_signs(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the signs, ``[rows, 64]`` of +1 and -1, the same in every process."""
    words = np.random.PCG64(_SEED).random_raw(rows)
    bits = np.unpackbits(np.asarray(words, "<u8").view(np.uint8)).reshape(rows, SKETCH_SIZE)
    return bits.astype(np.float32) * 2 - 1
