"""What is fuzzed: one function for each way in, which raises for a defect and for nothing else."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.daemon.web.fakes import FakeDaemon, run_view, scrape
from tests.fuzz.seeds import split

from vqwatch.wire import WireError, decode, decode_each, encode, unbundle
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.web import create_app
from vqwatch_rules import RuleError, load

Target = Callable[[bytes], None]

_MEMORY = "/dev/shm"
_ADDRESS = re.compile(rb"/[\x21-\x7e]*")
_HEADER = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")


def wire(data: bytes) -> None:
    """Take frames apart and decode them: messages, or WireError.

    What was taken is not more than what came, and what was decoded can be encoded and says the same then.
    """
    frames = split(data)
    try:
        messages = unbundle(frames)
    except WireError:
        return
    assert sum(memoryview(part).nbytes for parts in messages for part in parts) <= sum(map(len, frames))
    for parts in messages:
        try:
            found = decode_each([bytes(part) for part in parts])
        except WireError:
            continue
        for message in found:
            again = decode(encode(message))
            assert repr(again) == repr(message) or "nan" in repr(message)


def rules() -> Target:
    """Return a target that loads a rule file by itself (the shipped pack takes 40 ms): a rule set, or RuleError."""
    names = {name: metric.labels for name, metric in CATALOGUE.items()}
    path = Path(tempfile.mkdtemp(prefix="fuzz", dir=_MEMORY if Path(_MEMORY).is_dir() else None)) / "rules.yaml"

    def target(data: bytes) -> None:
        path.write_bytes(b"extends: nothing\n" + data)
        try:
            load([path], names)
        except RuleError:
            return

    return target


def http() -> Target:
    """Return a target that asks the application: any answer but one of 500 and above."""
    fake = FakeDaemon(
        run_views=[run_view()],
        run_readings={"rq-512": {"loss": {("total",): 1.0}}},
        run_usage={"rq-512": {"0": [1, 2]}},
        runbooks={"CodebookCollapse": "# x\n"},
    )
    app = create_app(fake, metrics=scrape)
    app.state.stopping.set()  # event streams end at once
    loop = asyncio.new_event_loop()

    def target(data: bytes) -> None:
        first, *rest = data.split(b"\n")
        if not _ADDRESS.fullmatch(first):  # the HTTP parser in front lets nothing else through
            return
        path, _, query = first.partition(b"?")
        lines = (line.partition(b":") for line in rest)
        headers = [(name.lower(), value.strip()) for name, _, value in lines if _HEADER.fullmatch(name)]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": unquote(path.decode("ascii")), "raw_path": path, "query_string": query, "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        loop.run_until_complete(asyncio.wait_for(_ask(app, scope), 5.0))

    return target


async def _ask(app: Any, scope: dict[str, Any]) -> None:
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] < 500, message

    await app(scope, receive, send)


TARGETS: dict[str, Callable[[], Target]] = {"wire": lambda: wire, "rules": rules, "http": http}
