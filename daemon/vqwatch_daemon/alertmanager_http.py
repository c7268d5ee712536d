"""One Alertmanager's HTTP API: an address and a connection that is kept open.

``http.client`` and nothing else: the daemon needs one POST to one path, a time limit and keep-alive, and every further
HTTP library would be a dependency to audit. Proxies of the environment are not used.

Knows nothing of alerts, of batches or of what a failure means to them.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

PATH: Final = "/api/v2/alerts"
_ANSWER_BYTES: Final = 64 * 1024


class AlertmanagerError(Exception):
    """An Alertmanager's address is unusable, or it could not be reached or understood; says which one and why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an Alertmanager listens and how it lets us in. ``name`` is the URL without credentials, fit for a label."""

    name: str
    host: str
    port: int
    path: str
    secure: bool
    authorization: str = field(default="", repr=False)


def parse(url: str) -> Address:
    """Return the address that ``http[s]://[user:password@]host[:port][/prefix]`` stands for.

    >>> parse("http://127.0.0.1:9093/").name, parse("https://me:secret@alerts.example/am").path
    ('http://127.0.0.1:9093', '/am/api/v2/alerts')

    Raises AlertmanagerError, without the password, on anything else.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise AlertmanagerError(f"Alertmanager URL: {error}") from error
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise AlertmanagerError(f"Alertmanager URL {shown!r}: expected http://host:port or https://host:port")
    if parts.query or parts.fragment:
        raise AlertmanagerError(f"Alertmanager URL {shown!r}: takes no query and no fragment")
    secure = parts.scheme == "https"
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    path = parts.path.rstrip("/").removesuffix(PATH) + PATH
    return Address(shown, parts.hostname, port or (443 if secure else 80), path, secure, authorization)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Alertmanager said: the HTTP status and the beginning of its text."""

    status: int
    text: str

    @property
    def accepted(self) -> bool:
        """Whether all alerts of the request were taken."""
        return 200 <= self.status < 300

    @property
    def blames_an_alert(self) -> bool:
        """Whether a smaller request may do better: one alert is malformed, or there are too many of them."""
        return self.status in {400, 413, 422}


class Connection:
    """A kept-open connection to one Alertmanager; used by one thread, except for `abort`.

    ``headers`` are added to each request, for example a bearer token or a tenant.
    """

    def __init__(
        self, address: Address, *, timeout: float, tls: ssl.SSLContext | None = None, headers: Mapping[str, str]
    ) -> None:
        self._address = address
        self._headers = {"Content-Type": "application/json", "User-Agent": "vqwatch", **headers}
        if address.authorization:
            self._headers.setdefault("Authorization", address.authorization)
        self._http: http.client.HTTPConnection
        if address.secure:
            context = tls or ssl.create_default_context()
            self._http = http.client.HTTPSConnection(address.host, address.port, timeout=timeout, context=context)
        else:
            self._http = http.client.HTTPConnection(address.host, address.port, timeout=timeout)

    def post(self, body: bytes) -> Answer:
        """Send alerts and return the answer, whatever its status. Raises AlertmanagerError when there is none.

        A kept connection that the other side has meanwhile closed (a restart) is opened anew, once: a repeated POST
        changes nothing at an Alertmanager.
        """
        kept = self._http.sock is not None
        try:
            try:
                return self._request(body)
            except (ConnectionResetError, BrokenPipeError):
                self.close()
                if not kept:
                    raise
                return self._request(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AlertmanagerError(f"{self._address.name}: {error or type(error).__name__}") from error

    def close(self) -> None:
        """Close the connection; the next `post` opens a new one."""
        self._http.close()

    def abort(self) -> None:
        """Make a `post` that waits in another thread fail now."""
        sock = self._http.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _request(self, body: bytes) -> Answer:
        self._http.request("POST", self._address.path, body=body, headers=self._headers)
        response = self._http.getresponse()
        text = response.read(_ANSWER_BYTES).decode("utf-8", "replace")
        if response.read(1):
            self.close()  # an endless answer would be read as the beginning of the next one
        return Answer(response.status, text.strip())
