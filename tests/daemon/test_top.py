"""The terminal screen, against the real server over a daemon made for the test."""

from __future__ import annotations

import argparse
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from tests.daemon.web.fakes import FakeAlert, FakeDaemon, run_view, scrape
from tests.daemon.web.training import Training

from vqwatch_daemon import top
from vqwatch_daemon.top import Client, Unreachable, look
from vqwatch_daemon.top_screen import Screen
from vqwatch_daemon.web import Server, create_app, serve

EVIL = "[bold]x[/bold]\x1b[31m[link=http://another.example]y"


@pytest.fixture
def daemon() -> FakeDaemon:
    """A daemon whose run has collapsed in layer 3."""
    source = Training(0, collapse=900)
    return FakeDaemon(run_views=[run_view()], run_readings={"rq-512": source.readings(1000)}, run_alerts=[FakeAlert()])


@pytest.fixture
def server(daemon: FakeDaemon) -> Iterator[Server]:
    """The daemon, served."""
    with serve(create_app(daemon, metrics=scrape), port=0) as started:
        yield started


def printed(screen: Screen, view: Any, width: int = 120) -> str:
    """Return what the terminal would show."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(screen.draw(view, width))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def call(*words: str) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    top.add_arguments(parser)
    return top.run(parser.parse_args(words))


def test_one_screen_tells_verdict_tiles_layers_and_alerts(server: Server, capsys: Any) -> None:
    assert call(f"http://127.0.0.1:{server.port}", "--once") == 0
    shown = capsys.readouterr().out
    assert "Critical: CodebookCollapse is firing." in shown
    assert "rq-512" in shown
    assert "step 1,200" in shown
    assert "✕ critical" in shown
    assert "4% ✕" in shown, "layer 3 is told by a sign, not by colour alone"
    assert "The codebook of layer 3 collapsed." in shown


def test_an_address_without_scheme_will_do(server: Server, capsys: Any) -> None:
    assert call(f"127.0.0.1:{server.port}", "--once") == 0
    assert "rq-512" in capsys.readouterr().out


def test_no_run_yet_says_what_to_do(server: Server, daemon: FakeDaemon, capsys: Any) -> None:
    daemon.run_views = []
    assert call(f"127.0.0.1:{server.port}", "--once") == 0
    assert "vqwatch.attach(model)" in " ".join(capsys.readouterr().out.split())


def test_no_daemon_is_one_sentence(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert call(f"127.0.0.1:{taken.getsockname()[1]}", "--once") == 1
    error = capsys.readouterr().err
    assert error.startswith("vqwatch top: ")
    assert "refused" in error


def test_something_else_behind_the_address_is_told(capsys: Any) -> None:
    async def other(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"hello"})

    with serve(other, port=0) as server:
        assert call(f"127.0.0.1:{server.port}", "--once") == 1
    assert "does not answer like a vqwatch daemon" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "file:///etc/passwd"])
def test_only_http_addresses_are_asked(url: str) -> None:
    with pytest.raises(Unreachable, match="no address of a daemon"):
        Client(url)


def test_sparklines_grow_from_look_to_look(server: Server, daemon: FakeDaemon) -> None:
    client, screen, source = Client(f"127.0.0.1:{server.port}"), Screen(), Training(0)
    for step in range(0, 300, 30):
        daemon.run_readings["rq-512"] = source.readings(step)
        shown = printed(screen, look(client, None))
    assert "▁▃" in shown
    assert "█" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_fits_any_terminal(server: Server, width: int) -> None:
    shown = printed(Screen(), look(Client(f"127.0.0.1:{server.port}"), None), width)
    assert max(map(len, shown.splitlines())) <= width


def test_names_are_neither_markup_nor_control_characters(server: Server, daemon: FakeDaemon) -> None:
    readings = daemon.run_readings.pop("rq-512")
    readings["codebook_utilization_ratio"] = {(EVIL,): 0.5}
    daemon.run_views, daemon.run_readings = [run_view(EVIL)], {EVIL: readings}
    daemon.run_alerts = [FakeAlert(run=EVIL, name=EVIL, annotations={"summary": EVIL})]
    shown = printed(Screen(), look(Client(f"127.0.0.1:{server.port}"), None), 200)
    assert "\x1b" not in shown
    assert "[bold]x[/bold]" in shown


def test_lost_contact_is_told_beside_the_last_view(server: Server) -> None:
    view = look(Client(f"127.0.0.1:{server.port}"), None).without_contact("connection refused")
    assert "no contact: connection refused" in printed(Screen(), view, 160)


def test_a_wanted_run_is_shown_and_an_unknown_one_is_waited_for(server: Server) -> None:
    client = Client(f"127.0.0.1:{server.port}")
    assert look(client, "rq-512").run is not None
    assert look(client, "other").run is None
    assert threading.active_count() < 30
