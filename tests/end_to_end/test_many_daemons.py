"""Four daemons with two ranks each say, under one Prometheus, what one daemon says that saw all eight."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import yaml
import zmq
from tests.messages import Trainer, layers
from tests.servers import Prometheus, Server, get, wait_for
from tests.watching import ROOT, Daemon

from vqwatch.wire import encode

RULES = ROOT / "deploy" / "prometheus" / "rules" / "recording-whole-job.yml"
RANKS, DAEMONS, LAYERS, CODES = 8, 4, 2, 32
STEPS, VECTORS = 60, 64  # fewer steps than the window has
ASSIGNMENTS = RANKS * STEPS * VECTORS

# What the whole job's rules record -> what one daemon says of its window.
SAME = {
    "run_layer:vqwatch_codebook_utilization_ratio:increase5m": "vqwatch_codebook_utilization_ratio",
    "run_layer:vqwatch_codebook_entropy_nats:increase5m": "vqwatch_codebook_entropy_nats",
    "run_layer:vqwatch_codebook_perplexity:increase5m": "vqwatch_codebook_perplexity",
    "run_layer:vqwatch_codebook_dead_codes:increase5m": "vqwatch_codebook_dead_codes",
}


class Asked(Protocol):
    """Something that answers PromQL."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        ...


class VictoriaMetrics(Server):
    """A real VictoriaMetrics that scrapes ``targets`` each second."""

    program = "victoria-metrics"

    def __init__(self, directory: Path, targets: list[str]) -> None:
        super().__init__(directory)
        self.targets = targets

    def command(self) -> list[str]:
        """Return the arguments: loopback only, answers up to now."""
        file = self.directory / "scrape.yml"
        scrape = {"job_name": "vqwatch", "static_configs": [{"targets": self.targets}]}
        file.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
        return [
            f"-promscrape.config={file}",
            f"-storageDataPath={self.directory / 'data'}",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-search.latencyOffset=0s",
            "-search.disableCache",
        ]

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        answer = get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])


class Job:
    """Five daemons that have seen the same training: four a quarter of the ranks each, ``whole`` all of them."""

    def __init__(self, whole: Daemon, parts: list[Daemon]) -> None:
        self.whole, self.parts = whole, parts

    @property
    def targets(self) -> list[str]:
        """Where Prometheus finds the four."""
        return [f"127.0.0.1:{daemon.port}" for daemon in self.parts]

    def expected(self) -> dict[str, dict[str, float]]:
        """Return what the one daemon says, by recorded name and layer."""
        found: dict[str, dict[str, float]] = {}
        for record, name in SAME.items():
            values = {str(layer): self.whole.value(name, layer=str(layer), run="job") for layer in range(LAYERS)}
            assert None not in values.values(), f"{name} has no value"
            found[record] = {layer: value for layer, value in values.items() if value is not None}
        return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Let eight ranks speak to their daemon of four, and to the one."""
    directory = tmp_path_factory.mktemp("job")
    with ExitStack() as stack:
        options = ["--per-code-series", "1000"]
        whole, *parts = (
            stack.enter_context(Daemon(directory / f"daemon{number}", options)) for number in range(1 + DAEMONS)
        )
        context = stack.enter_context(zmq.Context())
        for number, daemon in enumerate(parts):
            speak(context, [daemon, whole], range(number, RANKS, DAEMONS), stack)
        for daemon, share in [(whole, ASSIGNMENTS), *((part, ASSIGNMENTS // DAEMONS) for part in parts)]:
            wait_for(partial(counted, daemon, share), 30.0, f"{share} in each layer")
        yield Job(whole, parts)


def speak(context: zmq.Context[Any], daemons: list[Daemon], ranks: range, stack: ExitStack) -> None:
    """Send the same training of some ranks to each daemon; few codes are used often, some hardly ever."""
    for daemon in daemons:
        for rank in ranks:
            socket = stack.enter_context(context.socket(zmq.DEALER))
            socket.connect(daemon.endpoint)
            trainer, rng = Trainer("job", rank, f"s{rank}", RANKS), np.random.default_rng(rank)
            share = 0.7 ** np.arange(CODES)
            socket.send_multipart(encode(trainer.hello(layers(LAYERS, CODES))))
            for step in range(STEPS):
                indices = rng.choice(CODES, (LAYERS, VECTORS), p=share / share.sum()).astype(np.uint8)
                socket.send_multipart(encode(trainer.codes(step, indices)))


def counted(daemon: Daemon, share: int) -> bool:
    """Return whether a daemon has counted so many assignments in every layer."""
    name = "vqwatch_codebook_assignments_total"
    return all(daemon.value(name, layer=str(layer), run="job") == share for layer in range(LAYERS))


def recorded(asked: Asked, expression: str) -> dict[str, float]:
    return {item["metric"]["layer"]: float(item["value"][1]) for item in asked.query(expression)}


def expressions() -> dict[str, str]:
    """Return the rules' expressions, each in terms of what the daemons export."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    whole: dict[str, str] = {}
    for rule in group["rules"]:
        text = rule["expr"]
        for name, inner in whole.items():
            text = text.replace(name, f"({inner})")
        whole[rule["record"]] = text
    return whole


def test_prometheus_records_what_one_daemon_says(
    job: Job, tmp_path: Path, start_prometheus: Callable[..., Prometheus]
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES.read_text().replace("interval: 15s", "interval: 1s"))
    prometheus = start_prometheus(job.targets, rule_files=[rules])
    total = "sum(run_layer_code:vqwatch_codebook_code_assignments:increase5m)"
    wait_for(lambda: prometheus.query(f"{total} == {ASSIGNMENTS * LAYERS}"), 30.0, "every assignment", pause=0.2)
    known = time.time()
    rules_api = f"{prometheus.url}/api/v1/rules"
    wait_for(lambda: _evaluated(rules_api) > known, 15.0, "one more evaluation", pause=0.2)
    expected = job.expected()
    for record in SAME:
        assert recorded(prometheus, record) == pytest.approx(expected[record], rel=1e-12), record
    assert all(0 < value < CODES for value in expected["run_layer:vqwatch_codebook_dead_codes:increase5m"].values())


def _evaluated(rules_api: str) -> float:
    [group] = get(rules_api)["data"]["groups"]
    return datetime.fromisoformat(group["lastEvaluation"]).timestamp()


def test_victoria_metrics_computes_what_one_daemon_says(job: Job, tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path / "vm", job.targets) as victoria:
        asked = expressions()
        total = f"sum({asked['run_layer_code:vqwatch_codebook_code_assignments:increase5m']})"
        wait_for(
            lambda: [item["value"][1] for item in victoria.query(total)] == [str(ASSIGNMENTS * LAYERS)],
            30.0, "every assignment", pause=0.2,
        )  # fmt: skip
        expected = job.expected()
        for record in SAME:
            assert recorded(victoria, asked[record]) == pytest.approx(expected[record], rel=1e-12), record


def test_the_average_of_the_daemons_would_be_another_figure(job: Job) -> None:
    """The plain way, averaging each daemon's own perplexity, is not exact: why there are counters of single codes."""
    averages = [daemon.value("vqwatch_codebook_perplexity", layer="0", run="job") or 0.0 for daemon in job.parts]
    whole = job.expected()["run_layer:vqwatch_codebook_perplexity:increase5m"]["0"]
    assert abs(sum(averages) / DAEMONS - whole) > 1e-6 * whole


def test_nothing_was_cut(job: Job) -> None:
    assert [daemon.value("vqwatch_series_capped_total") for daemon in job.parts] == [0.0] * DAEMONS
