"""The batch script under bash, with the daemon of this project; only Slurm's own commands are stood in for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers import free_port, wait_for

from .tools import DEPLOY, passes, tool

SCRIPT = DEPLOY / "slurm" / "train.sbatch"


def test_shellcheck_has_nothing_to_say_about_the_script() -> None:
    assert passes("shellcheck", "--severity=style", SCRIPT) == ""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Start]:
    """Start the script as Slurm would: ``job("sh", "-c", "…")``, with ``srun`` and ``scancel`` of this test."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text(f'#!/bin/sh\necho $$ > {tmp_path}/step.pid\nexec "$@"\n')
    (commands / "scancel").write_text(f"#!/bin/sh\nkill -TERM $(cat {tmp_path}/step.pid)\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    tool("curl")
    started = []

    def start(*command: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_ID": str(free_port()),
            "SLURM_JOB_NAME": "try",
            "VQWATCH": str(Path(sys.executable).parent / "vqwatch"),
            "VQWATCH_TARGETS": str(tmp_path / "targets"),
        }
        process = subprocess.Popen(
            ["bash", SCRIPT, *command],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def target(directory: Path) -> dict[str, object] | None:
    for file in (directory / "targets").glob("*.json"):
        return dict(json.loads(file.read_text())[0])
    return None


def test_the_trainer_finds_its_daemon_and_prometheus_finds_it_too(job: Start, tmp_path: Path) -> None:
    process = job(
        "sh", "-c", 'echo "run $VQWATCH_RUN"; test -S "${VQWATCH_ENDPOINT#ipc://}" && echo reachable; sleep 2'
    )
    found = wait_for(lambda: target(tmp_path), 20.0, "the target file")
    assert set(found["labels"]) == {"slurm_job_id", "slurm_user"}  # type: ignore[call-overload]
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "run try-" in output
    assert "reachable" in output
    assert target(tmp_path) is None
    assert not list(Path("/tmp").glob(f"vqwatch-{found['labels']['slurm_job_id']}.*"))  # type: ignore[index]


def test_the_job_fails_as_its_trainer_does(job: Start, tmp_path: Path) -> None:
    process = job("sh", "-c", "exit 7")
    process.communicate(timeout=30)
    assert process.returncode == 7
    assert target(tmp_path) is None


@pytest.mark.alone
def test_a_signal_from_slurm_reaches_the_trainer_and_the_daemon_ends_in_order(job: Start, tmp_path: Path) -> None:
    process = job("sh", "-c", "trap 'echo saved; exit 3' TERM; while :; do sleep 0.1; done")
    wait_for(lambda: (tmp_path / "step.pid").exists(), 20.0, "the trainer")
    time.sleep(0.3)  # the shell needs a moment to set its trap
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 3, output
    assert "saved" in output
    assert target(tmp_path) is None


def test_training_goes_on_when_the_daemon_cannot_start(job: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQWATCH_WINDOW", "none")
    process = job("echo", "trained")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "trained" in output
    assert "VQWATCH_WINDOW" in output


def test_without_a_command_the_script_says_how_it_is_used(job: Start) -> None:
    process = job()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "usage" in output
