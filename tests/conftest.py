"""Fixtures for everybody: real servers on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.servers import Alertmanager, Prometheus, Webhook, require_server

settings.register_profile("patient", deadline=None)  # how fast a shared machine is today is no property of the code
settings.load_profile("patient")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A receiver of Alertmanager's notifications."""
    with Webhook() as receiver:
        yield receiver


@pytest.fixture
def start_alertmanager(tmp_path: Path, webhook: Webhook) -> Iterator[Callable[..., Alertmanager]]:
    """Start as many Alertmanagers as a test needs: ``start_alertmanager(config=None)``."""
    require_server(Alertmanager.program)
    with ExitStack() as stack:
        started: list[Alertmanager] = []

        def start(config: dict[str, Any] | None = None) -> Alertmanager:
            server = Alertmanager(tmp_path / f"alertmanager{len(started)}", webhook.url, config)
            started.append(stack.enter_context(server))
            return server

        yield start


@pytest.fixture
def alertmanager(start_alertmanager: Callable[..., Alertmanager]) -> Alertmanager:
    """A real Alertmanager that notifies the webhook at once."""
    return start_alertmanager()


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    """Start as many Prometheus servers as a test needs: ``start_prometheus(["127.0.0.1:9815"], rule_files=[...])``."""
    require_server(Prometheus.program)
    with ExitStack() as stack:
        started: list[Prometheus] = []

        def start(targets: list[str], **options: Any) -> Prometheus:
            server = Prometheus(tmp_path / f"prometheus{len(started)}", targets, **options)
            started.append(stack.enter_context(server))
            return server

        yield start


@pytest.fixture
def prometheus(start_prometheus: Callable[..., Prometheus]) -> Prometheus:
    """A real Prometheus that scrapes nothing, for questions of syntax."""
    return start_prometheus([])
