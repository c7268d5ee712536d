"""TLS and authentication of the HTTP side, from a file in the manner of Prometheus' web configuration.

    tls_server_config:
      cert_file: server.crt            # relative to this file
      key_file: server.key
      client_ca_file: clients.crt      # with client_auth_type RequireAndVerifyClientCert or VerifyClientCertIfGiven
      client_auth_type: RequireAndVerifyClientCert
      min_version: TLS12               # or TLS13
    basic_auth_users:
      prometheus: $2b$12$...           # bcrypt, as `htpasswd -nBC 12 ""` makes it
    bearer_tokens:
      ci: 9f86d081...                  # SHA-256 of the token, 64 hexadecimal digits

What Prometheus knows and this cannot do is an error, never ignored.
"""

from __future__ import annotations

import importlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

_TLS_KEYS: Final = frozenset({"cert_file", "key_file", "client_ca_file", "client_auth_type", "min_version"})
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_BCRYPT: Final = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class WebConfigError(ValueError):
    """A web configuration that cannot be; the message names file and key."""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Who may read what is served, and how it is encrypted; without any of it everybody may, in clear."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Return whether a request needs a password or a token."""
        return bool(self.users or self.tokens)

    def server_options(self) -> dict[str, Any]:
        """Return what the HTTP server has to be told of it."""
        tls = self.tls
        return {} if tls is None else {"ssl_context_factory": lambda _config, _default: tls}


def load(path: Path) -> WebConfig:
    """Read a web configuration file. Raises :class:`WebConfigError` for whatever would not do what it says."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WebConfigError(f"{path}: {error}") from error
    document = _map(path, "the file", document, {"tls_server_config", "basic_auth_users", "bearer_tokens"})
    tls = document.get("tls_server_config")
    return WebConfig(
        None if tls is None else _tls(path, _map(path, "tls_server_config", tls, _TLS_KEYS)),
        _users(path, document.get("basic_auth_users") or {}),
        _tokens(path, document.get("bearer_tokens") or {}),
    )


def _map(path: Path, name: str, value: Any, allowed: frozenset[str] | set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WebConfigError(f"{path}: {name} is not a map")
    unknown = sorted(set(value) - allowed) if allowed is not None else []
    if unknown:
        raise WebConfigError(f"{path}: {name}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed or ()))}")
    return value


def _tls(path: Path, config: Mapping[str, Any]) -> ssl.SSLContext:
    for key in ("cert_file", "key_file"):
        if not config.get(key):
            raise WebConfigError(f"{path}: tls_server_config: {key} is missing")
    client_auth, client_ca = config.get("client_auth_type", "NoClientCert"), config.get("client_ca_file")
    if client_auth not in _CLIENT_AUTH:
        raise WebConfigError(f"{path}: client_auth_type {client_auth!r} is none of {', '.join(_CLIENT_AUTH)}")
    if bool(client_ca) != (client_auth != "NoClientCert"):
        # Without a CA the system's would be trusted: any public certificate. With one that is not asked for, nobody is.
        raise WebConfigError(f"{path}: client_ca_file and a client_auth_type that verifies go together")
    version = config.get("min_version", "TLS12")
    if version not in _VERSIONS:
        raise WebConfigError(f"{path}: min_version {version!r} is none of {', '.join(_VERSIONS)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[version]
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(path.parent / config["cert_file"], path.parent / config["key_file"])
        if client_ca:
            context.load_verify_locations(path.parent / client_ca)
    except (OSError, ssl.SSLError) as error:
        raise WebConfigError(f"{path}: tls_server_config: {error}") from error
    context.verify_mode = _CLIENT_AUTH[client_auth]
    return context


def _users(path: Path, value: Any) -> dict[str, bytes]:
    users = _map(path, "basic_auth_users", value)
    for name, hashed in users.items():
        if not isinstance(hashed, str) or not _BCRYPT.fullmatch(hashed) or ":" in name:
            raise WebConfigError(f"{path}: basic_auth_users: {name!r} has no bcrypt hash")
    if users:
        try:
            importlib.import_module("bcrypt")
        except ImportError as error:
            raise WebConfigError(f"{path}: basic_auth_users needs the package bcrypt (pip install bcrypt)") from error
    return {name: hashed.encode() for name, hashed in users.items()}


def _tokens(path: Path, value: Any) -> dict[str, str]:
    tokens = _map(path, "bearer_tokens", value)
    for name, digest in tokens.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise WebConfigError(f"{path}: bearer_tokens: {name!r} has no SHA-256 in lower-case hexadecimal digits")
    return tokens
