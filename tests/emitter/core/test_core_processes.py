"""What only a process of its own can show: imports, exits, forks, threads, and daemons that freeze or die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

SINK = Path(__file__).parents[2] / "benchmarks" / "sink.py"


def python(text: str, *arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; return how it ended and what it said."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


class Sink:
    """A daemon's stand-in, in a process of its own."""

    def __init__(self, endpoint: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SINK), endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self) -> None:
        """Be gone."""
        self.process.kill()
        self.process.communicate()


def test_importing_it_loads_no_torch() -> None:
    done = python("import sys, vqwatch; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_watching_numpy_arrays_loads_no_torch_and_starts_no_thread(endpoint: str) -> None:
    sink = Sink(endpoint)
    done = python(
        """
        import sys, threading, time
        import numpy, vqwatch
        watch = vqwatch.attach(endpoint=sys.argv[1], run="np")
        time.sleep(0.2)
        for step in range(20):
            watch.step(step, losses={"total": 1.0}, codes=numpy.zeros((2, 3), int))
        assert watch.flush(5.0)
        print("torch" in sys.modules, threading.active_count(), watch.dropped)
        watch.close()
        """,
        endpoint,
    )
    sink.end()
    assert done.stdout == "False 1 {}\n", done.stdout + done.stderr


def test_disabled_it_does_nothing_at_all(endpoint: str) -> None:
    done = python(
        """
        import vqwatch
        with vqwatch.attach(run="x") as watch:
            watch.step(0, losses={"total": 1.0})
        print(watch.dropped)
        """,
        VQWATCH_DISABLED="1",
    )
    assert done.stdout == "{}\n", done.stderr


def test_a_forked_child_does_nothing_and_the_parent_goes_on(endpoint: str) -> None:
    sink = Sink(endpoint)
    done = python(
        """
        import os, sys, time
        import numpy, vqwatch
        watch = vqwatch.attach(endpoint=sys.argv[1], run="fork")
        time.sleep(0.2)
        for step in range(10):
            watch.step(step, losses={"total": 1.0}, codes=numpy.zeros((2, 3), int))
            child = os.fork()
            if child == 0:
                watch.step(1000 + step, losses={"total": 1.0})
                watch.flush(5.0)
                watch.close(5.0)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(watch.flush(5.0), watch.dropped)
        watch.close()
        """,
        endpoint,
    )
    assert done.stdout == "True {}\n", done.stdout + done.stderr
    output, _ = sink.process.communicate()
    assert '"step": 10' in output
    assert '"goodbye": 1' in output


LOOP = """
    import os, signal, sys, time
    import torch, vqwatch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = vqwatch.attach(model, optimizer, endpoint=sys.argv[1], run="load") if sys.argv[1] else None
    pid, what = int(sys.argv[2]), sys.argv[3]
    x = torch.randn(32, 64)
    codes = torch.zeros(16, 500, 8, dtype=torch.long)
    sample = torch.randn(4, 500, 256)
    slowest, times = 0.0, []
    for step in range(400):
        if step == 150 and pid:
            os.kill(pid, getattr(signal, what))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = time.perf_counter()
        if watch is not None:
            watch.step(step, losses={"total": loss}, codes=codes, original=sample, reconstructed=sample)
        times.append(time.perf_counter() - before)
    print(model.weight.double().sum().item().hex(), sorted(times[150:])[-3])
    if watch is not None and len(sys.argv) > 4:
        watch.close()
"""


@pytest.fixture(scope="module")
def alone() -> str:
    """What the loop's weights add up to when nobody watches it."""
    return python(LOOP, "", "0", "").stdout.split()[0]


@pytest.mark.parametrize(("what", "closing"), [("SIGSTOP", True), ("SIGKILL", True), ("SIGKILL", False)])
def test_a_daemon_that_freezes_or_dies_under_load_changes_no_result_and_stops_nothing(
    endpoint: str, what: str, closing: bool, alone: str
) -> None:
    sink = Sink(endpoint)
    started = time.monotonic()
    watched = python(LOOP, endpoint, str(sink.process.pid), what, *(["close"] if closing else []))
    took = time.monotonic() - started
    if what == "SIGSTOP":
        sink.process.send_signal(signal.SIGCONT)
    sink.end()
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.split()[0] == alone
    assert float(watched.stdout.split()[1]) < 1.0
    assert "Traceback" not in watched.stderr
    assert took < 45


def test_it_ends_at_once_while_the_daemon_is_frozen(endpoint: str) -> None:
    sink = Sink(endpoint)
    program = """
        import os, signal, sys, time
        import numpy, vqwatch
        watch = vqwatch.attach(endpoint=sys.argv[1], run="exit")
        time.sleep(0.3)
        watch.step(0, losses={"total": 1.0})
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        for step in range(1, 300):
            watch.step(step, losses={"total": 1.0}, codes=numpy.zeros((8, 500, 8), int))
        print(time.time(), flush=True)
    """
    done = python(program, endpoint, str(sink.process.pid))
    ended = time.time()
    sink.process.send_signal(signal.SIGCONT)
    sink.end()
    assert done.returncode == 0, done.stderr
    assert ended - float(done.stdout) < 3.0


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to make a resolver that hangs")
def test_a_resolver_that_hangs_holds_up_neither_the_loop_nor_the_end(tmp_path: Path) -> None:
    source = tmp_path / "hang.c"
    source.write_text("#include <unistd.h>\nint getaddrinfo() { sleep(600); return -2; }\n")
    library = tmp_path / "hang.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    started = time.monotonic()
    done = python(
        """
        import time, vqwatch
        started = time.perf_counter()
        watch = vqwatch.attach(endpoint="tcp://daemon.invalid:9816", run="dns", allow_plain_tcp=True)
        for step in range(50):
            watch.step(step, losses={"total": 1.0})
        watch.close()
        print(time.perf_counter() - started)
        """,
        LD_PRELOAD=str(library),
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0
    assert time.monotonic() - started < 20
