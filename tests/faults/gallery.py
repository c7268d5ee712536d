"""Plays faults: real training, the real emitter over ipc, the daemon's receiver, hub and rules; time is simulated.

A seed's healthy training is played once; every fault then goes on from its last step with a copy of
everything, the daemon's memory included, in an emitter session of its own. Between two steps :data:`STEP_SECONDS` pass,
whatever the machine is doing, and a step is not made before the daemon has heard of the one before it, so that outcomes
depend on seeds alone.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tests.emitter.families.libraries import skeleton
from tests.faults.listening import RUN, Daemon, Fired, Teller
from torch.nn.utils import clip_grad_norm_

import vqwatch
from vqwatch_daemon.hub import Hub

EXAMPLES = Path(__file__).parents[2] / "emitter" / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import documents  # noqa: E402  # needs the path above
import faults as examples_faults  # noqa: E402
import train_documents  # noqa: E402

STEP_SECONDS = 0.05


@dataclass(frozen=True)
class Setting:
    """What a gallery run trains: the quantizer's library, documents per batch, frames per document.

    ``replace_below`` is the threshold for dead codes in fair shares, None: the example's. ``begin_with`` fills the
    codebooks before the training: documents in a batch, and passes.
    """

    quantizer: str = "ema"
    batch_size: int = 16
    length: int = 32
    replace_below: float | None = None
    begin_with: tuple[int, int] | None = None


SMALL: dict[str, Any] = {
    "batch_size": 4, "length": 8, "replace_below": 0.02, "begin_with": (64, 10)
}  # fmt: skip
"""Batches of at most 32 codes, set up as one has to for them: the example's threshold of 0.2 assignments a step would
be 1.6 fair shares, and codebooks of 256 codes cannot be filled from 32 vectors."""


@cache
def corpus() -> documents.Corpus:
    """Return the training documents, read once."""
    return documents.load()[0]


def build(setting: Setting) -> torch.nn.Module:
    """Return an untrained model."""
    if setting.quantizer == "moshi":
        skeleton("moshi")
    model = train_documents.build_model(setting.quantizer, setting.length)
    if setting.replace_below is not None:
        for book in examples_faults.books(model):
            uniform = setting.batch_size * setting.length / len(book.counts)
            share = setting.replace_below
            setattr(book.module, book.library.threshold, share if book.library.relative else share * uniform)
    return model


def fill(model: torch.nn.Module, setting: Setting, seed: int) -> None:
    """Initialise the codebooks from larger batches than those of the training."""
    if setting.begin_with is not None:
        documents_at_once, passes = setting.begin_with
        with torch.no_grad():
            for batch in islice(documents.batches(corpus(), documents_at_once, setting.length, seed), passes):
                model(*batch)


class Trainer:
    """The example's loop, one step at a time."""

    def __init__(self, setting: Setting, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = build(setting)
        fill(self.model, setting, seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, train_documents.falling)
        self.batches = documents.batches(corpus(), setting.batch_size, setting.length, seed)
        self.step = 0

    def train(self, watch: vqwatch.Emitter) -> None:
        """Make one step."""
        features, mask = next(self.batches)
        reconstruction, codes, losses = self.model(features, mask)
        self.optimizer.zero_grad()
        losses["total"].backward()
        norm = clip_grad_norm_(self.model.parameters(), 1.0)
        if norm.isfinite():
            self.optimizer.step()
        self.schedule.step()
        watch.step(
            self.step, losses=losses, codes=codes, original=features, reconstructed=reconstruction, mask=mask,
            grad_norm=norm,
        )  # fmt: skip
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return {**states, "step": self.step, "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        for _ in islice(self.batches, state["step"]):
            pass
        self.step = state["step"]
        torch.set_rng_state(state["random"])


@dataclass(frozen=True)
class Warm:
    """A healthy training so far: the trainer's state, the daemon's memory and clock, and false alarms on the way."""

    setting: Setting
    seed: int
    trainer: dict[str, Any]
    memory: Hub
    now: float
    fired: list[Fired]
    readings: dict[str, Any]

    @property
    def outcome(self) -> Outcome:
        """The stretch as a play of its own."""
        return Outcome("healthy", self.setting, self.seed, self.fired)


@dataclass
class Outcome:
    """What a fault led to: what fired with steps counted from its begin, what still fires, some readings."""

    fault: str
    setting: Setting
    seed: int
    fired: list[Fired] = field(default_factory=list)
    unresolved: set[str] = field(default_factory=set)


def attach(trainer: Trainer, daemon: Daemon) -> vqwatch.Emitter:
    """Return an emitter that looks as often as the example's, whatever it costs on this machine."""
    return vqwatch.attach(
        trainer.model, trainer.optimizer, run=RUN, rank=0, world_size=1, endpoint=daemon.endpoint,
        every=train_documents.LOOK_EVERY, budget=float("inf"),
    )  # fmt: skip


def play(trainer: Trainer, watch: vqwatch.Emitter, daemon: Daemon, steps: int) -> None:
    """Train for so many steps while the daemon listens."""
    for _ in range(steps):
        daemon.times[trainer.step] = daemon.now
        trainer.train(watch)
        daemon.catch_up(trainer.step - 1, 2.0)
        daemon.now += STEP_SECONDS
        daemon.pump()


def leave(trainer: Trainer, watch: vqwatch.Emitter, daemon: Daemon) -> None:
    """Let everything arrive, then end the session."""
    watch.close(timeout=0.05)
    daemon.catch_up(trainer.step - 1, 1.0)


def warm_up(setting: Setting, seed: int, steps: int, teller: Teller | None = None) -> Warm:
    """Train healthily from the first step."""
    trainer = Trainer(setting, seed)
    daemon = Daemon(teller=teller)
    try:
        watch = attach(trainer, daemon)
        daemon.pump()
        play(trainer, watch, daemon, steps)
        readings = copy.deepcopy(daemon.hub.runs[RUN].readings)
        leave(trainer, watch, daemon)
        daemon.hub.observers = []
        return Warm(setting, seed, trainer.state(), daemon.hub, daemon.now, daemon.fired(), readings)
    finally:
        daemon.close()


@contextmanager
def _resumed(warm: Warm, teller: Teller | None) -> Iterator[tuple[Trainer, Daemon]]:
    trainer = Trainer(warm.setting, warm.seed)
    trainer.restore(warm.trainer)
    daemon = Daemon(warm.memory, warm.now, teller)
    try:
        yield trainer, daemon
    finally:
        daemon.close()


SETTLE_STEPS = 10
"""Steps between the resumption and the fault, so that the new session has been heard."""


def perform(
    warm: Warm, fault: str, lasts: int, recovers: int = 0, *, from_start: bool = False, teller: Teller | None = None
) -> Outcome:
    """Put a fault in for ``lasts`` steps after the warm-up, then train on for ``recovers`` steps without it.

    A fault ``from_start`` is there when the emitter attaches: a setting that the resumed run has wrong.
    """
    outcome = Outcome(fault, warm.setting, warm.seed)
    with _resumed(warm, teller) as (trainer, daemon):
        site = examples_faults.Site(trainer.model, trainer.optimizer)
        fault_context = nullcontext() if fault == "none" else examples_faults.CATALOGUE[fault](site)
        with ExitStack() as stack:
            if from_start:
                stack.enter_context(fault_context)
            watch = attach(trainer, daemon)
            if not from_start:
                play(trainer, watch, daemon, SETTLE_STEPS)
                stack.enter_context(fault_context)
            began, since = trainer.step, daemon.now
            play(trainer, watch, daemon, lasts)
        play(trainer, watch, daemon, recovers)
        outcome.fired = [replace(one, step=one.step - began, now=one.now - since) for one in daemon.fired()]
        outcome.unresolved = daemon.firing()
        leave(trainer, watch, daemon)
    return outcome


def stand_still(warm: Warm, seconds: float, teller: Teller | None = None) -> Outcome:
    """Let the loop hang for so many simulated seconds, then train on."""
    outcome = Outcome("stall", warm.setting, warm.seed)
    with _resumed(warm, teller) as (trainer, daemon):
        watch = attach(trainer, daemon)
        play(trainer, watch, daemon, 30)
        since = daemon.now
        daemon.wait(seconds)
        outcome.fired = [replace(one, step=0, now=one.now - since) for one in daemon.fired()]
        play(trainer, watch, daemon, 60)
        outcome.unresolved = daemon.firing()
        leave(trainer, watch, daemon)
    return outcome
