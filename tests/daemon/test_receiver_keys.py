"""Keys on a real socket: who comes in, who does not, and that the proof at start-up proves something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.messages import Trainer
from zmq.utils.monitor import recv_monitor_message

from vqwatch.wire import Message, encode
from vqwatch_daemon import curve, keys, receiver
from vqwatch_daemon.cli import main
from vqwatch_daemon.curve import Gate, Insecure, Pair, prove
from vqwatch_daemon.keys import Keys, KeysError, make, read_client
from vqwatch_daemon.receiver import Receiver, ReceiverError


class Door:
    """A receiver on loopback with keys, and what it took and rejected."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.taken: list[Message] = []
        self.rejected: list[str] = []
        self.keys = Keys(directory)
        self.receiver = Receiver(
            ["tcp://127.0.0.1:*"], take=self._take, count=lambda *_: None, reject=self.rejected.append, keys=self.keys,
            **options,
        )  # fmt: skip
        self.endpoint = self.receiver.endpoints[0]

    def _take(self, _route: bytes, message: Message) -> list[Any]:
        self.taken.append(message)
        return []

    def work(self, until: Callable[[], bool], seconds: float = 3.0) -> bool:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            if self.receiver.wait(0.02):
                self.receiver.drain()
        return until()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make(path, "alice")
    make(path, "bob", ["exp-*"])
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as resources:
        yield resources


def pair(directory: Path, name: str) -> Pair:
    from zmq.auth import load_certificate

    public, secret = load_certificate(directory / f"{name}.key_secret")
    assert secret is not None
    return Pair(public, secret)


def client(stack: ExitStack, endpoint: str, server: bytes = b"", own: Pair | None = None) -> zmq.Socket[bytes]:
    context: zmq.Context[Any] = zmq.Context()
    stack.callback(context.destroy, linger=0)
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    stack.callback(socket.close, 0)
    if own is not None:
        socket.curve_publickey, socket.curve_secretkey = own
        socket.curve_serverkey = server
    socket.setsockopt(zmq.SNDTIMEO, 500)  # libzmq takes the pipe of a client that was refused away
    socket.connect(endpoint)
    return socket


def door(stack: ExitStack, directory: Path, **options: Any) -> Door:
    opened = Door(directory, **options)
    stack.callback(opened.receiver.close)
    return opened


def test_a_client_with_a_key_comes_in_and_strangers_do_not(stack: ExitStack, directory: Path) -> None:
    opened = door(stack, directory)
    strangers = [
        client(stack, opened.endpoint, opened.keys.public, Pair(*zmq.curve_keypair())),
        client(stack, opened.endpoint),
        client(stack, opened.endpoint, zmq.curve_keypair()[0], pair(directory, "alice")),
    ]
    for socket in strangers:
        with suppress(zmq.Again):
            socket.send_multipart(encode(Trainer().hello()))
    client(stack, opened.endpoint, opened.keys.public, pair(directory, "alice")).send_multipart(
        encode(Trainer(session="good").hello())
    )
    assert opened.work(lambda: bool(opened.taken))
    opened.work(lambda: len(opened.taken) > 1, 0.3)
    assert [message.origin.session for message in opened.taken] == ["good"]  # type: ignore[union-attr]
    assert opened.receiver.refused >= 1


def test_a_key_opens_only_the_runs_that_it_names(stack: ExitStack, directory: Path) -> None:
    opened = door(stack, directory)
    socket = client(stack, opened.endpoint, opened.keys.public, pair(directory, "bob"))
    socket.send_multipart(encode(Trainer(run="prod").hello()))
    socket.send_multipart(encode(Trainer(run="exp-1").hello()))
    assert opened.work(lambda: bool(opened.taken))
    assert opened.rejected == ["run_not_allowed"]


def test_keys_are_added_and_removed_while_the_daemon_runs(stack: ExitStack, directory: Path) -> None:
    opened = door(stack, directory)
    make(directory, "carol")
    opened.receiver.look_at_keys()
    socket = client(stack, opened.endpoint, opened.keys.public, pair(directory, "carol"))
    socket.send_multipart(encode(Trainer().hello()))
    assert opened.work(lambda: bool(opened.taken))
    (directory / "clients" / "carol.key").unlink()
    opened.receiver.look_at_keys()
    socket.send_multipart(encode(Trainer(session="t").hello()))
    assert opened.work(lambda: opened.rejected == ["key_removed"])
    assert len(opened.taken) == 1


def test_who_breaks_the_rules_again_and_again_is_disconnected_and_shut_out(
    stack: ExitStack, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = door(stack, directory)
    socket = client(stack, opened.endpoint, opened.keys.public, pair(directory, "alice"))
    monitor = socket.get_monitor_socket()
    # Kept until monitoring has ended: that waits for ever for an end that was collected.
    stack.callback(monitor.close, linger=0)
    stack.callback(socket.disable_monitor)
    for _ in range(100):
        with suppress(zmq.Again):
            socket.send(b"rubbish")
    assert opened.work(lambda: opened.receiver.cut_off == 1)
    refused = opened.receiver.refused
    assert opened.work(lambda: opened.receiver.refused > refused)
    events = set()
    while monitor.poll(0):
        events.add(recv_monitor_message(monitor)["event"])
    assert zmq.Event.DISCONNECTED in events


def test_the_daemon_does_not_start_when_its_keys_do_not_keep_strangers_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug planted: no domain, as in every set-up that looks right and lets everybody in."""

    def careless(socket: zmq.Socket[Any], secret: bytes) -> None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    monkeypatch.setattr(receiver, "secure", careless)
    with pytest.raises(ReceiverError, match="a random key was let in"):
        Door(directory)


def test_the_proof_notices_a_gate_that_lets_nobody_in() -> None:
    context: zmq.Context[Any] = zmq.Context()
    gate = Gate(context, lambda _: None)
    socket = context.socket(zmq.ROUTER)
    public, secret = zmq.curve_keypair()
    curve.secure(socket, secret)
    with pytest.raises(Insecure, match="a key that is allowed was refused"):
        prove(socket, gate.answer, public, Pair(*zmq.curve_keypair()))
    context.destroy(linger=0)


def test_tcp_beyond_loopback_without_keys_is_refused() -> None:
    with pytest.raises(ReceiverError, match="no keys"):
        Receiver(["tcp://0.0.0.0:*"], take=lambda *_: [], count=lambda *_: None, reject=lambda _: None)


def test_key_files_are_private_and_only_public_keys_lie_with_the_clients(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert "secret" not in (directory / "clients" / "bob.key").read_text()
    assert read_client(directory / "clients" / "bob.key").runs == ("exp-*",)


def test_a_secret_that_others_may_read_is_refused(directory: Path) -> None:
    (directory / "server.key_secret").chmod(0o644)
    with pytest.raises(KeysError, match="chmod 600"):
        Keys(directory)


def test_a_damaged_client_file_lets_nobody_in_and_is_named(directory: Path) -> None:
    (directory / "clients" / "alice.key").write_text('curve\n    public-key = "short"\n')
    found = Keys(directory)
    assert [item.name for item in found.clients] == ["bob"]
    assert "alice.key" in found.problems[0]


@pytest.mark.parametrize("name", ["../x", "server", "", "a b", ".hidden"])
def test_names_that_could_leave_the_directory_are_refused(directory: Path, name: str) -> None:
    with pytest.raises(KeysError):
        make(directory, name)


def test_a_key_is_not_overwritten(directory: Path) -> None:
    with pytest.raises(KeysError, match="exists"):
        make(directory, "alice")


def test_the_command_makes_lists_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--keys", str(tmp_path / "k")]
    assert main(["keys", "make", "node-1", "--run", "a", "--run", "b-*", *where]) == 0
    assert main(["keys", "list", *where]) == 0
    assert main(["keys", "show", *where]) == 0
    told = capsys.readouterr().out
    public = Keys(tmp_path / "k").public.decode()
    assert f"VQWATCH_SERVER_KEY='{public}'" in told
    assert "a, b-*" in told
    assert told.endswith(f"{public}\n")
    assert main(["keys", "make", "node-1", *where]) == 2


def test_the_emitter_takes_the_files_that_the_command_makes(directory: Path) -> None:
    from vqwatch.settings import resolve

    secret = directory / "alice.key_secret"
    public = Keys(directory).public
    chosen = resolve(
        {"VQWATCH_SERVER_KEY": public.decode(), "VQWATCH_KEY_FILE": str(secret), "VQWATCH_ENDPOINT": "tcp://10.0.0.1:1"}
    )
    assert chosen.keys is not None
    assert (chosen.keys.public, chosen.keys.secret) == pair(directory, "alice")
    assert keys.Client("x", b"", ()).may("anything") is False
