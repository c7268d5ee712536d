"""A machine of its own, as far as names go: the daemon's name server takes questions and answers when it is told to.

    python -m tests.end_to_end.hanging_names DIRECTORY {never,half}

Starts itself again in a network and a mount namespace, brings up loopback there, puts another resolv.conf and
nsswitch.conf in place, and runs a training whose daemon is known by name only. Needs root, or user namespaces. Prints
one line of JSON: what the training measured, what arrived, and what the name server was asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.faulty import Training
from tests.servers import free_port, wait_for
from tests.watching import ROOT, Daemon

ADDRESS = "127.0.0.53"
NAME = "daemon.vqwatch.test"
PATIENT_SECONDS = 60
STEPS = 300

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def confined(directory: Path, answers: str) -> dict[str, Any]:
    """Run this file in namespaces of its own and return what it printed; RuntimeError where that is not possible."""
    own = ["unshare", "--net", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    command = [*own, sys.executable, "-m", "tests.end_to_end.hanging_names", str(directory), answers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120.0, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"no namespaces here, or the training in them failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Names(threading.Thread):
    """A name server that lets its callers wait until :meth:`answer`; then every name is 127.0.0.1."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._waiting: list[tuple[bytes, Any]] = []
        self._answering = False
        self._lock = threading.Lock()
        self.asked: list[str] = []

    def run(self) -> None:
        """Take questions."""
        while True:
            query, who = self._socket.recvfrom(512)
            with self._lock:
                self.asked.append(_name(query))
                self._waiting.append((query, who))
                self._reply()

    def answer(self) -> None:
        """Answer what was asked so far, and from now on at once."""
        with self._lock:
            self._answering = True
            self._reply()

    def _reply(self) -> None:
        while self._answering and self._waiting:
            query, who = self._waiting.pop()
            self._socket.sendto(_answer(query), who)


def _name(query: bytes) -> str:
    parts, at = [], 12
    while query[at]:
        parts.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(parts)


def _answer(query: bytes) -> bytes:
    """Return 127.0.0.1 to a question for an A record, and "there is none" to any other (RFC 1035, 4.1)."""
    end = 12 + len(_name(query)) + 2 + 4
    (kind,) = struct.unpack_from("!H", query, end - 4)
    record = struct.pack("!HHHIH4s", 0xC00C, 1, 1, 60, 4, socket.inet_aton("127.0.0.1")) if kind == 1 else b""
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(record), 0, 0)
    return header + query[12:end] + record


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _put(directory: Path, path: str, text: str) -> None:
    """Let a file of the system have another content in this mount namespace."""
    file = directory / Path(path).name
    file.write_text(text)
    subprocess.run(["mount", "--bind", str(file), str(Path(path).resolve(strict=True))], check=True)


def main() -> None:
    """Run the training in here."""
    directory, answers = Path(sys.argv[1]), sys.argv[2]
    _bring_up_loopback()
    _put(directory, "/etc/resolv.conf", f"nameserver {ADDRESS}\noptions timeout:{PATIENT_SECONDS // 2} attempts:2\n")
    _put(directory, "/etc/nsswitch.conf", "hosts: files dns\n")
    names = Names()
    names.start()
    port = free_port()
    with Daemon(directory, ["--listen", f"tcp://127.0.0.1:{port}"]) as daemon:
        with Training(f"tcp://{NAME}:{port}", "--steps", str(STEPS), VQWATCH_ALLOW_PLAIN_TCP="1") as training:
            training.wait_for("half")
            asked = list(names.asked)
            if answers == "half":
                names.answer()
            training.wait_for("stepped")
            began = time.monotonic()
            result = training.result()
            leaving = time.monotonic() - began
        arrived = 0.0
        if answers == "half":
            arrived = wait_for(
                lambda: daemon.value("vqwatch_nonfinite_total", run="tiny", source="gradient"), 5.0, "the steps"
            )
    print(json.dumps({"training": result, "asked": asked, "leaving": leaving, "arrived": arrived}))


if __name__ == "__main__":
    main()
