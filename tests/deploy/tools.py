"""Running the tools that check what is under deploy/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import require_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    """Return the path of a tool, from beside the running Python or from the PATH; skip the test without it."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or require_server(name)


def run(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a tool in the repository's root and return what it said; its exit code is the caller's business."""
    return subprocess.run(
        [tool(name), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def passes(name: str, *arguments: object, **environment: str) -> str:
    """Run a tool that has to exit with 0; return its output."""
    done = run(name, *arguments, **environment)
    assert done.returncode == 0, f"{name} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
