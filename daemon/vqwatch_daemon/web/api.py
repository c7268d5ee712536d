"""The JSON API: what the daemon knows, for the page and for scripts. Read-only; the shapes are in ``encode.py``.

==============================  ====================================================================================
``/api/runs``                   every run, those that only the history knows last: name, step, state, ranks, layers
``/api/runs/{run}/readings``    the current readings (of a past run: the last ones)
``/api/runs/{run}/overview``    the tiles of the first screen and the sentence above them
``/api/runs/{run}/series``      curves: ``metric=`` (repeatable), ``start=``, ``end=``, ``by=step|time``, ``points=``
``/api/runs/{run}/usage``       how often each code was used: now, or at ``step=``; ``order=index|sorted``, ``columns=``
``/api/runs/{run}/usage/steps`` the steps at which the history holds usage
``/api/alerts``                 alerts that are pending, firing or were resolved lately
``/api/alerts/log``             alert transitions out of the history: ``run=``, ``limit=``
``/api/catalogue``              every metric: unit, help, labels, bands
==============================  ====================================================================================
"""

from __future__ import annotations

import gzip
import math
import sqlite3
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeAlias

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vqwatch_daemon.readings import Readings
from vqwatch_daemon.web import encode, usage
from vqwatch_daemon.web.view import DaemonView, HistoryView

QUESTIONS_AT_ONCE: Final = 4
MOST_METRICS: Final = 64
MOST_ENTRIES: Final = 1000
_COMPRESSED_FROM_BYTES: Final = 2048

Answer: TypeAlias = Callable[[Request], Any]


class Refused(Exception):
    """A question that cannot be answered: an HTTP status and a sentence for people."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def routes(view: DaemonView) -> list[Route]:
    """Return the routes below ``/api``; answers are made in worker threads, a few at a time."""
    limiter = CapacityLimiter(QUESTIONS_AT_ONCE)

    def answering(act: Answer) -> Callable[[Request], Any]:
        @wraps(act)
        async def endpoint(request: Request) -> Response:
            return await to_thread.run_sync(_answer, act, request, limiter=limiter)

        return endpoint

    def store() -> HistoryView:
        history = view.history()
        if history is None:
            raise Refused(404, "this daemon keeps no history (start it with --state)")
        return history

    def runs(_request: Request) -> Any:
        held = [encode.run(item) for item in view.runs()]
        names = {item["name"] for item in held}
        history = view.history()
        past = [] if history is None else [item for item in history.runs() if item["name"] not in names]
        return held + [{**item, "state": "past", "ranks": 0, "world_size": 0, "layers": []} for item in past]

    def last_readings(run: str) -> Readings:
        held = view.readings(run)
        history = view.history()
        values = history.latest(run) if held is None and history is not None else held
        if not values and held is None:
            raise Refused(404, f"no run named {run!r}")
        return values or {}

    def readings(request: Request) -> Any:
        return encode.readings(last_readings(_run(request)))

    def overview(request: Request) -> Any:
        run = _run(request)
        return encode.overview(last_readings(run), [item for item in view.alerts() if item.run == run])

    def series(request: Request) -> Any:
        query = request.query_params
        metrics = query.getlist("metric")
        if not 1 <= len(metrics) <= MOST_METRICS:
            raise Refused(400, f"metric: name 1 to {MOST_METRICS} metrics")
        by = query.get("by", "step")
        if by not in ("step", "time"):
            raise Refused(400, f"by: expected step or time, got {by!r}")
        return store().series(
            _run(request),
            metrics,
            start=_number(request, "start"),
            end=_number(request, "end"),
            points=_integer(request, "points", 400, 2, 5000),
            by=by,
        )

    def code_usage(request: Request) -> Any:
        run = _run(request)
        order = request.query_params.get("order", "index")
        if order not in ("index", "sorted"):
            raise Refused(400, f"order: expected index or sorted, got {order!r}")
        columns = _integer(request, "columns", 1024, 1, 4096)
        if "step" in request.query_params:
            found = store().usage_at(run, _integer(request, "step", 0, 0, 2**63 - 1))
        else:
            counts = view.usage(run)
            if counts is None:
                history = view.history()
                found = None if history is None else history.usage_at(run)
            else:
                found = {"step": None, "time": None, "layers": counts}
        if found is None:
            raise Refused(404, f"no code usage of {run!r} there")
        layers = {layer: usage.row(values, order, columns) for layer, values in found["layers"].items()}
        return {"step": found["step"], "time": found["time"], "order": order, "layers": layers}

    def usage_steps(request: Request) -> Any:
        return [list(item) for item in store().usage_steps(_run(request))]

    def alerts(_request: Request) -> Any:
        return [encode.alert(item) for item in view.alerts()]

    def alert_log(request: Request) -> Any:
        limit = _integer(request, "limit", 200, 1, MOST_ENTRIES)
        return store().alert_log(request.query_params.get("run"), limit=limit)

    def catalogue(_request: Request) -> Any:
        return encode.catalogue()

    return [
        Route("/api/runs", answering(runs)),
        Route("/api/runs/{run:path}/readings", answering(readings)),
        Route("/api/runs/{run:path}/overview", answering(overview)),
        Route("/api/runs/{run:path}/series", answering(series)),
        Route("/api/runs/{run:path}/usage/steps", answering(usage_steps)),
        Route("/api/runs/{run:path}/usage", answering(code_usage)),
        Route("/api/alerts", answering(alerts)),
        Route("/api/alerts/log", answering(alert_log)),
        Route("/api/catalogue", answering(catalogue)),
    ]


def _answer(act: Answer, request: Request) -> Response:
    try:
        status, value = 200, act(request)
    except Refused as refusal:
        status, value = refusal.status, {"error": str(refusal)}
    except (sqlite3.Error, OSError) as error:
        status, value = 503, {"error": f"the history cannot be read: {error}"}
    body = encode.dumps(encode.clean(value))
    headers = {"cache-control": "no-store", "vary": "accept-encoding"}
    if len(body) >= _COMPRESSED_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 5, mtime=0)
        headers["content-encoding"] = "gzip"
    return Response(body, status, headers=headers, media_type="application/json")


def _run(request: Request) -> str:
    run: str = request.path_params["run"]
    return run


def _number(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(400, f"{name}: expected a number, got {text!r:.40}")
    return value


def _integer(request: Request, name: str, default: int, low: int, high: int) -> int:
    value = _number(request, name)
    if value is None:
        return default
    if not low <= value <= high:
        raise Refused(400, f"{name}: expected a whole number from {low} to {high}")
    return int(value)
