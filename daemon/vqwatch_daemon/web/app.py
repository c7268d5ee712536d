"""The Starlette application: which path answers what. Read-only.

Scrapes and pages do not wait for each other: metrics are rendered under a limiter of their own, and everything that
asks the daemon runs in worker threads, so that the event loop only moves bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from vqwatch_daemon.web import api
from vqwatch_daemon.web.assets import Assets
from vqwatch_daemon.web.events import Feed
from vqwatch_daemon.web.middleware import SecurityHeaders
from vqwatch_daemon.web.runbooks import runbook_route
from vqwatch_daemon.web.view import DaemonView

Metrics: TypeAlias = Callable[[str], tuple[str, bytes]]
"""Takes the Accept header, returns the content type and the body of a scrape."""

SCRAPES_AT_ONCE = 2


def create_app(view: DaemonView, *, metrics: Metrics) -> Starlette:
    """Return the application that serves ``view`` and, under ``/metrics``, what ``metrics`` renders."""
    scrapes = CapacityLimiter(SCRAPES_AT_ONCE)

    async def scrape(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content_type, body = await to_thread.run_sync(metrics, accept, limiter=scrapes)
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    async def healthy(_request: Request) -> Response:
        return PlainTextResponse("vqwatch is healthy.\n")

    async def ready(_request: Request) -> Response:
        if await to_thread.run_sync(view.ready, limiter=scrapes):
            return PlainTextResponse("vqwatch is ready.\n")
        return PlainTextResponse("vqwatch is not ready yet.\n", status_code=503)

    assets = Assets()
    feed = Feed(view)
    app = Starlette(
        routes=[
            Route("/metrics", scrape),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *api.routes(view),
            feed.route(),
            runbook_route(view, assets),
            *assets.routes(),
        ],
        middleware=[Middleware(SecurityHeaders)],
    )
    app.state.stopping = feed.stopping  # the server sets it, so that event streams do not hold up its end
    return app
