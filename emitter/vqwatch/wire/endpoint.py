"""Where trainer and daemon meet when nobody says otherwise. The environment is passed in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "vqwatch.sock"


def socket_directory(environment: Mapping[str, str]) -> Path:
    """Return the directory of the default socket: one that only its user can enter.

    ``$XDG_RUNTIME_DIR/vqwatch`` where the system gives each user a runtime directory, else ``/tmp/vqwatch-UID``.
    The daemon creates it with mode 0700 and refuses it if somebody else owns it.
    """
    runtime = environment.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "vqwatch" if runtime else Path(f"/tmp/vqwatch-{os.getuid()}")


def default_endpoint(environment: Mapping[str, str]) -> str:
    """Return the ZeroMQ endpoint that both sides use by default.

    >>> default_endpoint({"XDG_RUNTIME_DIR": "/run/user/1000"})
    'ipc:///run/user/1000/vqwatch/vqwatch.sock'
    """
    return f"ipc://{socket_directory(environment) / SOCKET_NAME}"
