"""Real text that every machine has: the documentation of Python's own standard library, as batches of features.

One document per module, in the order of its docstrings; every sentence is a frame. A frame's features are its hashed
character unigrams and bigrams (square roots of counts, unit length) through a fixed random projection, scaled to unit
power over the corpus: neighbouring frames differ as speech or text features do, and lengths vary from 8 sentences to
thousands. Sources are parsed, never imported. Nothing here depends on the seed of the training.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DIM = 20
BUCKETS = 2048
SHORTEST_DOCUMENT = 8
SHORTEST_SENTENCE = 12
HELD_OUT_EVERY = 10
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Corpus:
    """Documents as one flat array: ``features`` [frames, D]; document i is ``starts[i]:starts[i + 1]``."""

    features: Tensor
    starts: tuple[int, ...]

    def windows(self, length: int) -> list[Tensor]:
        """Return every document cut into pieces of at most ``length`` frames, in order; stubs are left out."""
        spans = (
            (at, min(at + length, end))
            for start, end in zip(self.starts, self.starts[1:], strict=False)
            for at in range(start, end, length)
        )
        return [self.features[start:end] for start, end in spans if end - start >= SHORTEST_DOCUMENT]


def sentences(source: bytes) -> list[str]:
    """Return the sentences of all docstrings in a Python source; none where it cannot be parsed.

    >>> sentences(b'def f():\\n    "Say hello to the world. Then say goodbye."')
    ['Say hello to the world.', 'Then say goodbye.']
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders))
    pieces = (piece for text in docstrings if text for piece in re.split(r"(?<=[.!?:])\s+|\n\s*\n", text))
    tidy = (" ".join(piece.split()) for piece in pieces)
    return [sentence for sentence in tidy if len(sentence) >= SHORTEST_SENTENCE]


def read_library() -> list[list[str]]:
    """Return the documents of this interpreter's standard library, sorted by path."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = (p for p in sorted(library.rglob("*.py")) if not _SKIPPED.intersection(p.relative_to(library).parts))
    documents = (sentences(path.read_bytes()) for path in paths)
    return [document for document in documents if len(document) >= SHORTEST_DOCUMENT]


def featurize(frames: list[str]) -> Array:
    """Return [len(frames), DIM] features of unit mean power; the same text gives the same features on every machine."""
    counts = np.zeros((len(frames), BUCKETS), np.float32)
    for row, sentence in zip(counts, frames, strict=True):
        letters = np.frombuffer(sentence.lower().encode(), np.uint8).astype(np.uint64)
        grams = np.concatenate([letters + np.uint64(1), letters[:-1] * np.uint64(1000003) + letters[1:]])
        hashed = (grams * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)  # Fibonacci hashing, wraps on purpose
        row[:] = np.bincount((hashed % np.uint64(BUCKETS)).astype(np.int64), minlength=BUCKETS)
    rows = np.sqrt(counts)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    projection = np.random.default_rng(20260219).normal(size=(BUCKETS, DIM)).astype(np.float32)
    features: Array = rows @ projection
    features /= np.sqrt(np.mean(features**2))
    return features


def load() -> tuple[Corpus, Corpus]:
    """Return the corpora for training and for validation (every tenth document), from the cache where there is one."""
    cache = _cache_path()
    try:
        with np.load(cache, allow_pickle=False) as stored:
            features, lengths = stored["features"], stored["lengths"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        documents = read_library()
        features = featurize([sentence for document in documents for sentence in document])
        lengths = np.array([len(document) for document in documents])
        _write_cache(cache, features, lengths)
    pieces = np.split(features, np.cumsum(lengths)[:-1])
    held_out = pieces[::HELD_OUT_EVERY]
    kept = [piece for number, piece in enumerate(pieces) if number % HELD_OUT_EVERY]
    return _corpus(kept), _corpus(held_out)


def _corpus(pieces: list[Array]) -> Corpus:
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    return Corpus(torch.from_numpy(np.concatenate(pieces)), tuple(int(start) for start in starts))


def _cache_path() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = ".".join(str(part) for part in sys.version_info[:3])
    return root / "vqwatch" / f"documents-{version}-{DIM}.npz"


def _write_cache(path: Path, features: Array, lengths: npt.NDArray[np.int64]) -> None:
    """Write the whole file, then name it, so that nobody reads a half; a read-only home is no reason to fail."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, features=features, lengths=lengths)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


def pad(windows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return the windows as ``[B, T, D]``, zeros behind their ends, and the mask ``[B, T]`` of their real frames."""
    features = torch.zeros(len(windows), length, DIM)
    mask = torch.zeros(len(windows), length, dtype=torch.bool)
    for number, window in enumerate(windows):
        features[number, : len(window)] = window
        mask[number, : len(window)] = True
    return features, mask


def batches(corpus: Corpus, batch_size: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches without end: features ``[B, T, D]`` and mask ``[B, T]``; the seed decides the order."""
    windows = corpus.windows(length)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator).tolist()
        for at in range(0, len(order) - batch_size + 1, batch_size):
            yield pad([windows[i] for i in order[at : at + batch_size]], length)
