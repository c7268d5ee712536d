"""CURVE keys in a directory: the daemon's own pair, and the public key of everybody who may come in.

    DIR/server.key            the daemon's public key: every client needs it (VQWATCH_SERVER_KEY)
    DIR/server.key_secret     the daemon's pair; never leaves this directory
    DIR/clients/NAME.key      who may come in, and to which runs: the daemon reads only these
    DIR/NAME.key_secret       a client's pair, to be carried to its machine (VQWATCH_KEY_FILE) and removed here

The files are ZeroMQ certificates, as :mod:`zmq.auth` reads them. A key that is removed from ``clients/`` is refused
from the daemon's next look on, at most a second later.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import zmq

SERVER: Final = "server"
CLIENTS: Final = "clients"
ALL_RUNS: Final = ("*",)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENTRY: Final = re.compile(r'^\s*([a-z-]+)\s*=\s*"([^"]*)"\s*$', re.MULTILINE)
_LENGTH: Final = 40


class KeysError(ValueError):
    """Keys that cannot be used or made; the message names the file and what would do."""


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may come in: a name, a public key in Z85, and patterns of the runs that may be told of."""

    name: str
    public: bytes
    runs: tuple[str, ...] = ALL_RUNS

    def may(self, run: str) -> bool:
        """Return whether this client may send data of a run.

        >>> Client("a", b"", ("exp-*",)).may("exp-7"), Client("a", b"", ("exp-*",)).may("prod")
        (True, False)
        """
        return any(fnmatchcase(run, pattern) for pattern in self.runs)


class Keys:
    """The keys of one directory, as they are on disk. Raises :class:`KeysError` when the daemon's own are unusable."""

    def __init__(self, directory: Path) -> None:
        self._clients = directory / CLIENTS
        secret = directory / f"{SERVER}.key_secret"
        entries = _read(secret)
        _check_private(secret)
        self.public, self.secret = _key(entries, "public-key", secret), _key(entries, "secret-key", secret)
        self._by_key: dict[bytes, Client] = {}
        self._by_name: dict[str, Client] = {}
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self.problems: list[str] = []
        self.refresh()

    def refresh(self) -> bool:
        """Look at the clients' files again; return whether they changed. A file that cannot be read lets nobody in."""
        found = _listing(self._clients)
        if found == self._seen:
            return False
        self._seen, self.problems = found, []
        clients: dict[bytes, Client] = {}
        for name, _, _ in found:
            path = self._clients / name
            try:
                client = read_client(path)
            except KeysError as error:
                self.problems.append(str(error))
                continue
            clients[client.public] = client
        self._by_key = clients
        self._by_name = {client.name: client for client in clients.values()}
        return True

    def of(self, public: bytes) -> Client | None:
        """Return whose key this is, None if nobody's."""
        return self._by_key.get(public)

    def named(self, name: str) -> Client | None:
        """Return the client of this name, None if its key was removed."""
        return self._by_name.get(name)

    @property
    def clients(self) -> list[Client]:
        """Everybody who may come in, by name."""
        return sorted(self._by_key.values(), key=lambda client: client.name)


def _listing(directory: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(".key") and entry.is_file():
                    info = entry.stat()
                    found.append((entry.name, info.st_mtime_ns, info.st_size))
    except OSError:  # no directory: nobody comes in
        return ()
    return tuple(sorted(found))


def read_client(path: Path) -> Client:
    """Return the client that a file in ``clients/`` describes. Raises :class:`KeysError`."""
    entries = _read(path)
    runs = tuple(pattern.strip() for pattern in entries.get("runs", "*").split(",") if pattern.strip())
    return Client(path.name.removesuffix(".key"), _key(entries, "public-key", path), runs)


def make(directory: Path, name: str, runs: Sequence[str] = ALL_RUNS) -> Path:
    """Make a client's keys (and, the first time, the daemon's); return the file that the client needs.

    Raises :class:`KeysError` for a name that cannot be or exists already, OSError where nothing can be written.
    """
    if not _NAME.fullmatch(name) or name == SERVER:
        raise KeysError(f"{name!r} is no name for a key: letters, digits, '.', '_' and '-', and not {SERVER!r}")
    if not runs or any(
        not pattern or '"' in pattern or "," in pattern or not pattern.isprintable() for pattern in runs
    ):
        raise KeysError(f"{list(runs)!r} are no patterns of runs")
    make_server(directory)
    clients = directory / CLIENTS
    clients.mkdir(mode=0o700, exist_ok=True)
    public_path, secret_path = clients / f"{name}.key", directory / f"{name}.key_secret"
    for path in (public_path, secret_path):
        if path.exists():
            raise KeysError(f"{path} exists; remove it first if its key shall no longer be valid")
    public, secret = zmq.curve_keypair()
    _write(secret_path, _certificate(public, secret))
    _write(public_path, _certificate(public, runs=",".join(runs)))
    return secret_path


def make_server(directory: Path) -> None:
    """Make the daemon's own pair unless it is there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    secret_path = directory / f"{SERVER}.key_secret"
    if secret_path.exists():
        return
    public, secret = zmq.curve_keypair()
    _write(directory / f"{SERVER}.key", _certificate(public))
    _write(secret_path, _certificate(public, secret))


def _certificate(public: bytes, secret: bytes | None = None, *, runs: str | None = None) -> str:
    metadata = "" if runs is None else f'    runs = "{runs}"\n'
    private = "" if secret is None else f'    secret-key = "{secret.decode()}"\n'
    return f'metadata\n{metadata}curve\n    public-key = "{public.decode()}"\n{private}'


def _write(path: Path, text: str) -> None:
    """Write a file that exists for its owner alone from the first moment, or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
    temporary.rename(path)


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(_ENTRY.findall(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}; `vqwatch keys make` makes keys") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path}: not a key file") from error


def _key(entries: dict[str, str], name: str, path: Path) -> bytes:
    value = entries.get(name, "").encode()
    if len(value) != _LENGTH:
        raise KeysError(f"{path}: no {name} of {_LENGTH} characters")
    return value


def _check_private(path: Path) -> None:
    info = path.stat()
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise KeysError(f"{path}: others may read it (mode {stat.S_IMODE(info.st_mode):04o}); `chmod 600` it")
    if info.st_uid not in (os.getuid(), 0):
        raise KeysError(f"{path}: belongs to user {info.st_uid}")
