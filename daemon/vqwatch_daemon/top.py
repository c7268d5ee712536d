"""``vqwatch top``: the first screen of the page in a terminal, against any daemon's address.

Asks the daemon's JSON API once a second; needs nothing but the address, which may be the end of an SSH tunnel.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from rich.console import Console
from rich.live import Live

from vqwatch_daemon.top_screen import Screen, View

DEFAULT_URL: Final = "http://127.0.0.1:9815"
TIMEOUT_SECONDS: Final = 5.0
MOST_BYTES: Final = 32 * 1024 * 1024
_SPARKS: Final = ("codebook_utilization_ratio", "codebook_perplexity", "reconstruction_snr_db", "loss", "gradient_norm")


class Unreachable(Exception):
    """The daemon did not answer as a daemon does; the message says what happened."""


class Client:
    """Asks a daemon's JSON API; every failure is an :class:`Unreachable`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unreachable(f"{url!r} is no address of a daemon; expected something like {DEFAULT_URL}")
        self.url = parts.geturl().rstrip("/")
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = build_opener(*([ProxyHandler({})] if here else []))  # no proxy knows the way to this machine

    def ask(self, path: str, parameters: Sequence[tuple[str, str]] = ()) -> Any:
        """Return the answer to ``/api/path``; None where the daemon knows nothing of it."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        request = Request(f"{self.url}/api/{path}{query}", headers={"accept": "application/json"})
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return printable(json.loads(answer.read(MOST_BYTES)))
        except HTTPError as error:
            if error.code == 404:
                return None
            raise Unreachable(f"{self.url} answered {error.code} {error.reason}") from error
        except (URLError, HTTPException, OSError) as error:
            raise Unreachable(f"{self.url}: {getattr(error, 'reason', error)}") from error
        except ValueError as error:
            raise Unreachable(f"{self.url} does not answer like a vqwatch daemon") from error


def printable(value: Any) -> Any:
    """Return a JSON value whose texts hold nothing that a terminal obeys.

    >>> printable({"a": ["x\\x1b[31m"]})
    {'a': ['x�[31m']}
    """
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else "�" for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


def look(client: Client, wanted: str | None) -> View:
    """Return what the first screen shows of the run ``wanted``, else of the one heard of last."""
    runs: list[Mapping[str, Any]] = client.ask("runs") or []
    alerts: list[Mapping[str, Any]] = client.ask("alerts") or []
    held = [run for run in runs if run.get("state") != "past"] or runs
    run = next((item for item in runs if item["name"] == wanted), None) if wanted else next(iter(held), None)
    if run is None:
        return View(client.url, len(runs), None, None, {}, alerts)
    where = f"runs/{quote(run['name'], safe='')}"
    return View(
        client.url, len(runs), run, client.ask(f"{where}/overview"), client.ask(f"{where}/readings") or {}, alerts
    )


def remember(client: Client, screen: Screen, run: str) -> None:
    """Fill the screen's sparklines with the run's past, where the daemon keeps one."""
    where = f"runs/{quote(run, safe='')}/series"
    screen.begin(client.ask(where, [*(("metric", metric) for metric in _SPARKS), ("points", "60")]) or {})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the terminal screen."""
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help=f"address of the daemon (default: {DEFAULT_URL})")
    parser.add_argument("--run", help="name of the run (default: the one heard of last)")
    parser.add_argument("--once", action="store_true", help="print one screen and end")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Show the screen until interrupted; 1 when the daemon cannot be reached at the beginning."""
    console = Console()
    screen = Screen()
    try:
        client = Client(arguments.url)
        view = look(client, arguments.run)
        if view.run is not None:
            remember(client, screen, view.run["name"])
    except Unreachable as error:
        sys.stderr.write(f"vqwatch top: {error}\n")
        return 1
    if arguments.once or not console.is_terminal:
        console.print(screen.draw(view, console.width))
        return 0
    with suppress(KeyboardInterrupt):
        _watch(client, screen, view, arguments, console)
    return 0


def _watch(client: Client, screen: Screen, view: View, arguments: argparse.Namespace, console: Console) -> None:
    shown = view.run["name"] if view.run else None
    with Live(screen.draw(view, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(max(0.2, arguments.interval))
            try:
                view = look(client, arguments.run)
                if view.run is not None and view.run["name"] != shown:
                    shown = view.run["name"]
                    screen = Screen()
                    remember(client, screen, shown)
            except Unreachable as error:
                view = view.without_contact(str(error))
            live.update(screen.draw(view, console.width), refresh=True)
