"""What the system, not ZeroMQ, does for the socket: who may reach it, and how one peer is disconnected."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zmq

LONGEST_PATH: Final = 107


class ReceiverError(RuntimeError):
    """The socket cannot be opened as asked; the message says why and what would do."""


def guard(path: Path) -> int:
    """Make sure that nobody else can put a socket at ``path``; return a descriptor that holds its lock.

    A second bind to an ipc path would silently steal it, so there is a lock beside it. The directory is made with mode
    0700; one that exists must be this user's or root's and not writable for everybody, and a default one
    (``vqwatch`` or ``vqwatch-UID``) that is this user's is closed to others. Raises :class:`ReceiverError`.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ReceiverError(f"ipc path of {len(str(path))} characters, the system allows {LONGEST_PATH}: {path}")
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(directory)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ReceiverError(f"cannot use {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ReceiverError(f"another daemon listens on {path}") from error
    return lock


def _check(directory: Path) -> None:
    uid = os.getuid()
    if directory.lstat().st_uid not in (uid, 0):  # of a link too: who owns it decides where it leads
        raise ReceiverError(f"{directory} belongs to user {directory.lstat().st_uid}, who could take the socket over")
    info = directory.stat()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid not in (uid, 0):
        raise ReceiverError(f"{directory} belongs to user {info.st_uid}, who could take the socket over")
    if info.st_uid == uid and mode & 0o077 and directory.name in ("vqwatch", f"vqwatch-{uid}"):
        directory.chmod(0o700)
    elif mode & 0o002:
        raise ReceiverError(
            f"everybody may write to {directory}, and take the socket over; listen in a directory of your own, such as "
            f"{directory / 'vqwatch'}"
        )


def disconnect(frame: zmq.Frame, endpoints: Sequence[str]) -> bool:
    """Close the connection that a frame came by; return whether it was still there.

    ZeroMQ's stable interface has no such call, but tells the descriptor of the connection. It may be gone by now and
    its number in use for something else, so only a connection to one of ``endpoints`` is closed.
    """
    with contextlib.suppress(OSError, zmq.ZMQError, OverflowError):
        descriptor = frame.get(zmq.SRCFD)
        with socket.socket(fileno=os.dup(int(descriptor))) as connection:
            if _is_ours(connection, endpoints):
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _is_ours(connection: socket.socket, endpoints: Sequence[str]) -> bool:
    name = connection.getsockname()
    if connection.family == socket.AF_UNIX:
        return f"ipc://{name}" in endpoints
    return any(endpoint.startswith("tcp://") and endpoint.endswith(f":{name[1]}") for endpoint in endpoints)
