"""The page's live feed: one server-sent event a second, made once however many pages are open.

An event ``tick`` holds ``{"time", "runs", "alerts", "detail"}``; ``detail`` has, for each run that the page asked for
and that changed, its overview and its readings. A page that reads slowly misses ticks, it does not pile them up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from vqwatch_daemon.web import encode
from vqwatch_daemon.web.view import DaemonView

PERIOD_SECONDS: Final = 1.0
MOST_STREAMS: Final = 64
MOST_RUNS: Final = 8
_LATE_SECONDS: Final = 0.01  # a timer may fire early, and the same tick would be sent twice


class Feed:
    """Renders the parts of an event, each at most once per tick. ``stopping`` ends every stream."""

    def __init__(self, view: DaemonView, period: float = PERIOD_SECONDS) -> None:
        self.period = period
        self.stopping = threading.Event()
        self.streams = 0
        self._view = view
        self._limiter = CapacityLimiter(1)
        self._made: dict[str | None, tuple[int, bytes]] = {}

    def route(self) -> Route:
        """Return ``/api/events``; ``run=`` (repeatable) names the runs to tell about in detail."""
        return Route("/api/events", self._open)

    async def _open(self, request: Request) -> Response:
        if self.streams >= MOST_STREAMS:
            return Response("too many pages are open\n", 503, headers={"retry-after": "30"}, media_type="text/plain")
        runs = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_RUNS]
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(runs), headers=headers, media_type="text/event-stream")

    async def _events(self, runs: list[str]) -> AsyncIterator[bytes]:
        self.streams += 1
        sent: dict[str, bytes] = {}
        try:
            yield b"retry: 1000\n\n"
            while not self.stopping.is_set():
                tick = int(time.monotonic() / self.period)
                parts = []
                for run in runs:
                    part = await self._part(run, tick, lambda run=run: self._detail(run))  # type: ignore[misc]
                    if sent.get(run) is not part:
                        sent[run] = part
                        parts.append(encode.dumps(run) + b":" + part)
                general = await self._part(None, tick, self._general)
                yield b"event: tick\ndata: " + general[:-1] + b',"detail":{' + b",".join(parts) + b"}}\n\n"
                await asyncio.sleep((tick + 1) * self.period - time.monotonic() + _LATE_SECONDS)
        finally:
            self.streams -= 1

    async def _part(self, key: str | None, tick: int, render: Callable[[], bytes]) -> bytes:
        """Return the part made in this tick; the very same object as before when nothing in it changed."""
        made = self._made.get(key)
        if made is not None and made[0] == tick:
            return made[1]
        async with self._limiter:
            made = self._made.get(key)
            if made is not None and made[0] == tick:
                return made[1]
            part = await to_thread.run_sync(render)
            if made is not None and made[1] == part:
                part = made[1]
            self._made = {name: item for name, item in self._made.items() if item[0] >= tick - 5}
            self._made[key] = (tick, part)
            return part

    def _general(self) -> bytes:
        runs = [encode.run(item) for item in self._view.runs()]
        for run in runs:
            del run["layers"]  # they do not change; /api/runs has them
        alerts = [encode.alert(item) for item in self._view.alerts()]
        return encode.dumps({"time": time.time(), "runs": runs, "alerts": alerts})

    def _detail(self, run: str) -> bytes:
        values = self._view.readings(run)
        if values is None:
            return b"null"
        alerts = [item for item in self._view.alerts() if item.run == run]
        return encode.dumps({"overview": encode.overview(values, alerts), "readings": encode.readings(values)})
