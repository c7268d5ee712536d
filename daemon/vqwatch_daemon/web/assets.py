"""The page and its files, read once from the package and served with an entity tag."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def page_routes() -> list[Route]:
    """Return the routes of the page and its files."""
    body = resources.files(__package__).joinpath("static/index.html").read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    def page(request: Request) -> Response:
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="text/html")

    return [Route("/", page)]
