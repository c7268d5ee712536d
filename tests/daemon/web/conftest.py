"""A fake daemon, and a client of its application."""

from __future__ import annotations

import httpx
import pytest
from starlette.testclient import TestClient
from tests.daemon.web.fakes import FakeDaemon, run_view, scrape

from vqwatch_daemon.web import create_app


@pytest.fixture
def fake() -> FakeDaemon:
    """A daemon that holds one healthy run."""
    return FakeDaemon(
        run_views=[run_view()],
        run_readings={
            "rq-512": {
                "codebook_perplexity": {(str(i),): 200.0 - i for i in range(8)},
                "loss": {("total",): 1.25, ("vq",): float("nan")},
                "reconstruction_snr_db": {(): 16.5},
            }
        },
        run_usage={"rq-512": {str(i): [i + 1] * 256 for i in range(8)}},
        runbooks={"CodebookCollapse": "# CodebookCollapse\n\n## Meaning\n\nNearly all codes are dead.\n"},
    )


@pytest.fixture
def client(fake: FakeDaemon) -> httpx.Client:
    """A client of the fake daemon's application."""
    return TestClient(create_app(fake, metrics=scrape))
