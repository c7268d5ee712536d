"""Print the gallery's table: ``python -m tests.faults.report --seeds 20``.

For every fault and library: how many seeds told it in time, steps to each alert (smallest, median, largest), and
false alarms; for healthy training, every warning or critical there was. The exit code is 1 if anything was missed or
anything was false.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch
from tests.faults import gallery, processes
from tests.faults.catalogue import CASES, HEALTHY, KILL, RANK_DRIFT, SILENT_RANK, STALL, Case, Judgement, judge
from threadpoolctl import threadpool_limits

STALL_SECONDS = 90.0
QUANTIZERS = ("ema", "lucidrains")
Row = tuple[str, str, int, Judgement]


@dataclass
class Line:
    """The judgements of one fault in one library over the seeds."""

    judged: list[Judgement] = field(default_factory=list)

    def __str__(self) -> str:
        good = sum(None not in item.steps.values() for item in self.judged)
        steps: dict[str, list[int]] = defaultdict(list)
        for item in self.judged:
            for name, step in item.steps.items():
                if step is not None:
                    steps[name].append(step)
        told = ", ".join(f"{name} {_range(values)}" for name, values in steps.items())
        false = Counter(name for item in self.judged for name in item.false)
        return f"{good}/{len(self.judged)}  {told or '-'}  false: {dict(false) if false else 'none'}"


def _range(values: Sequence[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]}/{ordered[len(ordered) // 2]}/{ordered[-1]}"


def judged(case: Case, outcome: gallery.Outcome) -> Judgement:
    """Judge an outcome; of several severities the first counts."""
    first: dict[str, int] = {}
    for one in outcome.fired:
        first[one.name] = min(one.step, first.get(one.name, one.step))
    return judge(case, first)


def of_seed(job: tuple[str, int]) -> list[Row]:
    """Play everything that one process can, for one library and seed."""
    quantizer, seed = job
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    rows: list[Row] = []
    with threadpool_limits(1):
        warm = gallery.warm_up(gallery.Setting(quantizer), seed)
        rows.append((quantizer, "healthy", seed, Judgement({}, frozenset(one.name for one in warm.fired))))
        for case in (HEALTHY, *CASES):
            outcome = gallery.perform(warm, case.fault, case.lasts, from_start=case.from_start)
            rows.append((quantizer, case.fault, seed, judged(case, outcome)))
        rows.append((quantizer, "stall", seed, judged(STALL, gallery.stand_still(warm, STALL_SECONDS))))
    return rows


def of_processes(seed: int) -> list[Row]:
    """Play the faults that need processes of their own."""
    logging.disable(logging.CRITICAL)
    plays = (
        (SILENT_RANK, lambda: processes.two_ranks("silent-rank", (1,), seed)),
        (RANK_DRIFT, lambda: processes.two_ranks("rank-drift", (0, 1), seed)),
        (KILL, lambda: processes.killed(seed)),
    )
    return [("ema", case.fault, seed, judged(case, play())) for case, play in plays]


def play(seeds: Sequence[int], quantizers: Sequence[str], process_seeds: Sequence[int], jobs: int) -> Iterator[Row]:
    """Play the gallery, a row at a time as they come."""
    with get_context("spawn").Pool(jobs) as pool:
        for rows in pool.imap_unordered(of_processes, process_seeds):
            yield from rows
        for rows in pool.imap_unordered(of_seed, [(quantizer, seed) for seed in seeds for quantizer in quantizers]):
            yield from rows


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--process-seeds", type=int, default=3, help="seeds for ranks and killed processes")
    parser.add_argument("--quantizer", action="append", choices=QUANTIZERS, default=None)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long with what was played")
    options = parser.parse_args(argv)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    lines: dict[tuple[str, str], Line] = defaultdict(Line)
    good, began = True, time.monotonic()
    rows = play(seeds, options.quantizer or QUANTIZERS, range(options.process_seeds), options.jobs)
    for quantizer, fault, seed, judgement in rows:
        lines[quantizer, fault].judged.append(judgement)
        good = good and judgement.good
        if not judgement.good:
            print(f"! {quantizer} {fault} seed {seed}: {judgement}", flush=True)
        if fault == "stall":
            print(f"{quantizer} seed {seed} played", flush=True)
            if time.monotonic() - began > 60 * options.minutes:
                break
    print("library     fault                 told   steps to fire, smallest/median/largest")
    for (quantizer, fault), line in lines.items():
        print(f"{quantizer:11} {fault:21} {line}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
