"""A daemon for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.watching import Daemon


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start as many daemons as a test needs: ``start_daemon("--alertmanager", url, state=True)``."""
    with ExitStack() as stack:
        started: list[Daemon] = []

        def start(*options: str, **more: Any) -> Daemon:
            daemon = Daemon(tmp_path / f"daemon{len(started)}", options, **more)
            started.append(stack.enter_context(daemon))
            return daemon

        yield start
