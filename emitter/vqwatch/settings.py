"""What the emitter was asked to do: arguments first, then ``VQWATCH_*``, then torch.distributed, then defaults.

The one place of the emitter that reads the environment. No torch is imported: torch.distributed is asked only where the
training script has loaded it already.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .wire import MAX_NAME_LENGTH, MAX_RANKS, default_endpoint

IPC_PATH_LIMIT = 107
"""Bytes that the path of a Unix socket may have on Linux."""


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the setting and its value."""


@dataclass(frozen=True, slots=True)
class Keys:
    """CURVE keys in Z85: the daemon's public key, and the client's own pair (a fresh one where none was given)."""

    server: bytes
    public: bytes = b""
    secret: bytes = b""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is decided once, when the emitter attaches.

    ``endpoint`` is empty where nothing shall be sent. ``budget`` is the share of the step time that the emitter may
    take on the host. Bounds are in bytes: ``staging_bytes`` for device and pinned staging each, ``backlog_bytes`` for
    unacknowledged messages, ``send_bytes`` for what libzmq may hold, ``reconstruction_bytes`` for one sample.
    """

    run: str
    rank: int
    world_size: int
    endpoint: str
    keys: Keys | None = None
    budget: float = 0.01
    staging_bytes: int = 128 << 20
    backlog_bytes: int = 64 << 20
    backlog_messages: int = 8192
    send_bytes: int = 32 << 20
    reconstruction_bytes: int = 4 << 20


def resolve(
    environment: Mapping[str, str],
    *,
    run: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    endpoint: str | None = None,
    server_key: str | bytes | None = None,
    key_file: str | Path | None = None,
    allow_plain_tcp: bool | None = None,
    **bounds: Any,
) -> Settings:
    """Return the settings, arguments before ``VQWATCH_*`` before torch.distributed before defaults.

    ``VQWATCH_DISABLED=1`` or an empty endpoint gives settings without an endpoint. Raises :class:`SettingsError`.
    """
    ranks = _distributed()
    settings = Settings(
        run=_name("run", run if run is not None else environment.get("VQWATCH_RUN", "default")),
        rank=_count("rank", _first(rank, environment.get("VQWATCH_RANK"), ranks[0]), 0),
        world_size=_count("world_size", _first(world_size, environment.get("VQWATCH_WORLD_SIZE"), ranks[1]), 1),
        endpoint="" if _flag(environment, "VQWATCH_DISABLED") else _endpoint(environment, endpoint),
        keys=_keys(environment, server_key, key_file),
        **bounds,
    )
    for name in ("budget", *(bound for bound in bounds if bound != "budget")):
        if not getattr(settings, name) > 0:
            raise SettingsError(f"{name}={getattr(settings, name)!r}: expected a number above 0")
    if allow_plain_tcp is None:
        allow_plain_tcp = _flag(environment, "VQWATCH_ALLOW_PLAIN_TCP")
    if settings.endpoint:
        check_endpoint(settings.endpoint, settings.keys is not None, allow_plain_tcp)
    return settings


def check_endpoint(endpoint: str, encrypted: bool, allow_plain_tcp: bool = False) -> None:
    """Raise :class:`SettingsError` unless this endpoint may be connected to.

    >>> check_endpoint("tcp://127.0.0.1:9816", encrypted=False)
    >>> check_endpoint("tcp://10.0.0.7:9816", encrypted=False)
    Traceback (most recent call last):
    vqwatch.settings.SettingsError: endpoint='tcp://10.0.0.7:9816': leaves this machine without CURVE keys; give \
server_key (VQWATCH_SERVER_KEY), or allow it by name with allow_plain_tcp=True (VQWATCH_ALLOW_PLAIN_TCP=1)
    """
    scheme, separator, address = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp"):
        raise SettingsError(f"endpoint={endpoint!r}: expected ipc://PATH or tcp://HOST:PORT")
    if scheme == "ipc":
        if not address or len(address.encode()) > IPC_PATH_LIMIT:
            raise SettingsError(f"endpoint={endpoint!r}: a socket path has 1 to {IPC_PATH_LIMIT} bytes")
        return
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsError(f"endpoint={endpoint!r}: expected tcp://HOST:PORT")
    if not (encrypted or allow_plain_tcp or _is_loopback(host)):
        raise SettingsError(
            f"endpoint={endpoint!r}: leaves this machine without CURVE keys; give server_key (VQWATCH_SERVER_KEY), "
            "or allow it by name with allow_plain_tcp=True (VQWATCH_ALLOW_PLAIN_TCP=1)"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name: nothing here asks a resolver, and a name may lead anywhere
        return False


def _first(*values: int | str | None) -> int | str:
    return next(value for value in values if value is not None)


def _name(key: str, value: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise SettingsError(f"{key}={value!r}: expected 1 to {MAX_NAME_LENGTH} printable characters")
    return value


def _count(key: str, value: int | str, lowest: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{key}={value!r}: expected a whole number") from error
    if not lowest <= number <= MAX_RANKS:
        raise SettingsError(f"{key}={value!r}: expected {lowest} to {MAX_RANKS}")
    return number


def _flag(environment: Mapping[str, str], key: str) -> bool:
    return environment.get(key, "").strip().lower() in ("1", "true", "yes", "on")


def _endpoint(environment: Mapping[str, str], endpoint: str | None) -> str:
    if endpoint is not None:
        return endpoint
    given = environment.get("VQWATCH_ENDPOINT")
    return default_endpoint(environment) if given is None else given


def _keys(environment: Mapping[str, str], server_key: str | bytes | None, key_file: str | Path | None) -> Keys | None:
    server = server_key if server_key is not None else environment.get("VQWATCH_SERVER_KEY")
    path = key_file if key_file is not None else environment.get("VQWATCH_KEY_FILE")
    if not server:
        if path:
            raise SettingsError(f"key_file={str(path)!r}: the daemon's key is missing (server_key, VQWATCH_SERVER_KEY)")
        return None
    server = server.encode() if isinstance(server, str) else bytes(server)
    if len(server) != 40:
        raise SettingsError(f"server_key: expected 40 characters of Z85, got {len(server)}")
    if not path:
        return Keys(server)
    from zmq.auth import load_certificate

    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"key_file={str(path)!r}: {error}") from error
    if not secret:
        raise SettingsError(f"key_file={str(path)!r}: holds no secret key")
    return Keys(server, public, secret)


def _distributed() -> tuple[int, int]:
    """Return rank and world size as torch.distributed knows them, (0, 1) where it is not in use."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
