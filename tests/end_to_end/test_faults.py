"""What happens to the daemon, the network or the process must not happen to the training, nor to what must arrive."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.end_to_end.faulty import Training
from tests.end_to_end.hanging_names import NAME, confined
from tests.end_to_end.proxy import Proxy
from tests.servers import free_port, wait_for
from tests.watching import Daemon

from vqwatch_daemon import keys
from vqwatch_daemon.keys import Keys

pytestmark = pytest.mark.alone

STEPS = 300
SNAPSHOTS = ("--snapshot-seconds", "0.3")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, SNAPSHOTS, state=True) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """The training by itself: nobody listens and nothing is sent."""
    with Training("") as training:
        return training.result()


def arrived(daemon: Daemon, ranks: int = 1, steps: int = STEPS) -> bool:
    """Every step's gradient norm is NaN, and each arrival is counted once: a loss or a double would show."""
    counted = daemon.value("vqwatch_nonfinite_total", run="tiny", source="gradient")
    return counted == ranks * steps and daemon.value("vqwatch_step", run="tiny") == steps


def check_training(result: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """Results are the same to the bit, steps are not slower than a busy machine makes them, memory is bounded."""
    assert result["digest"] == undisturbed["digest"]
    assert result["attaching"] < 2.0
    assert result["p50_after"] < 3 * result["p50_before"] + 0.002
    assert result["p99"] < 0.05
    assert result["grown_kb"] < 40_000
    assert result["threads_left"] <= result["threads_before"], "a thread more than attach() needed"


def check_tensors(daemon: Daemon, result: dict[str, Any]) -> None:
    """What was sent arrived or is counted as lost; what was not sent is counted by the emitter."""
    kinds = ("codes", "reconstruction")
    sent = sum(result["sent"].get(kind, 0) for kind in kinds)

    def accounted() -> float:
        received = sum(daemon.value("vqwatch_messages_received_total", kind=kind) or 0 for kind in kinds)
        return received + (daemon.value("vqwatch_messages_lost_total", run="tiny", rank="0") or 0)

    wait_for(lambda: accounted() == sent, 3.0, f"{sent} messages to be accounted for, {accounted()} are")


def check_codes_counted(result: dict[str, Any]) -> None:
    """Each step's codes were handed to the socket, or are counted by the emitter as not sent."""
    left_out = sum(count for key, count in result["dropped"].items() if key.startswith("codes:"))
    assert result["sent"].get("codes", 0) + left_out == STEPS, (result["sent"], result["dropped"])


def finish(daemon: Daemon, training: Training, undisturbed: dict[str, Any]) -> dict[str, Any]:
    result = training.result()
    wait_for(lambda: arrived(daemon), 5.0, "every step")
    check_training(result, undisturbed)
    return result


def test_nothing_happens(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        result = finish(daemon, training, undisturbed)
        check_tensors(daemon, result)
    assert result["dropped"].get("step:backlog", 0) == 0


def test_nothing_is_sent_twice_where_steps_are_slow(daemon: Daemon) -> None:
    with Training(daemon.endpoint, "--steps", "32", "--pace", "0.25") as training:
        training.result()
    wait_for(lambda: arrived(daemon, steps=32), 5.0, "every step")
    assert daemon.value("vqwatch_messages_rejected_total", reason="duplicate") is None


def test_the_daemon_is_frozen_for_half_of_the_training(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        daemon.signal(signal.SIGSTOP)
        training.wait_for("stepped")
        daemon.signal(signal.SIGCONT)
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_daemon_is_killed_and_started_again(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        daemon.kill()
        daemon.__enter__()
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_daemon_is_restarted_in_order(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        daemon.signal(signal.SIGTERM)
        assert daemon.process is not None
        assert daemon.process.wait(10.0) == 0
        daemon.__enter__()
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_daemon_comes_late(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    socket = Path(daemon.endpoint.removeprefix("ipc://"))
    late = socket.with_name("late")
    with Training(f"ipc://{late}", "--pace", "0.03") as training:
        training.wait_for("half")
        assert daemon.value("vqwatch_step", run="tiny") is None
        late.symlink_to(socket)
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_daemon_is_killed_again_and_again_as_soon_as_it_is_there(
    daemon: Daemon, undisturbed: dict[str, Any]
) -> None:
    lives = 0
    with Training(daemon.endpoint, "--pace", "0.06") as training:
        training.wait_for("half")  # close() does not wait for a daemon that was never heard of
        while not training.ended("stepped"):
            daemon.kill()
            daemon.__enter__()
            lives += 1
        check_codes_counted(finish(daemon, training, undisturbed))
    assert lives >= 2


def test_the_daemon_gets_a_quarter_of_the_time(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint, "--pace", "0.002") as training:
        training.wait_for("half")
        while not training.ended("stepped"):
            daemon.signal(signal.SIGSTOP)
            time.sleep(0.06)
            daemon.signal(signal.SIGCONT)
            time.sleep(0.02)
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_disk_is_full_for_half_of_the_training(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        assert daemon.process is not None
        before = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        training.wait_for("stepped")
        wait_for(lambda: daemon.value("vqwatch_state_safe") == 0, 3.0, "the daemon to notice")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, before)
        check_tensors(daemon, finish(daemon, training, undisturbed))
        assert daemon.value("vqwatch_state_safe") == 1
        assert (daemon.value("vqwatch_state_write_failures_total") or 0) > 0


def test_the_daemon_runs_out_of_file_descriptors(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        assert daemon.process is not None
        before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        training.wait_for("stepped")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_training_forks(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint, "--fork") as training:
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_a_second_daemon_does_not_get_the_socket(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint) as training:
        training.wait_for("half")
        command = [sys.executable, "-m", "vqwatch_daemon.cli", "daemon", "--listen", daemon.endpoint]
        second = subprocess.run(
            [*command, "--http", "127.0.0.1:0"], capture_output=True, text=True, timeout=20, check=False
        )
        assert second.returncode == 2
        assert "another daemon listens" in second.stderr
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_training_ends_at_once_while_the_daemon_is_down(daemon: Daemon, undisturbed: dict[str, Any]) -> None:
    with Training(daemon.endpoint, "--close", "0.5") as training:
        training.wait_for("half")
        daemon.kill()
        result = training.result()
    check_training(result, undisturbed)
    check_codes_counted(result)
    assert result["closing"] < 1.5
    daemon.__enter__()
    known = daemon.value("vqwatch_nonfinite_total", run="tiny", source="gradient")
    acknowledged = result["acknowledged"] - 1  # without the introduction
    assert 0 < acknowledged <= (known or 0) < STEPS


# --- over a network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[Daemon, Proxy]]:
    port = free_port()
    with (
        Daemon(tmp_path, ["--listen", f"tcp://127.0.0.1:{port}", *SNAPSHOTS], state=True) as started,
        Proxy(port) as way,
    ):
        yield started, way


def test_the_network_swallows_everything_for_a_while(
    network: tuple[Daemon, Proxy], undisturbed: dict[str, Any]
) -> None:
    daemon, way = network
    with Training(f"tcp://127.0.0.1:{way.port}") as training:
        training.wait_for("half")
        way.frozen = True
        training.wait_for("stepped")
        way.frozen = False
        check_tensors(daemon, finish(daemon, training, undisturbed))


def test_the_network_is_slow(network: tuple[Daemon, Proxy], undisturbed: dict[str, Any]) -> None:
    daemon, way = network
    with Training(f"tcp://127.0.0.1:{way.port}") as training:
        training.wait_for("half")
        way.bytes_per_second = 300_000
        training.wait_for("stepped")
        way.bytes_per_second = None
        check_tensors(daemon, finish(daemon, training, undisturbed))


@pytest.mark.parametrize("answers", ["never", "half"])
def test_the_daemons_name_is_not_answered_for(answers: str, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    found = confined(tmp_path, answers)
    assert set(found["asked"]) == {NAME}, "the name server was not asked: nothing hung"
    check_training(found["training"], undisturbed)
    check_codes_counted(found["training"])
    assert found["training"]["dropped"].get("step:backlog", 0) == 0
    if answers == "half":
        assert found["arrived"] == STEPS
    else:
        assert found["training"]["closing"] < 0.5
        assert found["leaving"] < 2.0, "the resolver kept the process from its end"


def test_a_wrong_key_keeps_the_data_out_and_the_training_going(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    keys.make(tmp_path / "keys", "good")
    server = Keys(tmp_path / "keys").public.decode()
    port = free_port()
    wrong = tmp_path / "wrong"
    keys.make(wrong, "other")
    options = ["--listen", f"tcp://127.0.0.1:{port}", "--keys", str(tmp_path / "keys")]
    with Daemon(tmp_path, options) as daemon:
        for name, key_file in (("good", tmp_path / "keys" / "good"), ("wrong", wrong / "other")):
            with Training(
                f"tcp://127.0.0.1:{port}", "--close", "0.3" if name == "wrong" else "10",
                VQWATCH_SERVER_KEY=server, VQWATCH_KEY_FILE=f"{key_file}.key_secret",
            ) as training:  # fmt: skip
                result = training.result()
            check_training(result, undisturbed)
            check_codes_counted(result)
            assert arrived(daemon)
        assert (daemon.value("vqwatch_peers_refused_total") or 0) >= 1
        assert daemon.value("vqwatch_messages_received_total", kind="hello") == 1
    assert zmq.has("curve")
