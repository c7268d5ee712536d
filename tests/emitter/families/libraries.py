"""Imports of quantizer libraries, without what their packages drag in: torchaudio, flashy and the like.

``encodec``, ``speechtokenizer``, ``moshi`` and ``dac`` import torchaudio (or more) in their ``__init__``; their
quantizers do not. So the package is put in place without running that file. audiocraft's quantizer also uses
``flashy.distrib.broadcast_tensors``, which does nothing in a single process: a stand-in does the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest


def absent(reason: str) -> BaseException:
    """Return what to raise where a library is missing: a skip, and under CI a failure."""
    kind = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    return kind.Exception(reason)


def skeleton(name: str) -> None:
    """Put a package in place so that its submodules can be imported, without running its ``__init__``."""
    if name in sys.modules:
        return
    parent, _, _ = name.rpartition(".")
    spec = importlib.util.find_spec(name) if not parent else None
    if parent:
        paths = [f"{path}/{name.rpartition('.')[2]}" for path in sys.modules[parent].__path__]
    elif spec is None or spec.submodule_search_locations is None:
        raise absent(f"{name} is not installed")
    else:
        paths = list(spec.submodule_search_locations)
    package = types.ModuleType(name)
    package.__path__ = paths
    sys.modules[name] = package


def audiocraft() -> Any:
    if "flashy" not in sys.modules:
        flashy = types.ModuleType("flashy")
        flashy.distrib = types.SimpleNamespace(broadcast_tensors=lambda _tensors: None)  # type: ignore[attr-defined]
        sys.modules["flashy"] = flashy
    skeleton("audiocraft")
    return importlib.import_module("audiocraft.quantization.vq")


def library(name: str, *packages: str) -> Any:
    """Return a module of a package whose parents are put in place only."""
    for package in packages:
        skeleton(package)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise absent(str(error)) from error


def version(distribution: str) -> str:
    """Return the installed version of a distribution; "stand-in" for the families that have none."""
    return metadata.version(distribution) if distribution else "stand-in"


OLD_LUCIDRAINS = "1.14.24"
"""The last line of vector-quantize-pytorch whose classes are called EuclideanCodebook and CosineSimCodebook."""


@contextmanager
def older(name: str, release: str) -> Iterator[None]:
    """Let a package be imported in an older release, from ``families/<distribution>-<release>`` in the environment."""
    folder = Path(sys.prefix) / "families" / f"{name.replace('_', '-')}-{release}"
    if not folder.is_dir():
        distribution, _, _ = folder.name.rpartition("-")
        raise absent(f"{folder} is missing: pip install --no-deps --target {folder} {distribution}=={release}")
    stashed = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == name}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for key in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(stashed)
