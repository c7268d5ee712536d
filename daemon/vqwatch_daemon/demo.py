"""``vqwatch demo``: a real training beside a real daemon; a fault goes in and out, its alert fires and resolves.

Starts both as processes of their own in a temporary directory, watches them through the daemon's HTTP API as anybody
could, and leaves with 0 only if an alert fired after the fault began and every alert was resolved after it ended.
Knows no torch: the training is ``examples/train_documents.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from rich.console import Console

from vqwatch_daemon.demo_story import FAULTS, Plan, Story, verdict
from vqwatch_daemon.demo_view import View

RUN = "demo"
START_SECONDS = 30.0
POLL_SECONDS = 0.25
RESOLVE_SECONDS = 20.0
STOP_SECONDS = 5.0


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``vqwatch demo``."""
    parser.add_argument("--fault", choices=sorted(FAULTS), default="collapse", help="what goes wrong [collapse]")
    parser.add_argument("--healthy-steps", type=int, default=320, help="steps before the fault [320]")
    parser.add_argument("--rate", type=float, default=25.0, help="training steps a second at most [25]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training [0]")
    parser.add_argument("--http", default="127.0.0.1:0", help="address of the page [a free port on 127.0.0.1]")
    parser.add_argument("--hold", action="store_true", help="go on after the summary, until Ctrl-C")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live view, as without a terminal")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="vqwatch demo", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Run the demo; 0 when the alert fired and resolved, 1 when not, 2 when it could not run, 130 on Ctrl-C."""
    console = Console(highlight=False, soft_wrap=True)
    interruption = Interruption()
    try:
        with interruption, ExitStack() as stack:
            return _run(options, console, stack, interruption)
    except DemoError as error:
        console.print(f"[red]The demo could not run:[/] {error}")
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return 130


def _run(options: argparse.Namespace, console: Console, stack: ExitStack, interruption: Interruption) -> int:
    example = find_example()
    if importlib.util.find_spec("torch") is None:
        raise DemoError("the training needs torch: install vqwatch[all]")
    plan = Plan.of(options.fault, options.healthy_steps)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vqwatch-demo-")))
    address = _free(options.http)
    endpoint = f"ipc://{folder}/vqwatch.sock"

    daemon = stack.enter_context(_child("daemon", daemon_command(endpoint, address, folder / "state"), folder))
    api = Api(f"http://{address}")
    _wait_until_ready(api, daemon, interruption)
    steps = 10**9 if options.hold else plan.steps
    command = training_command(example, plan, endpoint, steps, options.rate, options.seed)
    training = stack.enter_context(_child("training", command, folder))

    story = Story(plan)
    with View(console, plan, api.address, plain=options.plain or not console.is_terminal) as view:
        _watch(api, daemon, training, story, view, interruption)
    _summarize(console, story, training)
    outcome = verdict(story)
    if options.hold:
        console.print(f"Still running at {api.address} until Ctrl-C.")
        _hold(daemon, training, interruption)
    return 0 if outcome.good else 1


def _watch(api: Api, daemon: Child, training: Child, story: Story, view: View, interruption: Interruption) -> None:
    """Look again and again until the plan is played and no alert is left, or nothing more can come."""
    over: float | None = None
    while True:
        now = time.time()
        story.see(now, api.readings(RUN), api.alerts(RUN))
        view.show(story, now)
        if daemon.poll() is not None:
            raise DemoError(f"the daemon ended early\n{daemon.last_lines()}")
        code = training.poll()
        if code not in (None, 0):
            raise DemoError(f"the training ended with {code}\n{training.last_lines()}")
        if over is None and (code == 0 or story.step >= story.plan.steps - 1):
            over = now
        if over is not None and (story.settled or now - over > RESOLVE_SECONDS):
            return
        interruption.sleep(POLL_SECONDS)


def _hold(daemon: Child, training: Child, interruption: Interruption) -> None:
    while daemon.poll() is None and training.poll() is None:
        interruption.sleep(POLL_SECONDS)


def _summarize(console: Console, story: Story, training: Child) -> None:
    outcome = verdict(story)
    for line in outcome.lines:
        console.print(line)
    if not outcome.good:
        console.print(training.last_lines())


class Interruption:
    """Ctrl-C and SIGTERM, held back until the demo sleeps: never between a child's birth and its registration."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, Any] = {}

    def sleep(self, seconds: float) -> None:
        """Sleep; raises KeyboardInterrupt when asked to end before or meanwhile."""
        if not self._asked:
            time.sleep(seconds)
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Child:
    """A process that the demo started; its output goes to a file, for the case that it fails."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = 20) -> str:
        """Return the end of what it printed."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([f"last lines of the {self.name}:", *lines[-count:]])

    def stop(self) -> None:
        """Ask it to end; after :data:`STOP_SECONDS` end it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


@contextmanager
def _child(name: str, command: Sequence[str], folder: Path) -> Iterator[Child]:
    """Start a process in a session of its own, so that Ctrl-C reaches the demo alone; stop it at the end."""
    log = folder / f"{name}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VQWATCH_")}
    environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # threads that wait for each other are slower
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
    child = Child(name, process, log)
    try:
        yield child
    finally:
        child.stop()


def daemon_command(endpoint: str, address: str, state: Path) -> list[str]:
    """Return how the daemon is started."""
    return [
        sys.executable, "-m", "vqwatch_daemon.cli", "daemon",
        "--listen", endpoint, "--http", address, "--state", str(state),
    ]  # fmt: skip


def training_command(example: Path, plan: Plan, endpoint: str, steps: int, rate: float, seed: int) -> list[str]:
    """Return how the training is started."""
    return [
        sys.executable, str(example), "--run", RUN, "--endpoint", endpoint, "--steps", str(steps),
        "--rate", str(rate), "--seed", str(seed), "--budget", "inf",
        "--fault", f"{plan.fault}@{plan.begins}:{plan.ends}",
    ]  # fmt: skip


def find_example() -> Path:
    """Return the path of ``train_documents.py``: in an installed package beside this file, else in the checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parent.parent / "emitter" / "examples"):
        if (folder / "train_documents.py").is_file():
            return folder / "train_documents.py"
    raise DemoError("examples/train_documents.py is not installed; run the demo from a checkout")


class Api:
    """The daemon's JSON API; what it cannot answer just now is empty."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._opener = build_opener(ProxyHandler({}))

    def get(self, path: str) -> Any:
        """Return the decoded answer; raises OSError or ValueError."""
        with self._opener.open(self.address + path, timeout=5) as answer:
            body = answer.read()
        return json.loads(body)

    def ready(self) -> bool:
        """Tell whether the daemon takes messages."""
        try:
            with self._opener.open(f"{self.address}/-/ready", timeout=5):
                return True
        except (URLError, OSError):
            return False

    def readings(self, run: str) -> Mapping[str, Any]:
        """Return the run's readings as ``/api/runs/{run}/readings`` has them."""
        try:
            found: Mapping[str, Any] = self.get(f"/api/runs/{run}/readings")
        except (OSError, ValueError):
            return {}
        return found

    def alerts(self, run: str) -> list[Mapping[str, Any]]:
        """Return the run's alerts as ``/api/alerts`` has them."""
        try:
            return [alert for alert in self.get("/api/alerts") if alert["run"] == run]
        except (OSError, ValueError):
            return []


def _wait_until_ready(api: Api, daemon: Child, interruption: Interruption) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not api.ready():
        if daemon.poll() is not None:
            raise DemoError(f"the daemon ended with {daemon.poll()}\n{daemon.last_lines()}")
        if time.monotonic() > deadline:
            raise DemoError(f"the daemon was not ready after {START_SECONDS:.0f} s\n{daemon.last_lines()}")
        interruption.sleep(0.05)


def _free(address: str) -> str:
    """Return the address with a free port where it asks for port 0."""
    host, _, port = address.rpartition(":")
    if port != "0":
        return address
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
