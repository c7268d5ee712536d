"""Checkpoints, read without running what is in them, and put into a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors"})
NESTED: Final = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts put a model's state inside a larger checkpoint, tried in this order."""
STEPS: Final = ("step", "global_step", "iteration")
OLDEST_TORCH: Final = (2, 10)
"""Before it a file can run code or write to memory although only weights are asked for: CVE-2025-32434, -2026-24747."""
WRAPPERS: Final = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; ``damaged`` when that may be because it is not written to its end."""

    def __init__(self, text: str, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.damaged = damaged


def read(path: Path, device: str, *, unsafe_pickle: bool = False) -> tuple[dict[str, Tensor], int | None]:
    """Return a checkpoint's state by name, and the training step that it or its file's name tells.

    Nothing in the file is run: ``torch.load(weights_only=True)`` of a torch that keeps that promise
    (:data:`OLDEST_TORCH`) and safetensors, unless ``unsafe_pickle``. Raises :class:`CheckpointError`, and
    FileNotFoundError when the file is gone.
    """
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: none of the kinds {', '.join(sorted(SUFFIXES))}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device), step_in_name(path)
    loaded = _load(path, device, unsafe_pickle)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state by name")
    step = next((loaded[name] for name in STEPS if isinstance(loaded.get(name), int)), None)
    return _state(path, loaded), step_in_name(path) if step is None else step


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path, device=device)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}", damaged=True) from error
    return found


def _load(path: Path, device: str, unsafe_pickle: bool) -> Any:
    import torch

    if not unsafe_pickle and _release(torch.__version__) < OLDEST_TORCH:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot load it without trusting who wrote it (CVE-2026-24747): "
            f"upgrade to torch {_text(OLDEST_TORCH)}, save safetensors, or pass --unsafe-pickle if you do trust them"
        )
    try:
        return torch.load(path, map_location=device, weights_only=not unsafe_pickle)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises a dozen unrelated types for files that it cannot read
        first = str(error).strip().partition("\n")[0]
        if "Weights only load failed" in first and "Unsupported" in str(error):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, which only running code from it could restore. "
                "Save model.state_dict() or safetensors; --unsafe-pickle loads it as it is if you trust who wrote it"
            ) from error
        raise CheckpointError(f"{path}: {type(error).__name__}: {first}", damaged=True) from error


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with.

    >>> _release("2.9.1+cu128"), _release("2.10.0a0+git")
    ((2, 9, 1), (2, 10, 0))
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _state(path: Path, loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    for name in NESTED:
        inner = loaded.get(name)
        if isinstance(inner, Mapping) and inner:
            return _state(path, inner)
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise CheckpointError(f"{path}: no tensors, nor any under {', '.join(NESTED)}; it has: {list(loaded)[:10]}")
    return state


def put(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Put a state into a model, name for name. Raises :class:`CheckpointError` when they do not fit."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
    if missing or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the model: it lacks {_few(missing)} and has {_few(unexpected)} besides"
        )


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names) or "nothing"


def step_in_name(path: Path) -> int | None:
    """Return the step that a file's name ends with or names, None when it names none.

    >>> step_in_name(Path("epoch=3-step=1200.ckpt")), step_in_name(Path("model_000400.pt")), step_in_name(Path("x.pt"))
    (1200, 400, None)
    """
    named = re.search(r"step[=_-]?(\d+)", path.stem) or re.search(r"(\d+)$", path.stem)
    return int(named.group(1)) if named else None
