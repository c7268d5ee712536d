"""TLS and authentication on a real server with real certificates."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from vqwatch_daemon import web_config
from vqwatch_daemon.authentication import Authentication
from vqwatch_daemon.web import Server
from vqwatch_daemon.web_config import WebConfigError

TOKEN = "a-long-random-token"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
            cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
    return directory


def config(directory: Path, text: str) -> Path:
    path = directory / "web.yaml"
    path.write_text(text)
    return path


TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
CLIENT = (
    "tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca_file: client.crt, "
    "client_auth_type: RequireAndVerifyClientCert}\n"
)


def serve(path: Path) -> Server:
    chosen = web_config.load(path)

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse("up 1\n")

    middleware = [Middleware(Authentication, chosen)] if chosen.asks else []
    server = Server(
        Starlette(routes=[Route("/metrics", metrics)], middleware=middleware), port=0, **chosen.server_options()
    )
    server.start()
    return server


def scrape(url: str, authorization: str = "", context: ssl.SSLContext | None = None) -> int:
    request = urllib.request.Request(url, headers={"authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=5.0, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    path = config(
        tmp_path_factory.mktemp("auth"),
        f"basic_auth_users: {{prometheus: '{hashed}'}}\n"
        f"bearer_tokens: {{ci: '{hashlib.sha256(TOKEN.encode()).hexdigest()}'}}\n",
    )
    server = serve(path)
    yield f"http://127.0.0.1:{server.port}/metrics"
    server.close()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        (basic("prometheus", "secret"), 200),
        (basic("prometheus", "wrong"), 401),
        (basic("nobody", "secret"), 401),
        ("Basic !!!", 401),
        ("Basic ", 401),
        (f"Bearer {TOKEN}", 200),
        ("Bearer x", 401),
        (f"Digest {TOKEN}", 401),
    ],
)
def test_only_known_credentials_are_answered(guarded: str, authorization: str, status: int) -> None:
    assert scrape(guarded, authorization) == status
    assert scrape(guarded, authorization) == status


@pytest.mark.alone
def test_an_idle_client_that_never_shakes_hands_does_not_hold_up_a_scrape(certificates: Path) -> None:
    server = serve(config(certificates, TLS))
    context = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    started = time.perf_counter()
    assert scrape(f"https://127.0.0.1:{server.port}/metrics", context=context) == 200
    assert time.perf_counter() - started < 2.0
    for connection in idle:
        connection.close()
    server.close()


def test_clear_text_and_old_protocols_are_not_answered(certificates: Path) -> None:
    server = serve(config(certificates, TLS))
    with pytest.raises(OSError):  # noqa: PT011
        scrape(f"http://127.0.0.1:{server.port}/metrics")
    old = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, urllib.error.URLError)):
        scrape(f"https://127.0.0.1:{server.port}/metrics", context=old)
    server.close()


def test_a_client_certificate_is_asked_for_and_checked(certificates: Path) -> None:
    server = serve(config(certificates, CLIENT))
    url = f"https://127.0.0.1:{server.port}/metrics"
    without = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    foreign = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    foreign.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    known = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    known.load_cert_chain(certificates / "client.crt", certificates / "client.key")
    for context in (without, foreign):
        with pytest.raises(OSError):  # noqa: PT011
            scrape(url, context=context)
    assert scrape(url, context=known) == 200
    server.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tls_server_config: {cert_file: server.crt}", "key_file is missing"),
        ("tls_server_config: {cert_file: none.crt, key_file: server.key}", "No such file"),
        (TLS.replace("}", ", client_ca_file: client.crt}"), "go together"),
        (TLS.replace("}", ", client_auth_type: RequireAndVerifyClientCert}"), "go together"),
        (TLS.replace("}", ", client_auth_type: RequireAnyClientCert}"), "is none of"),
        (TLS.replace("}", ", min_version: TLS10}"), "is none of"),
        (TLS.replace("}", ", cipher_suites: []}"), "unknown key 'cipher_suites'"),
        ("basic_auth_users: {a: secret}", "no bcrypt hash"),
        ("bearer_tokens: {a: secret}", "no SHA-256"),
        ("http_server_config: {}", "unknown key"),
        ("[1, 2]", "not a map"),
        ("{", "while parsing"),
    ],
)
def test_what_would_not_do_what_it_says_is_an_error(certificates: Path, text: str, message: str) -> None:
    with pytest.raises(WebConfigError, match=message):
        web_config.load(config(certificates, text))
