"""The page's own files and plotly's script, as answers that a browser may keep.

Files are read and deflated once, when the application is made, and served below a path that holds a digest of them
all, so that a browser never asks twice and never mixes versions. plotly's script (4.8 MB) comes out of the installed
``plotly`` package; it is deflated in a worker thread when the first page is opened.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

FOR_EVER: Final = "public, max-age=31536000, immutable"
_TYPES: Final = {
    "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml",
    "html": "text/html; charset=utf-8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """One file, plain and deflated."""

    plain: bytes
    deflated: bytes
    content_type: str

    @classmethod
    def of(cls, plain: bytes, content_type: str) -> File:
        """Deflate a file once."""
        return cls(plain, gzip.compress(plain, 6, mtime=0), content_type)

    def response(self, request: Request, cache_control: str) -> Response:
        """Return the file in the encoding that the client takes, or 304 when it has it already."""
        tag = f'"{hashlib.sha256(self.plain).hexdigest()[:16]}"'
        headers = {"etag": tag, "cache-control": cache_control, "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        headers["content-type"] = self.content_type
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(self.deflated, headers=headers)
        return Response(self.plain, headers=headers)


class Assets:
    """Everything below ``/static``, and the documents that refer to it."""

    def __init__(self) -> None:
        folder = resources.files(__package__).joinpath("static")
        raw = {item.name: item.read_bytes() for item in folder.iterdir() if item.name.rpartition(".")[2] in _TYPES}
        digest = hashlib.sha256(b"".join(name.encode() + body for name, body in sorted(raw.items()))).hexdigest()[:12]
        self.plotly_version = _plotly_version()
        self._base = f"/static/{digest}"
        self._templates = {name: body.decode() for name, body in raw.items() if name.endswith(".html")}
        self._files = {
            name: File.of(body, _TYPES[name.rpartition(".")[2]])
            for name, body in raw.items()
            if not name.endswith(".html")
        }
        self._page = File.of(self.document("index.html").encode(), _TYPES["html"])
        self._plotly = _Once(_plotly_script)

    def document(self, name: str, *, title: str = "vqwatch", body: str = "") -> str:
        """Return a document with its places filled; ``body`` is HTML, ``title`` is text."""
        script = "" if self.plotly_version is None else f"/static/plotly-{self.plotly_version}.min.js"
        text = self._templates[name]
        places = {"{{static}}": self._base, "{{plotly}}": script, "{{title}}": html.escape(title), "{{body}}": body}
        for place, value in places.items():
            text = text.replace(place, value)
        return text

    def routes(self) -> list[Route]:
        """Return the routes of the page and of the files."""

        def page(request: Request) -> Response:
            threading.Thread(target=self._plotly.get, name="vqwatch-plotly", daemon=True).start()
            return self._page.response(request, "no-cache")

        def file(request: Request) -> Response:
            found = self._files.get(request.path_params["name"])
            return PlainTextResponse("no such file\n", 404) if found is None else found.response(request, FOR_EVER)

        def plotly(request: Request) -> Response:
            script = self._plotly.get()
            missing = "charts need the package plotly beside the daemon\n"
            return PlainTextResponse(missing, 404) if script is None else script.response(request, FOR_EVER)

        return [
            Route("/", page),
            Route(f"/static/plotly-{self.plotly_version}.min.js", plotly),
            Route(self._base + "/{name}", file),
        ]


class _Once:
    """A value that is made when first asked for, by whoever comes first."""

    def __init__(self, make: Callable[[], File | None]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made = False
        self._value: File | None = None

    def get(self) -> File | None:
        with self._lock:
            if not self._made:
                self._value, self._made = self._make(), True
            return self._value


def _plotly_version() -> str | None:
    try:
        return metadata.version("plotly")
    except metadata.PackageNotFoundError:
        return None


def _plotly_script() -> File | None:
    try:
        script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return File.of(script, _TYPES["js"])
