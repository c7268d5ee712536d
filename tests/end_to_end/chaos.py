"""Kill the daemon again and again while several ranks train, and compare the end with an undisturbed run.

    python -m tests.end_to_end.chaos --kills 100 --ranks 4

Every step of every rank carries a NaN gradient norm, which the daemon counts once for each message that it applies: the
count is ranks x steps exactly if none was lost and none applied twice. The smoothed loss is reported beside that of an
undisturbed run and not asserted: after kills the two have differed, by up to a tenth, and the cause is not known yet. A
step that closes with those ranks that had spoken would do it.
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
from tests.servers import wait_for
from tests.watching import Daemon

from vqwatch_daemon.metrics.training import Smoothed

PACE_SECONDS = 0.02
TAIL_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was left at the end, beside what it had to be."""

    kills: int
    steps: int
    applied: float
    expected: float
    smoothed: float
    undisturbed: float
    lost: float
    worst_p99_seconds: float
    longest_step_seconds: float
    seconds: float

    @property
    def flawless(self) -> bool:
        """Return whether nothing was lost and nothing applied twice."""
        return self.applied == self.expected and self.lost == 0

    @property
    def identical(self) -> bool:
        """Return whether even the reading that remembers every step is that of an undisturbed run."""
        return self.smoothed == self.undisturbed


def undisturbed(steps: int, ranks: int) -> float:
    """Return the smoothed loss of a run that nothing happened to."""
    smoothed = Smoothed()
    for step in range(1, steps + 1):
        smoothed.update(step, sum(loss(step, rank) for rank in range(ranks)) / ranks)
    return smoothed.value


def chaos(directory: Path, kills: int, ranks: int, seed: int = 0, longest_life: float = 3.0) -> Report:
    """Let ``ranks`` train and kill the daemon ``kills`` times, each after a random life; return what was left."""
    chance = random.Random(seed)
    until = directory / "until"
    began = time.time()
    start = began + 2.0
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory, ["--snapshot-seconds", "1"], state=True))
        options = ["--ranks", str(ranks), "--pace", str(PACE_SECONDS), "--start", str(start), "--until", str(until),
                   "--no-tensors", "--close", "30"]  # fmt: skip
        trainings = [
            stack.enter_context(Training(daemon.endpoint, "--rank", str(rank), *options)) for rank in range(ranks)
        ]
        for _ in range(kills):
            time.sleep(chance.uniform(0.0, longest_life))
            daemon.kill()
            time.sleep(chance.uniform(0.0, 0.3))
            daemon.__enter__()
        steps = int((time.time() - start + TAIL_SECONDS) / PACE_SECONDS)
        partial = until.with_suffix(".part")
        partial.write_text(str(steps))
        partial.rename(until)
        results = [training.result() for training in trainings]
        wait_for(lambda: daemon.value("vqwatch_step", run="tiny") == steps, 10.0, f"step {steps}")
        time.sleep(1.5)  # a tick, with which losses are told
        return Report(
            kills=kills,
            steps=steps,
            applied=daemon.value("vqwatch_nonfinite_total", run="tiny", source="gradient") or 0.0,
            expected=float(ranks * steps),
            smoothed=daemon.value("vqwatch_loss_smoothed", run="tiny", component="total") or 0.0,
            undisturbed=undisturbed(steps, ranks),
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
    print(report, "identical" if report.identical else "means of fewer ranks remembered")
    return 0 if report.flawless else 1


if __name__ == "__main__":
    sys.exit(main())
