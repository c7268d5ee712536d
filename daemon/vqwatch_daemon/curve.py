"""Who may connect: CURVE on the daemon's socket, and the answer to libzmq's question about every new peer.

CURVE alone lets everybody in, and so do most set-ups that look right; only a domain, its enforcement and a handler for
that domain together refuse strangers (libzmq ``curve_server.cpp``, "Stonehouse"). So :func:`prove` tries it out before
the first endpoint that others can reach exists. The handler has no thread: the receiver's loop answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

DOMAIN: Final = "vqwatch"
PROOF_SECONDS: Final = 2.0

_HANDLER: Final = "inproc://zeromq.zap.01"


class Insecure(RuntimeError):
    """The socket did not do what its keys promise."""


class Gate:
    """Answers libzmq's questions on a context (ZeroMQ RFC 27). ``admit(public key)`` returns a user's name or None.

    Must exist before the first bind, and :meth:`answer` must be called whenever :attr:`socket` is readable.
    """

    def __init__(self, context: zmq.Context[Any], admit: Callable[[bytes], str | None]) -> None:
        self._admit = admit
        self.refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_HANDLER)

    def answer(self) -> None:
        """Answer every question that waits. Never waits itself."""
        while True:
            try:
                question = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            name = self._judge(question)
            self.refused += name is None
            request = question[1] if len(question) > 1 else b""
            status = (b"400", b"refused", b"") if name is None else (b"200", b"OK", name.encode())
            self.socket.send_multipart([b"1.0", request, *status, b""], zmq.NOBLOCK)

    def _judge(self, question: list[bytes]) -> str | None:
        if len(question) != 7:
            return None
        version, _, domain, _, _, mechanism, credentials = question
        if version != b"1.0" or domain != DOMAIN.encode() or mechanism != b"CURVE" or len(credentials) != 32:
            return None
        return self._admit(z85.encode(credentials))

    def close(self) -> None:
        """Stop answering: libzmq then refuses everybody."""
        self.socket.close(0)


def secure(socket: zmq.Socket[Any], secret: bytes) -> None:
    """Make a socket that is not bound yet ask its peers for keys."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Pair(NamedTuple):
    """A public and a secret key in Z85."""

    public: bytes
    secret: bytes


def prove(socket: zmq.Socket[Any], answer: Callable[[], None], server: bytes, good: Pair) -> None:
    """Show that ``socket`` refuses a random key and a client without any, and lets ``good`` in.

    It is bound to loopback for the time of the proof. Raises :class:`Insecure`.
    """
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    try:
        for name, pair, expected in (
            ("a random key", Pair(*zmq.curve_keypair()), False),
            ("a client without a key", None, False),
            ("a key that is allowed", good, True),
        ):
            if _enters(endpoint, answer, server, pair) is not expected:
                raise Insecure(f"{name} was {'refused' if expected else 'let in'} by a socket with keys")
    finally:
        socket.unbind(endpoint)


def _enters(endpoint: str, answer: Callable[[], None], server: bytes, pair: Pair | None) -> bool:
    with ExitStack() as stack:
        context: zmq.Context[Any] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        client = context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        if pair is not None:
            client.curve_publickey, client.curve_secretkey = pair
            client.curve_serverkey = server
        monitor = client.get_monitor_socket()
        # Kept until monitoring has ended: that waits for ever for an end that was collected.
        stack.callback(monitor.close, linger=0)
        stack.callback(client.disable_monitor)
        client.connect(endpoint)
        deadline = time.monotonic() + PROOF_SECONDS
        while time.monotonic() < deadline:
            answer()
            while monitor.poll(5):
                event = zmq.Event(recv_monitor_message(monitor)["event"])
                if event is zmq.Event.HANDSHAKE_SUCCEEDED:
                    return True
                if event in (zmq.Event.DISCONNECTED, zmq.Event.HANDSHAKE_FAILED_AUTH):
                    return False
                answer()
    return False
