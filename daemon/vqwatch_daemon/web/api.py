"""The JSON API: what the daemon knows, for the page and for scripts. Read-only; the shapes are in ``encode.py``.

=============================  =====================================================================================
``/api/runs``                  every run: name, step, state, ranks, layers
``/api/runs/{run}/readings``   the current readings
``/api/alerts``                alerts that are pending, firing or were resolved lately
=============================  =====================================================================================
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vqwatch_daemon.web import encode
from vqwatch_daemon.web.view import DaemonView


def answer(value: Any, status: int = 200) -> Response:
    """Return a JSON answer that no cache keeps."""
    return Response(encode.dumps(value), status, headers={"cache-control": "no-store"}, media_type="application/json")


def refused(status: int, reason: str) -> Response:
    """Return an error as JSON with a sentence for people."""
    return answer({"error": reason}, status)


def routes(view: DaemonView) -> list[Route]:
    """Return the routes below ``/api``; each runs in a worker thread."""

    def runs(_request: Request) -> Response:
        return answer([encode.run(item) for item in view.runs()])

    def readings(request: Request) -> Response:
        run = request.path_params["run"]
        values = view.readings(run)
        if values is None:
            return refused(404, f"no run named {run!r}")
        return answer(encode.readings(values))

    def alerts(_request: Request) -> Response:
        return answer([encode.alert(item) for item in view.alerts()])

    return [
        Route("/api/runs", runs),
        Route("/api/runs/{run:path}/readings", readings),
        Route("/api/alerts", alerts),
    ]
