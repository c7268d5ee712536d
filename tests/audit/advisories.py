"""Advisories from files, and a service on this machine that answers pip-audit out of them as osv.dev would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

KNOWN: Final = Path(__file__).with_name("known.yaml")

Advisory = dict[str, Any]
"""One advisory in OSV's form (https://ossf.github.io/osv-schema)."""


def known(path: Path = KNOWN) -> list[Advisory]:
    """Return the advisories that are kept here, in OSV's form."""
    return [_in_osv_form(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _in_osv_form(entry: dict[str, Any]) -> Advisory:
    end = {"last_affected": entry["last"]} if "last" in entry else {"fixed": entry["fixed"]}
    events = [{"introduced": str(entry.get("since", "0"))}, end]
    package = {"name": entry["package"], "ecosystem": "PyPI"}
    affected = [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
    return {"id": entry["id"], "aliases": entry.get("also", []), "summary": entry["what"], "affected": affected}


def of_checkout(directory: Path, packages: Sequence[str]) -> list[Advisory]:
    """Return what a checkout of PyPA's advisory database says of these packages. Raises FileNotFoundError."""
    vulns = directory / "vulns"
    if not vulns.is_dir():
        raise FileNotFoundError(f"{directory} is no checkout of an advisory database: it has no vulns/")
    wanted = {canonicalize_name(name) for name in packages}
    folders = [path for path in vulns.iterdir() if canonicalize_name(path.name) in wanted]
    return [yaml.safe_load(file.read_text("utf-8")) for folder in folders for file in sorted(folder.glob("*.yaml"))]


def against(advisories: Sequence[Advisory], package: str, version: str) -> list[Advisory]:
    """Return the advisories that a release of a package is affected by.

    >>> [advisory["id"] for advisory in against(known(), "MsgPack", "1.2.0")], against(known(), "msgpack", "1.2.1")
    (['GHSA-6v7p-g79w-8964'], [])
    """
    return [advisory for advisory in advisories if not advisory.get("withdrawn") and any(
        canonicalize_name(affected["package"]["name"]) == canonicalize_name(package) and _is_in(affected, version)
        for affected in advisory.get("affected", ())
    )]  # fmt: skip


def _is_in(affected: dict[str, Any], version: str) -> bool:
    if version in affected.get("versions", ()):
        return True
    return any(_within(item["events"], Version(version)) for item in affected.get("ranges", ())
               if item["type"] == "ECOSYSTEM")  # fmt: skip


def _within(events: Sequence[dict[str, str]], version: Version) -> bool:
    """Follow the events in the order of their versions, as OSV's specification says."""
    inside = False
    for kind, at in sorted(
        ((kind, at) for event in events for kind, at in event.items()), key=lambda item: _of(item[1])
    ):
        if kind == "introduced" and version >= _of(at):
            inside = True
        elif (kind == "fixed" and version >= _of(at)) or (kind == "last_affected" and version > _of(at)):
            inside = False
    return inside


def _of(text: str) -> Version:
    try:
        return Version(text)
    except (
        InvalidVersion
    ):  # "0" is one; anything else unreadable is taken for the earliest, which errs on the safe side
        return Version("0")


@contextmanager
def service(advisories: Sequence[Advisory]) -> Iterator[str]:
    """Answer OSV's queries on this machine; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = against(advisories, query["package"]["name"], query["version"])
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="advisories", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()
