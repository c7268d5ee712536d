"""Asks every request for a password or a token. Pure ASGI, so that streams pass through untouched.

A password is checked by bcrypt once, which is slow on purpose, and then known by a keyed hash in memory; one check runs
at a time, in a thread, so that guessing costs the daemon no more than one core and holds up no scrape that is known.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vqwatch_daemon.web_config import WebConfig

KNOWN_AT_MOST: Final = 256
LONGEST_PASSWORD: Final = 72
"""Bytes of a password that bcrypt looks at."""

_NOBODY: Final = b"$2b$12$C6UzMDM.H6dfI/f/IKcEeO7gbKBL7PzjLzzP6iY4SPFlxQ3BXUB6S"
"""Checked for users who do not exist, so that they take as long as those who do."""


class Authentication:
    """Lets requests through that carry what ``config`` asks for; others get 401 and nothing else."""

    def __init__(self, app: ASGIApp, config: WebConfig) -> None:
        self._app = app
        self._config = config
        self._salt = secrets.token_bytes(32)
        self._known: set[bytes] = set()
        self._one = CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the wrapped application, or with 401."""
        if scope["type"] == "http" and not await self._may(_credentials(scope)):
            challenge = ", ".join(
                name for name, there in (('Basic realm="vqwatch"', self._config.users), ("Bearer", self._config.tokens))
                if there
            )  # fmt: skip
            refusal = PlainTextResponse("Unauthorized\n", 401, headers={"www-authenticate": challenge})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _may(self, credentials: tuple[str, str] | None) -> bool:
        if credentials is None:
            return False
        scheme, value = credentials
        if scheme == "bearer":
            digest = hashlib.sha256(value.encode()).hexdigest()
            return any(hmac.compare_digest(digest, known) for known in self._config.tokens.values())
        if scheme != "basic" or not self._config.users:
            return False
        mark = hmac.digest(self._salt, value.encode(), "sha256")
        if mark in self._known:
            return True
        if not await to_thread.run_sync(self._check, value, limiter=self._one):
            return False
        if len(self._known) >= KNOWN_AT_MOST:
            self._known.clear()
        self._known.add(mark)
        return True

    def _check(self, value: str) -> bool:
        import bcrypt

        try:
            name, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return False
        hashed = self._config.users.get(name)
        given = password.encode()[:LONGEST_PASSWORD]
        same = bool(bcrypt.checkpw(given.replace(b"\0", b"?"), hashed or _NOBODY))
        return same and hashed is not None and bool(separator) and b"\0" not in given


def _credentials(scope: Scope) -> tuple[str, str] | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            return scheme.lower(), rest.strip()
    return None
