"""A tree of numbers, texts and arrays in one file, and back. Knows nothing of what the tree means.

The file is a zip archive as numpy writes it: the arrays one by one, and the tree around them as JSON. Every member has
a CRC-32, which reading checks. Nothing is ever unpickled. The file appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

VERSION: Final = 1

_TREE: Final = "tree"
_ARRAY: Final = "\0array"
"""Marks the place of an array in the tree; no name from outside can begin with a control character."""


class Damaged(ValueError):
    """A file that cannot be read back; the message says why."""


def write(path: Path, tree: dict[str, Any]) -> int:
    """Write a tree of dicts, lists, numbers, texts, None and arrays; return the bytes written.

    Raises OSError, with nothing left behind. Arrays must not change meanwhile.
    """
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps({"version": VERSION, "tree": _put(tree, arrays)}, separators=(",", ":"))
    temporary = path.with_name(f"{path.name}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **{_TREE: np.frombuffer(text.encode(), np.uint8)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def read(path: Path) -> dict[str, Any]:
    """Return what :func:`write` wrote, tuples as lists. Raises :class:`Damaged`, or OSError where nothing is there."""
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                document = json.loads(archive[_TREE].tobytes())
                if document["version"] != VERSION:
                    raise Damaged(f"{path}: version {document['version']!r}, this daemon reads {VERSION}")
                tree = _take(document["tree"], archive)
        except Exception as error:  # numpy, zipfile and json raise a dozen unrelated types, MemoryError among them
            raise Damaged(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise Damaged(f"{path}: holds no tree")
    return tree


def _put(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {key: _put(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_put(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _take(value: Any, archive: Any) -> Any:
    if isinstance(value, dict):
        return archive[value[_ARRAY]] if _ARRAY in value else {key: _take(item, archive) for key, item in value.items()}
    if isinstance(value, list):
        return [_take(item, archive) for item in value]
    return value
