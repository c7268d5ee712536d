"""Every panel's query, and every rule, put to a real Prometheus that scrapes a real daemon under a real training."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers import Prometheus, free_port, require_server, wait_for

from .promql import metric_names
from .tools import DEPLOY, ROOT

STEPS = 160

# What a short, healthy training with one rank and no Alertmanager has no series of, and why.
MAY_BE_EMPTY = {
    r"evaluation(_step)?": "no full evaluation was made",
    r"alerts_firing": "nothing fires",
    r"alerts_sent_total": "no Alertmanager",
    r"\w+_(dropped|failures|rejected|errors)_total": "nothing goes wrong",
    r"codebook_rank_divergence_ratio": "one rank",
    r"ema_revival_survival_ratio": "nothing is revived",
    r"codebook_dead_(codes|ratio)": "the window is too short for a verdict",
    r"codebook_code_assignments_total": "single codes were not asked for",
    r"messages_shed_total": "the daemon keeps up",
    r"messages_late_total": "one rank, which is never behind another",
    r"codebook_mutual_information_nats": "computed each 400 steps, from enough pairs only",
    r"update_to_weight_ratio": "the emitter does not measure it",
    r"sink_\w+": "no sink is set up",
}


@dataclass
class Watched:
    """A training under way, its daemon, and the Prometheus that scrapes it."""

    prometheus: Prometheus
    url: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    importlib.import_module("torch")
    require_server("prometheus")
    directory = tmp_path_factory.mktemp("live")
    port, endpoint = free_port(), f"ipc://{directory}/socket/vqwatch.sock"
    url = f"http://127.0.0.1:{port}"
    python = Path(sys.executable)
    with ExitStack() as stack:
        command = ["daemon", f"--listen={endpoint}", f"--http=127.0.0.1:{port}", f"--state={directory / 'state'}"]
        stack.enter_context(process([python.parent / "vqwatch", *command, "--log-level=error"]))
        wait_for(lambda: answers(f"{url}/-/ready"), 30.0, "the daemon")
        rules = sorted((DEPLOY / "prometheus").glob("rules/*.yml"))
        server = Prometheus(directory / "prometheus", [f"127.0.0.1:{port}"], rule_files=rules)
        stack.enter_context(server)
        example = ROOT / "emitter" / "examples" / "train_documents.py"
        training = stack.enter_context(
            process(
                [python, example, "--steps=100000", "--rate=25", "--run=live", "--threads=1"],
                {**os.environ, "VQWATCH_ENDPOINT": endpoint},
            )
        )
        wait_for(lambda: server.query(f"vqwatch_step > {STEPS}"), 120.0, f"step {STEPS} at Prometheus", pause=0.5)
        assert training.poll() is None
        yield Watched(server, url)


@contextmanager
def process(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends."""
    started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def queries() -> dict[str, str]:
    """Return every panel's query with the dashboard's variables filled in, by dashboard and title."""
    found = {}
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                expr = target["expr"].replace("$__rate_interval", "15s")
                found[f"{file.stem}: {panel['title']}"] = re.sub(r"\$\w+", ".*", expr)
    return found


def test_every_panel_has_something_to_show(watched: Watched) -> None:
    asked = queries()
    allowed = re.compile(f"vqwatch_({'|'.join(MAY_BE_EMPTY)})")
    needed = [title for title, expr in asked.items() if not any(map(allowed.fullmatch, metric_names(expr)))]

    def empty() -> list[str]:
        return [title for title in needed if not watched.prometheus.query(asked[title])]

    deadline = time.monotonic() + 30.0
    while (missing := empty()) and time.monotonic() < deadline:
        time.sleep(1.0)  # some come a few scrapes later, where the machine is busy
    assert missing == []
    assert len(needed) > 0.7 * len(asked)


def test_the_variables_offer_the_run_the_layers_and_the_daemon(watched: Watched) -> None:
    def values(metric: str, label: str) -> set[str]:
        return {item["metric"][label] for item in watched.prometheus.query(metric)}

    assert values("vqwatch_run_info", "run") == {"live"}
    assert values("vqwatch_codebook_size", "layer") == {str(layer) for layer in range(8)}
    assert values("vqwatch_build_info", "instance") == {watched.url.removeprefix("http://")}


def test_the_recording_rules_record_and_no_alert_about_the_watcher_fires(watched: Watched) -> None:
    for record in ("run:vqwatch_codebook_utilization_ratio:min", "run:vqwatch_nonfinite:increase5m"):
        wait_for(lambda record=record: watched.prometheus.query(record), 20.0, record)
    firing = {item["metric"]["alertname"] for item in watched.prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing == {"VqWatchdog"}


def test_prometheus_finds_no_fault_with_the_rules(watched: Watched) -> None:
    with urllib.request.urlopen(f"{watched.prometheus.url}/api/v1/rules", timeout=5.0) as response:
        groups = json.load(response)["data"]["groups"]
    assert len(groups) == 4
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
