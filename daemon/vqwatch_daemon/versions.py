"""Libraries that read what others send, and the oldest releases of them without a published hole that matters here."""

from __future__ import annotations

from typing import Final

import msgpack
import zmq

OLDEST_LIBZMQ: Final = (4, 3, 5)
"""CVE-2019-6250, -2019-13132, -2020-15166, -2021-20234 to -20237 and -2020-36400 are fixed before it."""

OLDEST_MSGPACK: Final = (1, 2, 1)
"""Fixes CVE-2026-57585: reading on after an error crashes the process."""


def too_old() -> str:
    """Return which library of this process is too old to listen with, and what to do, or nothing."""
    found = (("libzmq", zmq.zmq_version_info(), OLDEST_LIBZMQ, "pyzmq"),
             ("msgpack", tuple(msgpack.version), OLDEST_MSGPACK, "msgpack"))  # fmt: skip
    return "; ".join(
        f"{library} {_text(version)} has known vulnerabilities, {_text(oldest)} or newer is needed: "
        f"pip install --upgrade {package}"
        for library, version, oldest, package in found
        if version < oldest
    )


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
