"""The receiver on a real socket: directories that others could take over, peers that send too much or rubbish."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.messages import Trainer
from zmq.utils.monitor import recv_monitor_message

from vqwatch.wire import MAX_TENSORS, Message, encode
from vqwatch_daemon.limits import OFFENCES, Names, Rates
from vqwatch_daemon.peers import disconnect, guard
from vqwatch_daemon.receiver import Receiver, ReceiverError


class Inbox:
    def __init__(self, endpoint: str, **options: Any) -> None:
        self.taken: list[Message] = []
        self.rejected: list[str] = []
        self.counted: Counter[str] = Counter()
        self.receiver = Receiver(
            [endpoint], take=self._take, count=lambda kind, _: self.counted.update([kind]),
            reject=self.rejected.append, **options,
        )  # fmt: skip
        self.context: zmq.Context[Any] = zmq.Context()
        self.peers: list[zmq.Socket[bytes]] = []

    def _take(self, _route: bytes, message: Message) -> list[Any]:
        self.taken.append(message)
        return []

    def peer(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.receiver.endpoints[0])
        self.peers.append(socket)
        return socket

    def work(self, until: Callable[[], bool], seconds: float = 3.0) -> bool:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            if self.receiver.wait(0.02):
                self.receiver.drain()
        return until()

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.receiver.close()


@pytest.fixture(params=["tcp", "ipc"])
def inbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    short = tmp_path_factory.mktemp("i")
    opened = Inbox("tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{short}/s")
    yield opened
    opened.close()


def test_a_peer_that_sends_rubbish_is_disconnected_and_another_is_not(inbox: Inbox) -> None:
    bad, good = inbox.peer(), inbox.peer()
    monitors = [socket.get_monitor_socket() for socket in (bad, good)]
    for _ in range(OFFENCES + 10):
        bad.send(b"rubbish")
    good.send_multipart(encode(Trainer().hello()))
    assert inbox.work(lambda: inbox.receiver.cut_off == 1 and bool(inbox.taken))
    inbox.work(lambda: False, 0.1)
    heard = []
    for monitor in monitors:
        events = set()
        while monitor.poll(50):
            events.add(recv_monitor_message(monitor)["event"])
        heard.append(zmq.Event.DISCONNECTED in events)
    assert heard == [True, False]
    bad.disable_monitor()
    good.disable_monitor()


def test_a_descriptor_that_is_no_connection_of_ours_is_left_alone(inbox: Inbox) -> None:
    peer = inbox.peer()
    peer.send(b"x")
    router = inbox.receiver._socket
    assert router.poll(2000)
    frames = router.recv_multipart(copy=False)
    assert not disconnect(frames[-1], ["ipc:///elsewhere", "tcp://127.0.0.1:1"])
    assert disconnect(frames[-1], inbox.receiver.endpoints)


def test_too_many_frames_are_rejected_before_they_are_read(inbox: Inbox) -> None:
    inbox.peer().send_multipart([b"x"] * (MAX_TENSORS + 3))
    assert inbox.work(lambda: inbox.rejected == ["frames"])


def test_answers_are_no_questions(inbox: Inbox) -> None:
    from vqwatch.wire import Stop

    inbox.peer().send_multipart(encode(Stop("s", "no")))
    assert inbox.work(lambda: inbox.rejected == ["direction"])


def test_a_session_that_sends_more_than_it_may_is_held_to_it(tmp_path: Path) -> None:
    inbox = Inbox("tcp://127.0.0.1:*", session_bytes_per_second=100.0)
    peer, trainer = inbox.peer(), Trainer()
    peer.send_multipart(encode(trainer.hello()))
    for step in range(20):
        peer.send_multipart(encode(trainer.step(step)))
    assert inbox.work(lambda: len(inbox.taken) + len(inbox.rejected) == 21)
    assert set(inbox.rejected) == {"session_rate"}
    inbox.close()


def test_the_sessions_of_a_run_share_its_rate() -> None:
    rates = Rates(100.0)
    assert rates.admit("run", 500, 0.0)
    assert not rates.admit("run", 500, 0.0)
    assert rates.admit("other", 500, 0.0)
    assert rates.admit("run", 500, 5.0)


def greeted(host: str, port: int) -> socket.socket:
    """Return a bare connection on which both sides have said that they speak ZMTP 3.0 without security."""
    raw = socket.create_connection((host, port), timeout=5.0)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31))
    raw.recv(64)
    ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return raw


def test_a_frame_of_a_tebibyte_is_refused_by_its_announcement() -> None:
    inbox = Inbox("tcp://127.0.0.1:*")
    host, port = inbox.receiver.endpoints[0].removeprefix("tcp://").split(":")
    with greeted(host, int(port)) as raw:
        raw.recv(256)
        raw.sendall(b"\x02" + (1 << 40).to_bytes(8, "big"))
        while raw.recv(256):
            pass
    inbox.close()


def test_an_endless_message_meets_the_memory_limit_and_not_the_machine() -> None:
    """What libzmq does not bound, the limit that every deploy file sets does: there the peer is dropped."""
    program = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (600_000_000, 600_000_000))
from vqwatch_daemon.receiver import Receiver
box = Receiver(["tcp://127.0.0.1:*"], take=lambda *_: [], count=lambda *_: None, reject=lambda _: None)
print(box.endpoints[0].rpartition(":")[2], flush=True)
while True:
    if box.wait(0.05):
        box.drain()
"""
    daemon = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert daemon.stdout is not None
    port = int(daemon.stdout.readline())
    block = b"\x03" + (1 << 23).to_bytes(8, "big") + bytes(1 << 23)
    blocks = 0
    with greeted("127.0.0.1", port) as raw, suppress(OSError):
        for _ in range(200):
            raw.sendall(block)
            blocks += 1
    assert blocks < 100
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()


def test_every_way_to_deploy_sets_a_memory_limit() -> None:
    deploy = Path(__file__).parents[2] / "deploy"
    limits = {
        deploy / "compose.yaml": "mem_limit",
        deploy / "systemd" / "vqwatch.service": "MemoryMax",
        deploy / "systemd" / "user" / "vqwatch.service": "MemoryMax",
        deploy / "kubernetes" / "sidecar" / "job.yaml": "memory:",
        deploy / "kubernetes" / "chart" / "values.yaml": "memory:",
        deploy / "kubernetes" / "chart" / "templates" / "_helpers.tpl": "toYaml .Values.resources",
        deploy / "slurm" / "train.sbatch": "ulimit -d",
    }
    for path, word in limits.items():
        assert word in path.read_text(), path
    starting = {
        path
        for path in deploy.rglob("*")
        if path.suffix in (".service", ".sbatch", ".yaml", ".tpl")
        and re.search(r"(?i)/vqwatch daemon|VQWATCH\" daemon|\[daemon\b|image: vqwatch", path.read_text())
    }
    assert starting <= set(limits), "a file that starts the daemon and is not asked for its limit"


# --- whose directory it is ------------------------------------------------------------------------------------------


def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    os.close(guard(tmp_path / "new" / "s"))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_default_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "vqwatch").mkdir(mode=0o755)
    os.close(guard(tmp_path / "vqwatch" / "s"))
    assert (tmp_path / "vqwatch").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(ReceiverError, match="everybody may write"):
        guard(tmp_path / "open" / "s")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("link", [False, True])
def test_a_directory_that_somebody_else_put_there_first_is_refused(tmp_path: Path, link: bool) -> None:
    theirs = tmp_path / "vqwatch-0"
    if link:
        (tmp_path / "ours").mkdir(mode=0o700)
        theirs.symlink_to(tmp_path / "ours")
        os.lchown(theirs, 12345, 12345)
    else:
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 12345, 12345)
    with pytest.raises(ReceiverError, match="user 12345"):
        guard(theirs / "s")


def test_a_second_daemon_on_the_same_socket_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    short = tmp_path_factory.mktemp("s")
    first = Inbox(f"ipc://{short}/s")
    with pytest.raises(ReceiverError, match="another daemon"):
        Inbox(f"ipc://{short}/s")
    assert (short / "s").stat().st_mode & 0o777 == 0o600
    first.close()
    Inbox(f"ipc://{short}/s").close()


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_first_names_stay_and_the_rest_is_left_out_and_counted() -> None:
    names, trainer = Names(most=2), Trainer()
    names.admit(trainer.step(1, losses={"total": 1.0, "vq": 1.0}))
    message = names.admit(trainer.step(2, losses={"total": 1.0, "new": 1.0}))
    assert message.losses == {"total": 1.0}  # type: ignore[union-attr]
    assert names.dropped == {"component": 1}


def test_what_has_no_names_passes_untouched() -> None:
    names, message = Names(), Trainer().step(1, losses={"total": 1.0})
    assert names.admit(message) is message
