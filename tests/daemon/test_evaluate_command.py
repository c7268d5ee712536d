"""``vqwatch evaluate`` through its front door: values, exit codes, a real daemon, a directory that is written to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from tests.daemon import evaluating
from tests.servers import wait_for
from tests.watching import Daemon

import vqwatch
from vqwatch_daemon.cli import main
from vqwatch_daemon.evaluate import pushing
from vqwatch_daemon.evaluate.forward import Sample
from vqwatch_daemon.evaluate.pushing import Push, PushError
from vqwatch_daemon.keys import Keys, make

MODULE = "evaluating_by_name"
EXAMPLES = Path(__file__).parents[2] / "emitter" / "examples"


@pytest.fixture(autouse=True)
def _user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a directory that holds the user's module, as the command expects."""
    shutil.copy(evaluating.__file__, tmp_path / f"{MODULE}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop(MODULE, None)


def arguments(**options: Any) -> list[str]:
    chosen = {"model": f"{MODULE}:build", "data": f"{MODULE}:batches", "json": True, **options}
    out = ["evaluate"]
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        out += [flag] if value is True else [] if value is None else [flag, str(value)]
    return out


def write(path: Path, scale: float = 0.9) -> Path:
    """Write a checkpoint of a model that gives back its input times ``scale``."""
    model = evaluating.build()
    model.scale.data.fill_(scale)
    torch.save(model.state_dict(), path)
    return path


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_scores_are_those_of_a_float64_loop_over_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(checkpoint=write(tmp_path / "m_40.pt"))) == 0
    found = result(capsys)
    mse, snr = [], []
    for features, mask in evaluating.batches():
        for x, valid in zip(features.double().numpy(), mask.numpy(), strict=True):
            error = ((x - x * np.float32(0.9)) ** 2)[valid]
            mse.append(error.mean())
            snr.append(10 * np.log10((x[valid] ** 2).sum() / error.sum()))
    expected = {"mean": np.mean(mse), "std": np.std(mse), "min": min(mse), "max": max(mse)}
    assert found["evaluation"]["mse"] == pytest.approx(expected, rel=1e-4)
    assert found["evaluation"]["snr_db"]["mean"] == pytest.approx(np.mean(snr), rel=1e-5)
    assert (found["samples"], found["step"]) == (14, 40)


def test_usage_is_that_of_every_valid_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(checkpoint=write(tmp_path / "x.pt"))) == 0
    model = evaluating.build()
    codes = torch.cat([model(features, mask)[1][mask] for features, mask in evaluating.batches()])
    found = result(capsys)
    assert found["layers"]["1"]["codebook_window_samples"] == len(codes)
    used = [len(codes[:, layer].unique()) / evaluating.SIZE for layer in (0, 1)]
    assert found["evaluation"]["codebook_utilization_ratio"]["mean"] == pytest.approx(np.mean(used))
    assert found["evaluation"]["identifier_unique_ratio"]["mean"] == pytest.approx(
        len(codes.unique(dim=0)) / len(codes)
    )


def test_an_adapter_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.pt")
    main(arguments(checkpoint=path))
    plain = result(capsys)
    main(arguments(checkpoint=path, forward=f"{MODULE}:named_forward"))
    adapted = result(capsys)
    for name in ("loss_recon",):
        plain["evaluation"].pop(name)
    assert adapted["evaluation"] == plain["evaluation"]


@pytest.mark.parametrize(
    ("scale", "fail_on", "code"), [(0.5, "critical", 1), (0.5, None, 0), (0.99, "critical", 0), (0.75, "info", 1)]
)
def test_the_exit_code_is_what_the_rules_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, fail_on: str | None, code: int
) -> None:
    rules = tmp_path / "rules.yaml"
    quiet = ("VqUtilizationFull", "VqPerplexityLow", "VqDeadCodes", "VqLayerUtilizationLow")
    rules.write_text("extends: default\noverride:\n" + "".join(f"  {name}: off\n" for name in quiet))
    assert main(arguments(checkpoint=write(tmp_path / "x.pt", scale), fail_on=fail_on, rules=rules)) == code
    names = {alert["alert"] for alert in result(capsys)["alerts"]}
    assert ("VqSnrLow" in names) == (scale < 0.8)  # 6 dB, 12 dB; 40 dB


def test_a_rule_of_ones_own_may_judge_a_statistic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "extends: nothing\nrules:\n"
        "  - alert: WorstSampleBad\n"
        "    when: {metric: evaluation, is: above, threshold: 0.5, where: {metric: mse, stat: max}}\n"
        "    severity: warning\n    for: 1h\n    after_step: 100000\n"
        "    annotations: {summary: A sample is bad., description: A sample is bad.}\n"
    )
    assert main(arguments(checkpoint=write(tmp_path / "x.pt", 0.1), fail_on="warning", rules=rules)) == 1
    assert "WorstSampleBad" in {alert["alert"] for alert in result(capsys)["alerts"]}


def test_a_reconstruction_that_is_not_finite_is_critical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.pt", 0.999)
    assert main(arguments(checkpoint=path, data=f"{MODULE}:broken_batches", fail_on="critical")) == 1
    found = result(capsys)
    assert "VqEvaluationNotFinite" in {alert["alert"] for alert in found["alerts"]}
    assert found["evaluation"]["nonfinite_ratio"]["mean"] == 0.25


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"checkpoint": "gone.pt"}, "No such file"),
        ({"model": "no.such:thing"}, "no.such"),
        ({"model": f"{MODULE}:nothing"}, "nothing"),
        ({"data": "without-a-colon"}, "MODULE:NAME"),
        ({"rules": "gone.yaml"}, "gone.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], text: str
) -> None:
    assert main(arguments(**{"checkpoint": write(tmp_path / "x.pt"), **options})) == 2
    assert text in capsys.readouterr().err


def test_a_table_is_shown_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(checkpoint=write(tmp_path / "x.pt"), json=None)) == 0
    shown = capsys.readouterr().out
    assert "snr_db" in shown
    assert re.search(r"\b14\s+samples", shown)


def test_the_examples_pair_works_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import train_documents as t, torch; torch.manual_seed(0);"
        f"torch.save(t.build_model().state_dict(), {str(tmp_path / 'x.pt')!r})"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, env=environment, check=True)
    pair = ["--model", "train_documents:build_model", "--data", "train_documents:validation_batches"]
    command = [sys.executable, "-m", "vqwatch_daemon.cli", "evaluate", *pair, "--checkpoint", str(tmp_path / "x.pt")]
    done = subprocess.run(
        [*command, "--json"], cwd=EXAMPLES, env=environment, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert (found["samples"], len(found["layers"])) == (54, 8)


# --- a running daemon ---------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "daemon") as running:
        yield running


def exported(daemon: Daemon, run: str) -> dict[tuple[str, str], float]:
    """Return the evaluation readings of a run, as Prometheus scrapes them."""
    pattern = re.compile(rf'^vqwatch_evaluation{{metric="(.+)",run="{run}",stat="(.+)"}} (.+)$', re.MULTILINE)
    return {(metric, stat): float(value) for metric, stat, value in pattern.findall(daemon.metrics())}


def test_pushed_streamed_and_shown_values_are_the_same(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = evaluating.build()
    model.scale.data.fill_(0.9)
    with vqwatch.attach(run="streamed", endpoint=daemon.endpoint) as watch:
        watch.step(0, losses=1.0)
        with watch.evaluation(40) as evaluation, torch.no_grad():
            for features, mask in evaluating.batches():
                reconstruction, _, _ = model(features, mask)
                evaluation.update(original=features, reconstructed=reconstruction, mask=mask)
        assert watch.flush(10.0)
    path = write(tmp_path / "m_40.pt")
    assert main(arguments(checkpoint=path, push=daemon.endpoint, run="pushed")) == 0
    shown = result(capsys)["evaluation"]
    streamed, pushed = exported(daemon, "streamed"), exported(daemon, "pushed")
    for score in ("mse", "snr_db", "cosine_similarity", "temporal_consistency"):
        for stat in ("mean", "std", "min", "max"):
            assert pushed[score, stat] == pytest.approx(shown[score][stat], rel=1e-12)
            assert streamed[score, stat] == pytest.approx(shown[score][stat], rel=1e-12)
    assert pushed["codebook_perplexity", "mean"] == pytest.approx(shown["codebook_perplexity"]["mean"])
    assert daemon.value("vqwatch_evaluation_step", run="pushed") == 40


def test_streamed_usage_is_that_of_evaluate_for_the_example(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_documents as example

    torch.manual_seed(0)
    model = example.build_model()
    features, mask = next(iter(example.validation_batches()))
    model(features, mask)  # fills the codebooks
    torch.save(model.state_dict(), tmp_path / "x.pt")
    model.eval()
    with vqwatch.attach(model, run="streamed", endpoint=daemon.endpoint) as watch, torch.no_grad():
        watch.step(0, losses=1.0)
        with watch.evaluation(0) as evaluation:
            for features, mask in example.validation_batches():
                reconstruction, codes, _ = model(features, mask)
                evaluation.update(original=features, reconstructed=reconstruction, mask=mask, codes=codes)
        assert watch.flush(20.0)
    names = {"model": "train_documents:build_model", "data": "train_documents:validation_batches"}
    assert main(arguments(**names, checkpoint=tmp_path / "x.pt")) == 0
    shown = result(capsys)["evaluation"]
    streamed = exported(daemon, "streamed")
    common = {(name, stat) for name in shown for stat in ("mean", "min", "max")} & streamed.keys()
    assert {"mse", "codebook_perplexity", "identifier_collision_ratio"} <= {name for name, _ in common}
    assert {key: streamed[key] for key in common} == pytest.approx({key: shown[key[0]][key[1]] for key in common})


def test_an_evaluator_is_no_rank_of_the_training_it_pushes_to(daemon: Daemon, tmp_path: Path) -> None:
    with vqwatch.attach(run="live", endpoint=daemon.endpoint) as watch:
        for step in range(3):
            watch.step(step, losses=1.0)
        assert watch.flush(10.0)
        assert main(arguments(checkpoint=write(tmp_path / "x.pt"), push=daemon.endpoint, run="live")) == 0
        watch.step(3, losses=1.0)
        assert watch.flush(10.0)
        daemon.wait_for_step("live", 3)
        (run,) = daemon.get("/api/runs")
        assert (run["state"], run["ranks"], run["step"]) == ("live", 1, 3)
    assert daemon.value("vqwatch_messages_rejected_total", reason="step_repeated") is None


def samples() -> Sample:
    array = np.ones((2, 3, 4), np.float32)
    return Sample(array, array * np.float32(0.5))


def test_an_evaluation_that_fails_midway_leaves_no_reading(daemon: Daemon) -> None:
    with suppress(ZeroDivisionError), Push(daemon.endpoint, "half", 1, (), timeout=10.0) as push:
        push.add(samples())
        raise ZeroDivisionError
    wait_for(lambda: [run["name"] for run in daemon.get("/api/runs")] == ["half"])
    assert exported(daemon, "half") == {}


def test_a_daemon_that_forgot_the_first_part_does_not_take_the_rest(tmp_path: Path) -> None:
    with Daemon(tmp_path / "daemon") as daemon:
        push = Push(daemon.endpoint, "r", 1, (), timeout=20.0)
        push.__enter__()
        push.add(samples())
        daemon.restart()
        push.add(samples())
        with pytest.raises(PushError, match="began anew"):
            push.__exit__(None, None, None)
        assert exported(daemon, "r") == {}


def test_a_daemon_that_kept_its_state_takes_the_rest_once(tmp_path: Path) -> None:
    with Daemon(tmp_path / "daemon", state=True) as daemon:
        with Push(daemon.endpoint, "r", 1, (), timeout=30.0) as push:
            for _ in range(3):
                push.add(samples())
            daemon.kill()
            daemon.start()
            for _ in range(3):
                push.add(Sample(samples().original, samples().original))
        found = exported(daemon, "r")
    assert (found["mse", "mean"], found["mse", "max"]) == (0.125, 0.25)


def test_a_push_that_would_leave_the_machine_without_keys_is_refused() -> None:
    with pytest.raises(PushError, match="VQWATCH_SERVER_KEY"):
        Push("tcp://192.0.2.1:9816", "r", 1, ())


@pytest.mark.parametrize("known", [True, False])
def test_a_daemon_with_keys_takes_evaluations_of_those_whom_it_knows(tmp_path: Path, known: bool) -> None:
    own = make(tmp_path / "keys", "evaluator")
    stranger = make(tmp_path / "other", "stranger")
    environment = {
        "VQWATCH_SERVER_KEY": Keys(tmp_path / "keys").public.decode(),
        "VQWATCH_KEY_FILE": str(own if known else stranger),
    }
    with Daemon(tmp_path / "daemon", ["--keys", str(tmp_path / "keys")]) as daemon:
        push = Push(daemon.endpoint, "r", 1, (), timeout=20.0 if known else 1.0, keys=pushing.keys(environment))
        with suppress(PushError), push:
            push.add(samples())
        assert bool(exported(daemon, "r")) == known


def test_no_daemon_is_told_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(PushError, match="daemon"), Push("ipc:///tmp/nobody", "r", 1, (), timeout=0.5):
        pass
    assert time.monotonic() - started < 5.0


def test_a_daemon_that_goes_as_it_is_told_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    push = Push("ipc:///tmp/nobody", "r", 1, (), timeout=0.5)
    push._socket.close()
    push._socket = zmq.Context.instance().socket(zmq.DEALER)  # with no connection at all
    monkeypatch.setattr(zmq.Socket, "poll", lambda *_: zmq.POLLOUT)
    with pytest.raises(PushError, match="no daemon"), push:
        pass


# --- a directory that is written to -------------------------------------------------------------------------------


class Watching:
    """``vqwatch evaluate --watch`` as a process; what it printed is read line by line."""

    def __init__(self, directory: Path, endpoint: str, out: Path) -> None:
        self.out = out
        options = arguments(watch=directory, poll_seconds=0.2, push=endpoint, push_seconds=1.0, run="watched")
        command = [sys.executable, "-m", "vqwatch_daemon.cli", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with out.open("wb") as file, (out.parent / "errors.txt").open("wb") as errors:
            self.process = subprocess.Popen(command, cwd=out.parent, env=environment, stdout=file, stderr=errors)

    def names(self) -> list[str]:
        return [Path(json.loads(line)["checkpoint"]).name for line in self.out.read_text().splitlines()]

    def wait_for(self, *names: str) -> None:
        wait_for(lambda: self.names() == list(names), 60.0, f"{names}, got {self.names()}")


@contextmanager
def watching(directory: Path, endpoint: str, out: Path) -> Iterator[Watching]:
    found = Watching(directory, endpoint, out)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def killed_writer(source: Path, target: Path) -> None:
    """Have a process write the first half of a file, and kill it there."""
    code = (
        f"import time; data = open({str(source)!r}, 'rb').read(); out = open({str(target)!r}, 'wb', 0)\n"
        "out.write(data[: len(data) // 2]); print('half', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()


def test_each_new_checkpoint_is_evaluated_once_in_order_despite_killed_writers_and_deletions(
    tmp_path: Path, daemon: Daemon
) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    whole = write(tmp_path / "whole.pt")
    write(directory / "step_9.pt")
    os.utime(directory / "step_9.pt", (1e9, 1e9))
    write(directory / "step_10.pt")
    os.utime(directory / "step_10.pt", (1e9, 1e9))
    with watching(directory, daemon.endpoint, tmp_path / "out.txt") as watcher:
        watcher.wait_for("step_9.pt", "step_10.pt")
        killed_writer(whole, directory / "step_11.pt")
        wait_for(lambda: "step_11.pt" in (tmp_path / "errors.txt").read_text(), 30.0, "a word about the damaged one")
        write(directory / "step_12.pt")
        watcher.wait_for("step_9.pt", "step_10.pt", "step_12.pt")
        (directory / "step_9.pt").unlink()
        write(directory / "gone.pt").unlink()
        whole.replace(directory / "step_11.pt")  # the writer came back and wrote it whole
        watcher.wait_for("step_9.pt", "step_10.pt", "step_12.pt", "step_11.pt")
        assert daemon.value("vqwatch_evaluation_step", run="watched") == 11
        assert (tmp_path / "errors.txt").read_text().count("step_11.pt") == 1
        watcher.process.send_signal(signal.SIGTERM)
        assert watcher.process.wait(20.0) == 0


def test_checkpoints_wait_in_order_for_a_daemon_that_is_away(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    for step in (1, 2):
        write(directory / f"step_{step}.pt")
        os.utime(directory / f"step_{step}.pt", (1e9, 1e9))
    daemon = Daemon(tmp_path / "daemon")
    with watching(directory, daemon.endpoint, tmp_path / "out.txt") as watcher:
        wait_for(lambda: "step_1.pt waits" in (tmp_path / "errors.txt").read_text(), 30.0, "a word about the daemon")
        with daemon:
            watcher.wait_for("step_1.pt", "step_2.pt")
            assert daemon.value("vqwatch_evaluation_step", run="watched") == 2
    assert "step_2.pt waits" not in (tmp_path / "errors.txt").read_text()
