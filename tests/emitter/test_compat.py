"""The proposal's loop, section 9, with the stand-ins in place of its monitors, beside a real daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.servers import wait_for
from tests.watching import Daemon

import vqwatch
from vqwatch import compat

EXAMPLES = Path(__file__).parents[2] / "emitter" / "examples"

LOOP = """
import documents, torch
from itertools import islice
from train_documents import build_model
from vqwatch.compat import CodebookMonitor, EMAMonitor, ReconstructionMonitor, TrainingMonitor

torch.manual_seed(0)
torch.set_num_threads(1)
corpus, _ = documents.load()
rqvae = build_model()
optimizer = torch.optim.AdamW(rqvae.parameters(), lr=0.25e-3)

monitor = TrainingMonitor()
codebook_monitor = CodebookMonitor(num_embeddings=256, num_layers=8)
ema_monitor = EMAMonitor(rqvae.quantizer.layers)
recon_monitor = ReconstructionMonitor()

for step, (features, mask) in enumerate(islice(documents.batches(corpus, 16, 64, 0), 60)):
    recon, codes, losses = rqvae(features, mask)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()

    codebook_monitor.update(codes)
    ema_logs = ema_monitor.update()
    recon_logs = recon_monitor.compute_metrics(features, recon, mask)
    {more}
    logs = {{**ema_logs, **recon_logs, **codebook_monitor.get_summary()}}
    assert logs == {{}}
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    with Daemon(tmp_path / "daemon") as running:
        yield running


@pytest.mark.parametrize("with_losses", [True, False], ids=["with log_step", "as in section 9"])
def test_the_proposals_loop_is_watched_unchanged(daemon: Daemon, with_losses: bool) -> None:
    more = "assert monitor.log_step(rqvae, optimizer, losses, step) == {'train/lr': 0.25e-3}" if with_losses else ""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VQWATCH_ENDPOINT": daemon.endpoint, "VQWATCH_RUN": "moved"}
    done = subprocess.run([sys.executable, "-c", LOOP.format(more=more)], cwd=EXAMPLES, env=environment, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    # A sample is due at 0, where one may not be connected yet, and at 50.
    daemon.wait_for_step("moved", 59)
    assigned = partial(daemon.value, "vqwatch_codebook_assignments_total", run="moved", layer="0")
    wait_for(lambda: (assigned() or 0) > 59 * 16 * 20)
    assert daemon.value("vqwatch_codebook_tokens_per_step", run="moved", layer="7")
    assert daemon.value("vqwatch_reconstruction_snr_db", run="moved") is not None
    assert daemon.value("vqwatch_ema_cluster_size_mean", run="moved", layer="3") is not None
    assert (daemon.value("vqwatch_loss", run="moved", component="recon") is not None) == with_losses
    assert (daemon.value("vqwatch_gradient_norm", run="moved") is not None) == with_losses
    assert (daemon.value("vqwatch_learning_rate", run="moved", group="0") == 0.25e-3) == with_losses


class Heard:
    """Stands where an emitter stands and keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, frozenset[str]]] = []

    def step(self, step: int, **told: object) -> None:
        self.steps.append((step, frozenset(told)))


def monitors(heard: Heard) -> tuple[compat.CodebookMonitor, compat.ReconstructionMonitor, compat.TrainingMonitor]:
    watch: vqwatch.Emitter = heard  # type: ignore[assignment]
    return compat.CodebookMonitor(16, 2, watch), compat.ReconstructionMonitor(watch), compat.TrainingMonitor(watch)


CODES, FEATURES = torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 5, 3)
PARTS = frozenset({"codes", "original", "reconstructed", "mask"})


def test_a_step_is_sent_as_soon_as_it_is_whole() -> None:
    heard = Heard()
    codebook, reconstruction, _ = monitors(heard)
    sent = []
    for _ in range(3):
        codebook.update(CODES)
        reconstruction.compute_metrics(FEATURES, FEATURES)
        sent.append(list(heard.steps))
    assert sent == [[], [(0, PARTS), (1, PARTS)], [(0, PARTS), (1, PARTS), (2, PARTS)]]


def test_log_step_gives_the_number() -> None:
    heard = Heard()
    codebook, _, training = monitors(heard)
    model = torch.nn.Linear(1, 1)
    for step in (100, 101):
        codebook.update(CODES)
        training.log_step(model, torch.optim.SGD(model.parameters(), lr=0.1), {"total": torch.ones(())}, step)
    assert [step for step, _ in heard.steps] == [100, 101]


@pytest.mark.parametrize("codes_first", [True, False])
def test_a_validation_loop_makes_no_steps_and_disturbs_none(codes_first: bool) -> None:
    pairs: list[tuple[float, float]] = []

    class Keeper(Heard):
        def step(self, step: int, **told: object) -> None:
            pairs.append(tuple(float(told[name].flatten()[0]) for name in ("codes", "original")))  # type: ignore

    codebook, reconstruction, _ = monitors(Keeper())
    for step in range(5):
        calls = [
            lambda step=step: codebook.update(CODES + step),
            lambda step=step: reconstruction.compute_metrics(FEATURES * step, FEATURES),
        ]
        for call in calls if codes_first else calls[::-1]:
            call()
        for _ in range(step % 2 * 3):
            reconstruction.compute_metrics(FEATURES * -1, FEATURES)
    assert pairs[-3:] == [(2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]


def test_a_monitor_of_reconstructions_alone_steps_with_every_call() -> None:
    heard = Heard()
    watch: vqwatch.Emitter = heard  # type: ignore[assignment]
    monitor = compat.ReconstructionMonitor(watch)
    for _ in range(4):
        monitor.compute_metrics(FEATURES, FEATURES)
    assert [step for step, _ in heard.steps] == [0, 1, 2, 3]


def test_graphs_are_not_held() -> None:
    told: dict[str, torch.Tensor] = {}

    class Keeper(Heard):
        def step(self, step: int, **parts: torch.Tensor) -> None:
            told.update(parts)

    watch: vqwatch.Emitter = Keeper()  # type: ignore[assignment]
    monitor = compat.ReconstructionMonitor(watch)
    grown = FEATURES * torch.ones((), requires_grad=True)
    for _ in range(2):
        monitor.compute_metrics(FEATURES, grown)
    assert not told["reconstructed"].requires_grad


def test_codes_alone_are_watched_with_the_sizes_that_were_told(daemon: Daemon) -> None:
    code = (
        "import time, torch; from vqwatch.compat import CodebookMonitor\n"
        "m = CodebookMonitor(num_embeddings=16, num_layers=2)\n"
        "for step in range(60):\n"  # codes are sent once the daemon has answered
        "    m.update(torch.arange(32).reshape(16, 2) % 16)\n"
        "    time.sleep(0.02)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VQWATCH_ENDPOINT": daemon.endpoint, "VQWATCH_RUN": "alone"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for(lambda: (daemon.value("vqwatch_codebook_assignments_total", run="alone", layer="1") or 0) >= 16)
    assert daemon.value("vqwatch_codebook_size", run="alone", layer="1") == 16
    assert daemon.value("vqwatch_codebook_embedding_variance", run="alone", layer="1") is None


def test_without_a_daemon_nothing_happens() -> None:
    code = (
        "import torch; from vqwatch.compat import CodebookMonitor\n"
        "m = CodebookMonitor(16, 2)\nfor step in range(5): m.update(torch.zeros(4, 2, dtype=torch.long))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VQWATCH_DISABLED": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_importing_it_loads_no_torch() -> None:
    probe = "import sys, vqwatch.compat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
