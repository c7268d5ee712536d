"""Runbooks as pages: Markdown in, HTML out, with raw HTML in the text shown and not obeyed."""

from __future__ import annotations

import html
from typing import Final

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from vqwatch_daemon.web.assets import Assets
from vqwatch_daemon.web.view import DaemonView

_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False}).enable("table")


def rendered(markdown: str) -> str:
    """Return the HTML of a runbook.

    >>> rendered("# A <b>\\n\\n[x](javascript:alert)")
    '<h1>A &lt;b&gt;</h1>\\n<p>[x](javascript:alert)</p>\\n'
    """
    return str(_MARKDOWN.render(markdown))


def runbook_route(view: DaemonView, assets: Assets) -> Route:
    """Return ``/runbooks/{name}``."""

    def runbook(request: Request) -> Response:
        name = request.path_params["name"]
        text = view.runbook(name)
        if text is None:
            body = f"<h1>No runbook</h1><p>No runbook is shipped for <code>{html.escape(name)}</code>.</p>"
            return HTMLResponse(assets.document("runbook.html", title="No runbook", body=body), 404)
        return HTMLResponse(assets.document("runbook.html", title=name, body=rendered(text)))

    return Route("/runbooks/{name}", runbook)
