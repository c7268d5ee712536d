"""The real server under clients that mean no good, and the live feed as a browser gets it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.daemon.web.fakes import FakeAlert, run_view, scrape

from vqwatch_daemon.web import Server, create_app, serve
from vqwatch_daemon.web import server as server_module


@pytest.fixture
def server(fake: Any) -> Iterator[Server]:
    """The fake daemon, served on a free port of loopback."""
    with serve(create_app(fake, metrics=scrape), port=0) as started:
        yield started


def get(server: Server, path: str = "/metrics", timeout: float = 5.0) -> tuple[int, bytes]:
    """Ask once, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.alone
def test_two_hundred_idle_connections_do_not_stop_a_scrape(server: Server) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        started = time.perf_counter()
        assert get(server) == (200, b"vqwatch_runs 1.0\n")
        assert time.perf_counter() - started < 1.0
        assert threading.active_count() <= threads + 8


def test_slow_writers_and_readers_do_not_stop_a_scrape(server: Server) -> None:
    with ExitStack() as stack:
        for i in range(50):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            half = b"GET /metrics HTT" if i % 2 else b"GET /api/events HTTP/1.1\r\nhost: x\r\n\r\n"
            client.sendall(half)
        assert get(server)[0] == 200


def test_a_client_that_never_asks_is_shown_out(fake: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(server_module, "FIRST_REQUEST_SECONDS", 0.2)
    app = create_app(fake, metrics=scrape)
    with serve(app, port=0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET /metrics HTT")
        assert client.recv(100) == b""


def test_beyond_the_limit_the_longest_idle_makes_room(fake: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 20)
    with serve(create_app(fake, metrics=scrape), port=0) as server, ExitStack() as stack:
        clients = []
        for _ in range(30):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5)))
            time.sleep(0.002)
        assert get(server)[0] == 200
        assert clients[0].recv(10) == b""


def test_a_port_in_use_is_an_error_where_it_can_be_caught(server: Server, fake: Any) -> None:
    with pytest.raises(OSError, match="in use"):
        serve(create_app(fake, metrics=scrape), port=server.port)


def test_headers_without_end_are_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000)
        assert client.recv(100).startswith(b"HTTP/1.1 4")


def ticks(server: Server, query: str, count: int) -> list[dict[str, Any]]:
    """Listen to the feed for some ticks."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", f"/api/events{query}")
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    found: list[dict[str, Any]] = []
    while len(found) < count:
        line = answer.readline()
        if line.startswith(b"data: "):
            found.append(json.loads(line[6:]))
    connection.close()
    return found


@pytest.mark.alone
def test_the_feed_tells_about_runs_alerts_and_the_run_asked_for(server: Server, fake: Any) -> None:
    fake.run_alerts = [FakeAlert()]
    started = time.perf_counter()
    (tick,) = ticks(server, "?run=rq-512&run=nobody", 1)
    assert time.perf_counter() - started < 1.0, "the first tick comes at once"
    assert [run["name"] for run in tick["runs"]] == ["rq-512"]
    assert [alert["name"] for alert in tick["alerts"]] == ["CodebookCollapse"]
    assert tick["detail"]["rq-512"]["overview"]["verdict"] == "critical"
    assert tick["detail"]["rq-512"]["readings"]["loss"]["values"] == [["total", 1.25], ["vq", "NaN"]]
    assert tick["detail"]["nobody"] is None


def test_a_run_that_did_not_change_is_not_told_again(server: Server) -> None:
    first, second = ticks(server, "?run=rq-512", 2)
    assert "rq-512" in first["detail"]
    assert second["detail"] == {}


def test_many_pages_cost_one_rendering_per_tick(server: Server, fake: Any) -> None:
    asked = []
    readings = fake.readings
    fake.readings = lambda run: asked.append(time.monotonic()) or readings(run)
    threads = [threading.Thread(target=ticks, args=(server, "?run=rq-512", 3)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(asked) <= 5


@pytest.mark.alone
def test_an_open_feed_does_not_hold_up_the_end(fake: Any) -> None:
    fake.run_views = [run_view()]
    server = serve(create_app(fake, metrics=scrape), port=0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/api/events")
    connection.getresponse().readline()
    started = time.perf_counter()
    server.close()
    assert time.perf_counter() - started < 3
    connection.close()
