"""Nothing that we read can run code: no pickle in any form, asked of every source that is installed or shown."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("emitter", "daemon", "rules", "deploy") for path in (ROOT / folder).rglob("*.py"))

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
CALLS = {"recv_pyobj", "send_pyobj", "recv_serialized", "read_pickle", "to_pickle", "unsafe_load", "full_load"}
ASKED_BY_NAME = {"checkpoints.py"}
"""`vqwatch evaluate --unsafe-pickle` is the user's own word about the user's own file."""


def unsafe(tree: ast.AST, *, asked: bool = False) -> Iterator[str]:
    """Yield what in a source could run code that came with data."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] in MODULES or "pickle" in name)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        last = called.rpartition(".")[2]
        if last in CALLS or called in ("yaml.load", "eval", "exec"):
            yield called
        if "allow_pickle" in given and ast.unparse(given["allow_pickle"]) != "False":
            yield f"{called}(allow_pickle=...)"
        if called == "torch.load" and not asked and ast.unparse(given.get("weights_only", node)) != "True":
            yield "torch.load without weights_only=True"
        if called in ("__import__", "import_module", "importlib.import_module"):
            yield from (word.value for word in node.args if isinstance(word, ast.Constant) and word.value in MODULES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_what_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(unsafe(tree, asked=path.name in ASKED_BY_NAME)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle as c",
        "from multiprocessing.reduction import ForkingPickler; import _pickle",
        "socket.recv_pyobj()",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=chosen)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "import_module('pickle')",
        "eval(text)",
    ],
)
def test_each_form_of_it_would_be_seen(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 100
