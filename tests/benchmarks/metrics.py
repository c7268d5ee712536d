"""Every metric of the daemon against the proposal's own function, on identical data and one core.

    python -m tests.benchmarks.metrics [--rounds N] [--json PATH]

The two sides take turns, round by round; counted is the processor's time, not the wall's, so that neighbours on the
machine matter less, and the median of the rounds. The ratio of the medians is the result. What the proposal has no
function for is timed alone, beside its budget. Rows that begin with "of which" are floors: what the row before cannot
do without. Those that read the data once take turns with the rival too, which leaves the caches to neither: their ratio
is what any code could reach. The rival runs on the CPU here: what it costs on a GPU, where each value waits for the
device, is the training benchmark's matter.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from tests.benchmarks import proposal_monitors as proposal
from threadpoolctl import threadpool_limits

from vqwatch_daemon.metrics import codebook, ema, geometry, residuals, revivals, training
from vqwatch_daemon.metrics.counting import count_assignments, count_repeats, narrowed
from vqwatch_daemon.metrics.reconstruction import reconstruction
from vqwatch_daemon.metrics.tensors import nonfinite_values
from vqwatch_daemon.metrics.trend import Trend
from vqwatch_daemon.metrics.usage import across_layers, judged, per_layer
from vqwatch_daemon.sections.snapshots import RANK_EVERY

LAYERS, CODES, DIM = 8, 256, 1024
BATCH, FRAMES = 16, 500
SAMPLES = 4

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One thing to time: ours, the proposal's where it has it, and the budget in milliseconds where one is set."""

    name: str
    ours: Work
    theirs: Work | None = None
    budget_ms: float | None = None


@dataclass(frozen=True)
class Result:
    """Median times of a case in milliseconds, and how many times faster ours is."""

    name: str
    ours_ms: float
    proposal_ms: float | None
    speedup: float | None
    budget_ms: float | None


def usage_cases(rng: np.random.Generator) -> list[Case]:
    """A standard step: codes [16, 500, 8] in 256, and the window's counts."""
    codes = rng.integers(0, CODES, (LAYERS, BATCH, FRAMES)).astype(np.int16)  # as the wire has them
    wide = torch.from_numpy(codes.astype(np.int64)).reshape(LAYERS, -1).T.contiguous()
    monitor = proposal.CodebookUse(LAYERS, CODES)
    counts, repeats = count_assignments(codes, CODES).counts, count_repeats(codes)
    window = counts * 100
    for _ in range(proposal.HISTORY):
        monitor.update(wide)
    steps, history = np.arange(100.0), rng.random((LAYERS, 100))

    sizes = [CODES] * LAYERS

    def counted() -> object:
        few = narrowed(codes)
        return count_assignments(few, CODES), count_repeats(few)

    def ours() -> object:
        return judged(count_assignments(codes, CODES).counts, sizes, repeats)

    def summary() -> object:
        return judged(window, sizes, repeats), codebook.slope(steps, history)

    return [
        Case("utilization, perplexity, dead codes of a batch", ours, lambda: monitor.update(wide)),
        Case(
            "  of which counting it, one histogram a layer", lambda: [np.bincount(row) for row in codes.reshape(8, -1)]
        ),
        Case("the same over 100 batches, and the trend", summary, monitor.summary),
        Case("all usage readings of the window", lambda: across_layers(per_layer(window, CODES, repeats))),
        Case("counting a standard step", counted, None, 0.5),
    ]


def snapshot_cases(rng: np.random.Generator) -> list[Case]:
    """A snapshot of 8 codebooks [256, 1024] and the one before it."""
    before = rng.standard_normal((LAYERS, CODES, DIM), dtype=np.float32)
    after = before + 0.01 * rng.standard_normal(before.shape, dtype=np.float32)
    sizes = rng.gamma(1, 30, (LAYERS, CODES)).astype(np.float32)
    later = (0.99 * sizes + 0.01 * 30).astype(np.float32)
    counts = np.full((1, CODES), 30)
    tensors = zip(map(torch.from_numpy, after), map(torch.from_numpy, sizes), strict=True)
    monitor = proposal.EmaBuffers([SimpleNamespace(embedding=e, ema_cluster_size=c) for e, c in tensors])
    monitor.update()
    layers = range(LAYERS)

    def movement_and_sizes() -> object:
        return [(ema.movement(before[i], after[i]), ema.cluster_sizes(sizes[i])) for i in layers]

    def revived() -> object:
        pairs = [(revivals.Snapshot(1, sizes[i]), revivals.Snapshot(2, later[i])) for i in layers]
        return [revivals.revivals(a, b, decay=0.99, counts=counts) for a, b in pairs]

    turn = count()

    def everything() -> object:
        """A snapshot as the daemon takes it: the effective rank of every fourth layer, in turn."""
        found, now = [], next(turn)
        for i in layers:
            moved = ema.motion(before[i], after[i])
            found.append((moved.movement, moved.relative, moved.reinitialised_ratio, ema.cluster_sizes(sizes[i])))
            found.append(geometry.geometry(after[i], geometry.active_rows(sizes[i]), rank=(now + i) % RANK_EVERY == 0))
            found.append((nonfinite_values(after[i], sizes[i]), ema.expired_codes(sizes[i], 1.0)))
        return found, revived()

    def gram_and_eigenvalues() -> object:
        return [np.linalg.eigvalsh(rows @ rows.T) for rows in after[::RANK_EVERY].astype(np.float64)]

    return [
        Case("movement and cluster sizes", movement_and_sizes, monitor.update),
        Case("  of which reading both books (one dot product)", lambda: _read(before, after), monitor.update),
        Case("variance", lambda: [geometry.embedding_variance(after[i]) for i in layers]),
        Case("effective rank", lambda: [geometry.effective_rank(after[i]) for i in layers]),
        Case("near duplicates", lambda: [geometry.near_duplicate_ratio(after[i]) for i in layers]),
        Case("revivals", revived),
        Case("everything of a snapshot of 8x256x1024", everything, None, 30),
        Case("  of which Gram matrices and eigenvalues of two layers", gram_and_eigenvalues),
    ]


def reconstruction_cases(rng: np.random.Generator) -> list[Case]:
    """A sample of 2 x [4, 500, 1024] with sequences of different length, and single-sequence evaluation."""
    original = rng.standard_normal((SAMPLES, FRAMES, DIM), dtype=np.float32)
    output = original + 0.3 * rng.standard_normal(original.shape, dtype=np.float32)
    mask = np.arange(FRAMES) < np.array([[FRAMES], [FRAMES], [400], [100]])
    tensors = torch.from_numpy(original), torch.from_numpy(output), torch.from_numpy(mask)
    apart = [tuple(t[i : i + 1] for t in tensors) for i in range(SAMPLES)]
    return [
        Case(
            "MSE, SNR, cosine, temporal consistency",
            lambda: reconstruction(original, output, mask, spectral=False),
            lambda: proposal.reconstruction(*tensors),
        ),
        Case(
            "the same, sequence by sequence",
            lambda: reconstruction(original, output, mask, spectral=False).samples,
            lambda: proposal.evaluation(apart),  # type: ignore[arg-type]
        ),
        Case(
            "  of which reading both arrays (one dot product)",
            lambda: _read(original, output),
            lambda: proposal.evaluation(apart),  # type: ignore[arg-type]
        ),
        Case(
            "evaluation of a batch (the proposal keeps one value for it)",
            lambda: reconstruction(original, output, mask, spectral=False).samples,
            lambda: proposal.evaluation([tensors]),  # type: ignore[list-item]
        ),
        Case("everything of a sample of 2x4x500x1024", lambda: reconstruction(original, output, mask), None, 40),
    ]


def training_cases(rng: np.random.Generator) -> list[Case]:
    """The scalars of a step, and a trend of 100."""
    losses = {"total": 1.5, "recon": 1.0, "vq": 0.5}
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    smoothed, steps, values = training.Smoothed(), list(range(100)), rng.random(100).tolist()
    trend, ahead = Trend(100, enumerate(values)), count(100)

    def ratios() -> object:
        return training.loss_shares(losses), training.ratio(losses["vq"], losses["recon"])

    def moved_on() -> object:
        trend.update(next(ahead), 0.5)
        return trend.slope

    return [
        Case("loss shares and VQ to reconstruction", ratios, lambda: proposal.loss_ratios(tensors)),
        Case("smoothed loss", lambda: smoothed.update(1, 1.5)),
        Case("trend of the last 100 readings, after a new one", moved_on, lambda: np.polyfit(steps, values, 1)),
        Case("residual ratios and gains of 8 layers", lambda: residuals.residuals(1.0, [0.5] * LAYERS)),
    ]


def _read(one: NDArray[np.float32], other: NDArray[np.float32]) -> object:
    """Read two arrays once, as fast as numpy can."""
    return np.dot(one.reshape(-1), other.reshape(-1))


def measure(case: Case, rounds: int) -> Result:
    """Time both sides in turns; each round repeats short work until it lasts about a millisecond."""
    sides = [side for side in (case.ours, case.theirs) if side is not None]
    repeats = []
    for side in sides:
        side()
        repeats.append(max(1, int(1e-3 / max(_seconds(side, 1), 1e-7))))
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for found, side, often in zip(times, sides, repeats, strict=True):
            found.append(_seconds(side, often) * 1e3)
    ours, theirs = median(times[0]), median(times[1]) if case.theirs else None
    return Result(case.name, ours, theirs, theirs / ours if theirs else None, case.budget_ms)


def _seconds(work: Work, often: int) -> float:
    start = time.process_time()
    for _ in range(often):
        work()
    return (time.process_time() - start) / often


def main() -> None:
    """Print a table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the results here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    results = []
    print(f"{'':62}{'ours ms':>10}{'proposal ms':>13}{'faster':>9}{'budget ms':>11}")
    for build in (usage_cases, snapshot_cases, reconstruction_cases, training_cases):
        for case in build(rng):
            result = measure(case, options.rounds)
            results.append(result)
            theirs = f"{result.proposal_ms:13.4f}{result.speedup:8.1f}x" if result.proposal_ms else " " * 22
            print(f"{case.name:62}{result.ours_ms:10.4f}{theirs}{case.budget_ms or '':>11}")
    text = json.dumps([asdict(result) for result in results], indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
