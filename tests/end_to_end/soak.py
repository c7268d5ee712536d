"""The standard load for an hour: nothing grows, nothing slows down, nothing is lost.

    python -m tests.end_to_end.soak --minutes 60 --ranks 8

A real daemon with its state on disk and the shipped rules, and ranks in processes of their own that speak through the
real emitter (`soak_rank.py` says what the standard load is). Every few seconds it looks at all of them from outside.
At the end the median of the last sixth is compared with that of the second sixth, the first being warm-up; how much
more it may be is in :data:`BOUNDS`. Prints a table and one line of JSON; 1 when something grew or was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.scale import cpu_seconds, resident_mb, samples
from tests.end_to_end.chaos import publish
from tests.end_to_end.flatness import Bound, Verdict, judge
from tests.servers import wait_for
from tests.watching import ROOT, Daemon

BOUNDS = {
    "daemon memory, MB": Bound(0.05, 0.0),
    "daemon descriptors": Bound(0.0, 0.0),
    "daemon threads": Bound(0.0, 0.0),
    "daemon share of a core": Bound(1.0, 0.02),
    "scrape, ms": Bound(1.0, 10.0),
    "step() to gauge, ms": Bound(1.0, 10.0),
    "snapshots and journals, MB": Bound(0.1, 1.0),
    "history, MB": Bound(1.0, 10.0),
    "a sender's memory, MB": Bound(0.05, 0.0),
    "a sender's descriptors": Bound(0.0, 0.0),
    "a sender's threads": Bound(0.0, 0.0),
}
"""How much more the end may be than the beginning. Memory has the allocator's slack; what depends on time (processor,
scrapes, delays) has that of a machine that others use too; the history grows by design, by its own bound in an hour."""

EVERY_SECONDS = 15.0
STARTING_SECONDS = 120.0
RUN = "soak"


def _count(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


def _size_mb(files: list[Path]) -> float:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # a generation that was just replaced
            continue
    return total / 1e6


class Watcher:
    """Looks at a daemon and its senders; ``series`` holds what it saw, by name of :data:`BOUNDS`."""

    def __init__(self, daemon: Daemon, senders: list[subprocess.Popen[str]]) -> None:
        assert daemon.process is not None
        self.series: dict[str, list[float]] = defaultdict(list)
        self.times: list[float] = []
        self._daemon, self._pid, self._senders = daemon, daemon.process.pid, senders
        self._cpu = (time.monotonic(), cpu_seconds(self._pid))

    def look(self) -> None:
        """Take one sample of everything."""
        began = time.perf_counter()
        with urllib.request.urlopen(f"{self._daemon.url}/metrics", timeout=30.0) as answer:
            text = answer.read().decode()
        scrape = time.perf_counter() - began
        now, cpu = time.monotonic(), cpu_seconds(self._pid)
        state = self._daemon.directory / "state"
        pids = [sender.pid for sender in self._senders]
        seen = {
            "daemon memory, MB": resident_mb(self._pid),
            "daemon descriptors": _count(f"/proc/{self._pid}/fd"),
            "daemon threads": _count(f"/proc/{self._pid}/task"),
            "daemon share of a core": (cpu - self._cpu[1]) / (now - self._cpu[0]),
            "scrape, ms": scrape * 1e3,
            "step() to gauge, ms": max(samples(text, "vqwatch_message_delay_seconds"), default=np.nan) * 1e3,
            "snapshots and journals, MB": _size_mb([*state.glob("snapshot-*.npz"), *state.glob("journal-*.log")]),
            "history, MB": _size_mb([*state.glob("history.sqlite*")]),
            "a sender's memory, MB": max(resident_mb(pid) for pid in pids),
            "a sender's descriptors": max(_count(f"/proc/{pid}/fd") for pid in pids),
            "a sender's threads": max(_count(f"/proc/{pid}/task") for pid in pids),
        }
        self._cpu = (now, cpu)
        self.times.append(now)
        for name, value in seen.items():
            self.series[name].append(float(value))
        short = "  ".join(f"{name}={value:.4g}" for name, value in seen.items())
        print(f"{time.strftime('%H:%M:%S')}  {short}", flush=True)

    def verdicts(self) -> dict[str, Verdict]:
        """Judge each series."""
        return {name: judge(self.times, self.series[name], bound) for name, bound in BOUNDS.items()}


def account(text: str, ranks: int, results: list[dict[str, Any]]) -> dict[str, float]:
    """Return what is missing or too much at the end, all of it 0 after a flawless run.

    Steps, hellos and goodbyes must be applied, each once; of best-effort messages every one that was sent arrived or
    was counted as lost. A step that was sent twice and applied once is refused as a duplicate.
    """
    received = {kind: labelled(text, "vqwatch_messages_received_total", f'{{kind="{kind}"}}') for kind in KINDS}
    duplicates = labelled(text, "vqwatch_messages_rejected_total", '{reason="duplicate"}')
    sent = {kind: sum(result["sent"].get(kind, 0) for result in results) for kind in BEST_EFFORT}
    lost = sum(samples(text, "vqwatch_messages_lost_total"))
    return {
        "steps missing": sum(result["steps"] for result in results) - received["step"] + duplicates,
        "hellos missing": ranks - received["hello"],
        "goodbyes missing": ranks - received["goodbye"],
        "tensors unaccounted for": sum(sent.values()) - sum(received[kind] for kind in BEST_EFFORT) - lost,
        "lost": lost,
        "rejected": sum(samples(text, "vqwatch_messages_rejected_total")) - duplicates,
        "steps dropped by senders": sum(
            count for result in results for reason, count in result["dropped"].items() if reason.startswith("step")
        ),
    }


BEST_EFFORT = ("codes", "codebooks", "reconstruction")
KINDS = (*BEST_EFFORT, "hello", "step", "goodbye")


def labelled(text: str, name: str, labels: str) -> float:
    """Return one sample of the exposition, 0 where there is none."""
    return sum(samples(text, name + labels))


def soak(
    directory: Path, minutes: float, ranks: int, rate: float, every: float = EVERY_SECONDS, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the standard load for so long; return what was found, ``flawless`` being the verdict.

    ``options`` are further arguments of the daemon.
    """
    begin, until = directory / "begin", directory / "until"
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory, options, state=True))
        senders = []
        for rank in range(ranks):
            sender = subprocess.Popen(
                [sys.executable, "-m", "tests.end_to_end.soak_rank", "--endpoint", daemon.endpoint, "--rank", str(rank),
                 "--ranks", str(ranks), "--rate", str(rate), "--start", str(begin), "--until", str(until)],
                stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            senders.append(sender)
            stack.callback(sender.kill)
        wait_for(
            lambda: len(samples(daemon.metrics(), "vqwatch_rank_lag_steps")) == ranks, STARTING_SECONDS, "every rank"
        )
        start = time.time() + 1.0
        publish(begin, start)
        watcher = Watcher(daemon, senders)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(min(every, max(0.0, end - time.monotonic())))
            watcher.look()
        steps = int((time.time() - start + 5.0) * rate)
        publish(until, steps)
        results = [json.loads(sender.communicate(timeout=120.0)[0]) for sender in senders]
        wait_for(
            lambda: daemon.value("vqwatch_step", run=RUN) == max(r["steps"] for r in results), 10.0, "the last step"
        )
        time.sleep(1.5)  # a tick, with which losses are told
        text = daemon.metrics()
        missing = account(text, ranks, results)
        verdicts = watcher.verdicts()
        return {
            "minutes": minutes,
            "ranks": ranks,
            "steps": max(result["steps"] for result in results),
            "flawless": all(verdict.flat for verdict in verdicts.values()) and not any(missing.values()),
            "missing": missing,
            "sent twice": labelled(text, "vqwatch_messages_rejected_total", '{reason="duplicate"}'),
            "shed": sum(samples(text, "vqwatch_messages_shed_total")),
            "dropped by senders": _sum([result["dropped"] for result in results]),
            "step() p50, ms": 1e3 * float(np.median([result["p50"] for result in results])),
            "step() p99, ms": 1e3 * max(result["p99"] for result in results),
            "alerts firing": sum(samples(text, "vqwatch_alerts_firing")),
            "series": verdicts,
        }


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for one in counts:
        for reason, count in one.items():
            total[reason] += count
    return dict(total)


def show(report: dict[str, Any]) -> None:
    """Print the table and the line of JSON."""
    print(f"\n{'':34}{'2nd sixth':>12}{'last sixth':>12}{'allowed':>12}{'per hour':>12}")
    for name, verdict in report["series"].items():
        sign = "flat" if verdict.flat else "NOT FLAT"
        print(f"{name:34}{verdict.early:12.3f}{verdict.late:12.3f}{verdict.most:12.3f}{verdict.per_hour:12.3f}  {sign}")
    for name, value in report["missing"].items():
        print(f"{name:34}{value:12.0f}")
    series = {name: [v.early, v.late, v.most, v.per_hour, v.flat] for name, v in report["series"].items()}
    print(json.dumps({**report, "series": series}))


def main() -> int:
    """Run it; 1 when anything grew, slowed down or was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second of every rank")
    parser.add_argument("--every", type=float, default=EVERY_SECONDS, help="seconds between two looks")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as directory:
        report = soak(Path(directory), chosen.minutes, chosen.ranks, chosen.rate, chosen.every)
    show(report)
    return 0 if report["flawless"] else 1


if __name__ == "__main__":
    sys.exit(main())
