"""A tiny training beside a daemon to which things happen."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).with_name("tiny_training.py")


class Training:
    """A process of ``tiny_training.py``; a context manager that ends it."""

    def __init__(self, endpoint: str, *options: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "VQWATCH_ENDPOINT": endpoint, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, word: str) -> None:
        """Wait until it prints ``word``."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"the training ended without {word!r}")

    def ended(self, word: str) -> bool:
        """Return whether it printed ``word`` by now, without waiting."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0.0)[0]:
            line = self._process.stdout.readline()
            if line.strip() == word:
                return True
            if not line:
                raise AssertionError(f"the training ended without {word!r}")
        return False

    def result(self) -> dict[str, Any]:
        """Wait for the end and return what it measured."""
        assert self._process.stdout is not None
        output = self._process.stdout.read()  # communicate() would not see what was read ahead
        assert self._process.wait(60.0) == 0
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
