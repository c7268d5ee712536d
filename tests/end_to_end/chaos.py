"""Kill the daemon again and again while several ranks train, and compare the end with an undisturbed run.

    python -m tests.end_to_end.chaos --kills 100 --ranks 4

Every step of every rank carries a NaN gradient norm, which the daemon counts once for each message that it applies: the
count is ranks x steps exactly if none was lost and none applied twice. Losses differ from rank to rank, and every
reading of them must be that of a run to which nothing happened, to the last bit: the smoothed loss remembers each step,
so it shows each that was closed without one of the ranks.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.faulty import Training
from tests.end_to_end.tiny_training import loss
from tests.messages import Trainer
from tests.servers import wait_for
from tests.watching import Daemon

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.readings import Readings
from vqwatch_daemon.run import Run

PACE_SECONDS = 0.02
TAIL_SECONDS = 0.6
JOIN_SECONDS = 60.0
REMEMBERED = ("step", "loss", "loss_smoothed", "loss_slope")


@dataclass(frozen=True, slots=True)
class Report:
    """What was left at the end, beside what it had to be; ``different`` names readings as (found, expected)."""

    kills: int
    steps: int
    applied: float
    expected: float
    different: dict[str, tuple[float | None, float]]
    lost: float
    worst_p99_seconds: float
    longest_step_seconds: float
    seconds: float

    @property
    def flawless(self) -> bool:
        """Return whether nothing was lost, nothing applied twice, and every reading is that of an undisturbed run."""
        return self.applied == self.expected and self.lost == 0 and not self.different


def undisturbed(steps: int, ranks: int) -> Readings:
    """Return what is remembered of a run that nothing happened to: the ranks speak in turns, nobody restarts."""
    run = Run("tiny", 100, 0.0)
    trainers = [Trainer("tiny", rank, f"s{rank}", ranks) for rank in range(ranks)]
    for trainer in trainers:
        run.apply(trainer.hello(), 0.0)
    for step in range(1, steps + 1):
        for rank, trainer in enumerate(trainers):
            run.apply(trainer.step(step, losses={"total": loss(step, rank)}), 0.0)
    return {name: run.readings[name] for name in REMEMBERED}


def differences(daemon: Daemon, expected: Readings) -> dict[str, tuple[float | None, float]]:
    """Return the readings that are not exactly those expected, as (found, expected)."""
    found = {}
    for name, series in expected.items():
        for values, value in series.items():
            labels = dict(zip(CATALOGUE[name].labels, values, strict=True))
            seen = daemon.value(f"vqwatch_{name}", run="tiny", **labels)
            if seen != value:
                found[" ".join((name, *values))] = (seen, value)
    return found


def publish(file: Path, value: float) -> None:
    """Let a file appear with a number in it, whole."""
    partial = file.with_suffix(".part")
    partial.write_text(str(value))
    partial.rename(file)


def chaos(directory: Path, kills: int, ranks: int, seed: int = 0, longest_life: float = 3.0) -> Report:
    """Let ``ranks`` train and kill the daemon ``kills`` times, each after a random life; return what was left."""
    chance = random.Random(seed)
    begin, until = directory / "begin", directory / "until"
    began = time.time()
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory, ["--snapshot-seconds", "1"], state=True))
        options = ["--ranks", str(ranks), "--pace", str(PACE_SECONDS), "--start", str(begin), "--until", str(until),
                   "--no-tensors", "--close", "30"]  # fmt: skip
        trainings = [
            stack.enter_context(Training(daemon.endpoint, "--rank", str(rank), *options)) for rank in range(ranks)
        ]
        wait_for(
            lambda: all(
                daemon.value("vqwatch_rank_lag_steps", run="tiny", rank=str(rank)) == 0 for rank in range(ranks)
            ),
            JOIN_SECONDS,
            "every rank",
        )
        start = time.time()
        publish(begin, start)
        for _ in range(kills):
            time.sleep(chance.uniform(0.0, longest_life))
            daemon.kill()
            time.sleep(chance.uniform(0.0, 0.3))
            daemon.__enter__()
        steps = int((time.time() - start + TAIL_SECONDS) / PACE_SECONDS)
        publish(until, steps)
        results = [training.result() for training in trainings]
        wait_for(lambda: daemon.value("vqwatch_step", run="tiny") == steps, 10.0, f"step {steps}")
        time.sleep(1.5)  # a tick, with which losses are told
        return Report(
            kills=kills,
            steps=steps,
            applied=daemon.value("vqwatch_nonfinite_total", run="tiny", source="gradient") or 0.0,
            expected=float(ranks * steps),
            different=differences(daemon, undisturbed(steps, ranks)),
            lost=sum(
                daemon.value("vqwatch_messages_lost_total", run="tiny", rank=str(rank)) or 0 for rank in range(ranks)
            ),
            worst_p99_seconds=max(result["p99"] for result in results),
            longest_step_seconds=max(result["longest"] for result in results),
            seconds=time.time() - began,
        )


def main() -> int:
    """Run the long form; 1 when anything is not as in an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-life", type=float, default=12.0, help="seconds; lives are uniform from 0 to this")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as directory:
        report = chaos(Path(directory), chosen.kills, chosen.ranks, chosen.seed, chosen.longest_life)
    print(report)
    return 0 if report.flawless else 1


if __name__ == "__main__":
    sys.exit(main())
