"""Print the gallery's table: ``python -m tests.faults.report --seeds 20 --jobs 4 --json rows.jsonl``.

For every library, fault and alert that must fire: how many seeds told it in time, steps to fire (smallest, median,
largest), milliseconds from step() to the webhook behind a real Alertmanager (median, largest), false alarms, and what
else fired as a consequence. Rows go to ``--json`` as they come, a line each; ``--from`` plays nothing and prints the
table of such files, all together. The exit code is 1 if anything was missed, false or not delivered.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import queue
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import torch
from tests.faults import gallery, processes
from tests.faults.catalogue import CASES, HEALTHY, KILL, RANK_DRIFT, SILENT_RANK, SMALL, STALL, WARMING, Case
from tests.faults.listening import Teller
from tests.faults.rows import Row
from tests.faults.table import table
from tests.faults.webhook import Desk
from tests.faults.webhook import Teller as Telling
from tests.servers import Alertmanager
from threadpoolctl import threadpool_limits

QUANTIZERS = ("lucidrains", "moshi", "ema")
STALL_SECONDS = 90.0

Play = Callable[[Teller | None], gallery.Outcome]


class Job(NamedTuple):
    """What one process plays in one go: a library's whole gallery, its small batches, or one fault of processes."""

    library: str
    seed: int
    what: str


def jobs(seeds: Sequence[int], libraries: Sequence[str]) -> list[Job]:
    """Return the jobs, the long ones first; those of several processes each are spread among them."""
    long = [Job(library, seed, "all") for library in libraries for seed in seeds]
    of_processes = [
        Job("ema", seed, case.fault)
        for seed in seeds
        for case in (SILENT_RANK, RANK_DRIFT, KILL)
        if "ema" in libraries
    ]  # fmt: skip
    small = [Job(library, seed, SMALL.fault) for library in libraries for seed in seeds]
    spread = [job for pair in zip_longest(long, of_processes) for job in pair if job is not None]
    return [*spread, *small]


def play(job: Job, url: str) -> Iterator[Row]:
    """Play a job; an Alertmanager at ``url`` is told."""
    library, seed, what = job
    if what == "all":
        yield from _everything(library, seed, url)
    elif what == SMALL.fault:
        setting = gallery.Setting(library, **gallery.SMALL)
        yield _told(SMALL, job, url, lambda teller: gallery.warm_up(setting, seed, SMALL.lasts, teller).outcome)
    elif what == KILL.fault:
        yield _told(KILL, job, url, lambda teller: processes.killed(seed, teller))
    else:
        case, ranks = (SILENT_RANK, (1,)) if what == SILENT_RANK.fault else (RANK_DRIFT, (0, 1))
        yield _told(case, job, url, lambda teller: processes.two_ranks(case.fault, ranks, seed, case.must, teller))


def _everything(library: str, seed: int, url: str) -> Iterator[Row]:
    job = Job(library, seed, "all")
    kept: list[gallery.Warm] = []

    def warming(teller: Teller | None) -> gallery.Outcome:
        kept.append(gallery.warm_up(gallery.Setting(library), seed, WARMING.lasts, teller))
        return kept[0].outcome

    def faulty(case: Case, teller: Teller | None) -> gallery.Outcome:
        return gallery.perform(kept[0], case.fault, case.lasts, from_start=case.from_start, teller=teller)

    yield _told(WARMING, job, url, warming)
    for case in (HEALTHY, *CASES):
        yield _told(case, job, url, partial(faulty, case))
    yield _told(STALL, job, url, lambda teller: gallery.stand_still(kept[0], STALL_SECONDS, teller))


def _told(case: Case, job: Job, url: str, act: Play) -> Row:
    """Play while an Alertmanager is told."""
    run = f"{job.library} {case.fault} {job.seed} {os.getpid()}"
    teller = Telling(url, run) if url else None
    try:
        outcome = act(teller)
    finally:
        if teller is not None:
            teller.close()
    said = {} if teller is None else teller.said
    return Row.of(job.library, case.fault, job.seed, outcome.fired, run if url else "", said)


class Worker:
    """A process of the pool: plays jobs and puts their rows into the queue, one by one."""

    out: Any = None
    url: str = ""

    @classmethod
    def begin(cls, out: Any, url: str) -> None:
        """Make this process ready; told to end, it ends the processes of its own too."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        cls.out, cls.url = out, url
        logging.disable(logging.CRITICAL)
        torch.set_num_threads(1)
        threadpool_limits(1)

    @classmethod
    def work(cls, job: Job) -> None:
        """Play one job; what goes wrong becomes a row too."""
        try:
            for row in play(job, cls.url):
                cls.out.put(row)
        except Exception:
            cls.out.put(Row(job.library, job.what, job.seed, error=traceback.format_exc()))


def rows(todo: Sequence[Job], processes_at_once: int, seconds: float, url: str) -> Iterator[Row]:
    """Play jobs and yield their rows as they come, for at most so many seconds."""
    context = get_context("spawn")
    out = context.Queue()
    deadline = time.monotonic() + seconds
    with context.Pool(processes_at_once, Worker.begin, (out, url)) as pool:
        result = pool.map_async(Worker.work, todo, chunksize=1)
        while time.monotonic() < deadline:
            ended = result.ready()
            try:
                yield out.get(timeout=0.0 if ended else 0.5)
            except queue.Empty:
                if ended:
                    return


def deliver(found: Iterable[Row], desk: Desk | None) -> Iterator[Row]:
    """Yield the rows with what the webhook saw of them."""
    for row in found:
        yield row if desk is None else row.arrived(desk.seconds(row.run, row.said))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quantizer", action="append", choices=QUANTIZERS, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long with what was played")
    parser.add_argument("--json", type=Path, default=None, help="write every row here as it comes")
    parser.add_argument("--from", dest="files", type=Path, nargs="+", default=[], help="files written by --json")
    parser.add_argument("--without-alertmanager", action="store_true", help="play, and tell nobody")
    return parser.parse_args(argv)


def played(options: argparse.Namespace) -> Iterator[Row]:
    """Play what was asked for, saying and writing down how it went."""
    todo = jobs(range(options.first_seed, options.first_seed + options.seeds), options.quantizer or QUANTIZERS)
    gallery.corpus()  # read and kept in the cache once, not in every process
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="vqwatch-gallery") as folder,
        nullcontext() if options.without_alertmanager else Desk(Path(folder)) as desk,
        (options.json or Path(os.devnull)).open("w", encoding="utf-8") as kept,
    ):
        found = rows(todo, options.jobs, 60 * options.minutes, "" if desk is None else desk.url)
        for row in deliver(found, desk):
            kept.write(row.line() + "\n")
            kept.flush()
            print(f"{time.monotonic() - began:6.0f} s  {_said(row)}", flush=True)
            yield row


def _said(row: Row) -> str:
    name = f"{row.library} {row.fault} seed {row.seed}"
    if row.error:
        return f"! {name}: {row.error}"
    problems = [*(["", str(row.judgement)] if not row.good else []), *(f"{n} undelivered" for n in row.undelivered)]
    return f"{'! ' if problems else ''}{name} {' '.join(problems)}".rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print and judge."""
    options = parse(argv)
    if options.files:
        lines = [line for file in options.files for line in file.read_text(encoding="utf-8").splitlines()]
        found = [Row.read(line) for line in lines]
    elif not options.without_alertmanager and which(Alertmanager.program) is None:
        print(f"{Alertmanager.program} is not on the PATH", file=sys.stderr)
        return 2
    else:
        found = list(played(options))
    print("\n".join(table(found)), flush=True)
    return 0 if found and all(row.good and not row.undelivered for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
