"""Everything that is served over HTTP: metrics, health, the JSON API, live events and the page.

>>> from vqwatch_daemon.web import create_app, serve

Knows no socket of the trainer's, no rule engine and no store: it sees the daemon through :class:`DaemonView`.
"""

from __future__ import annotations

from vqwatch_daemon.web.app import create_app
from vqwatch_daemon.web.server import Server, serve
from vqwatch_daemon.web.view import AlertView, DaemonView, HistoryView, RunView

__all__ = ["AlertView", "DaemonView", "HistoryView", "RunView", "Server", "create_app", "serve"]
