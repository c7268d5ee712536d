"""Who may import whom, asked of a fresh interpreter and of the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "vqwatch": ROOT / "emitter" / "vqwatch",
    "vqwatch_daemon": ROOT / "daemon" / "vqwatch_daemon",
    "vqwatch_rules": ROOT / "rules" / "vqwatch_rules",
}
ALLOWED = {"vqwatch": set(), "vqwatch_rules": set(), "vqwatch_daemon": {"vqwatch", "vqwatch_rules"}}


def imported(path: Path) -> set[str]:
    """Return the dotted names of every absolute import in a source file, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_whom_it_may(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
        others = {name for name in ours if name.split(".")[0] != package}
        assert {name.split(".")[0] for name in others} <= ALLOWED[package], f"{path} imports {others}"
        if package == "vqwatch_daemon":
            emitter = {name for name in others if name.split(".")[0] == "vqwatch"}
            assert all(name.startswith("vqwatch.wire") for name in emitter), f"{path} imports {emitter}"


def test_metrics_know_no_clock_socket_thread_or_prometheus() -> None:
    outside = {"time", "datetime", "socket", "zmq", "threading", "asyncio", "prometheus_client", "torch", "scipy"}
    for path in (PACKAGES["vqwatch_daemon"] / "metrics").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & outside, path


@pytest.mark.parametrize(
    "module", ["vqwatch", "vqwatch.wire", "vqwatch_daemon.app", "vqwatch_daemon.cli", "vqwatch_rules"]
)
def test_nothing_but_the_emitter_at_work_loads_torch(module: str) -> None:
    probe = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_the_emitter_loads_nothing_of_the_daemon() -> None:
    probe = (
        "import sys, vqwatch; sys.exit(any(n.startswith(('vqwatch_', 'pydantic', 'starlette')) for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_nothing_unpickles() -> None:
    for directory in PACKAGES.values():
        for path in directory.rglob("*.py"):
            names = imported(path)
            assert not names & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}, path
            assert "recv_pyobj" not in path.read_text(encoding="utf-8"), path
