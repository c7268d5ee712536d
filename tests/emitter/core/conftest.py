"""Peers and emitters that are gone after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.emitter.core.hand import Peer, until

import vqwatch


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    """An endpoint of this test's own."""
    return f"ipc://{tmp_path}/peer.sock"


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    """Make peers that are gone after the test."""
    made: list[Peer] = []

    def make(endpoint: str, **options: Any) -> Peer:
        made.append(Peer(endpoint, **options))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


@pytest.fixture
def peer(peers: Callable[..., Peer], endpoint: str) -> Peer:
    """A peer that answers."""
    return peers(endpoint)


@pytest.fixture
def attached(peer: Peer) -> Iterator[Callable[..., vqwatch.Emitter]]:
    """Attach to the peer, wait for the connection, and close after the test."""
    made: list[vqwatch.Emitter] = []

    def attach(*arguments: Any, **options: Any) -> vqwatch.Emitter:
        options = {"run": "test", "budget": float("inf"), **options}
        made.append(vqwatch.attach(*arguments, endpoint=peer.endpoint, **options))
        until(lambda: peer.kinds()["hello"] >= len(made), lambda: (made[-1].flush(0.0), peer.take(1)))
        made[-1].flush(0.2)
        return made[-1]

    yield attach
    for emitter in made:
        emitter.close(0.0)
