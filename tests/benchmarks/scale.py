"""How many ranks one daemon carries, what each costs, and what happens beyond.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.scale                  # everything: some minutes
    OMP_NUM_THREADS=1 python -m tests.benchmarks.scale --only ranks --ranks 1 8 --seconds 3

A real daemon; ranks with a real socket each in sender processes (`simulated_ranks`), which share the machine with it:
its processor time is the daemon's own, the delay has the senders' load in it. A rank-step is what one rank says of one
step: scalars and codes 16 x 500 x 8 in 256, 128 kB. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from tests.benchmarks.simulated_ranks import speak
from tests.watching import ROOT, Daemon

NO_LIMITS: Final = ["--session-bytes-per-second", "1e12", "--run-bytes-per-second", "1e12", "--max-runs", "1000"]
COMFORT: Final = 128
"""Rank-steps a second that the search begins at; one for each rank where there are more."""

KNEE_DELAY_SECONDS: Final = 1.0


@contextmanager
def daemon() -> Iterator[Daemon]:
    """Start a daemon without limits on what a session may send."""
    with tempfile.TemporaryDirectory() as directory, Daemon(Path(directory), NO_LIMITS) as started:
        yield started


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int, which: str = "VmRSS") -> float:
    """Return the memory of a process; ``VmHWM`` is the most it ever had."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def samples(text: str, name: str) -> list[float]:
    """Return the values of all series of a metric."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return [float(line.rsplit(" ", 1)[1]) for line in lines]


def load(ranks: int, rate: float, seconds: float, senders: int) -> dict[str, Any]:
    """Let so many ranks say ``rate`` rank-steps a second in all to a fresh daemon; return what came of it."""
    with daemon() as target:
        assert target.process is not None
        pid = target.process.pid
        idle_mb = resident_mb(pid)
        shares = [list(range(number, ranks, senders)) for number in range(min(senders, ranks))]
        before = cpu_seconds(pid)
        spoken = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.simulated_ranks", target.endpoint, json.dumps(
                    {"run": "scale", "ranks": share, "world_size": ranks, "rate": rate / ranks, "seconds": seconds})],
                stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for share in shares
        ]  # fmt: skip
        answers = [json.loads(process.communicate()[0]) for process in spoken]
        used = cpu_seconds(pid) - before
        time.sleep(1.2)  # the daemon counts ranks once a second
        text = target.metrics()
        delays = [delay for answer in answers for delay in answer["delays"]] or [float("nan")]
        offered = sum(answer["steps"] * len(share) for answer, share in zip(answers, shares, strict=True))
        shed = samples(text, "vqwatch_messages_shed_total")
        applied = ranks * (samples(text, "vqwatch_step")[0] + 1)
        return {
            "ranks": ranks,
            "offered_per_second": round(rate),
            "sent_per_second": round(offered / max(answer["seconds"] for answer in answers)),
            "cpu_us_per_rank_step": round(used / offered * 1e6),
            "cpu_share": round(used / max(answer["seconds"] for answer in answers), 2),
            "delay_p50_ms": round(float(np.percentile(delays, 50)) * 1e3, 1),
            "delay_p99_ms": round(float(np.percentile(delays, 99)) * 1e3, 1),
            "probes": len(delays),
            "idle_mb": round(idle_mb),
            "peak_mb": round(resident_mb(pid, "VmHWM")),
            "dropped_by_senders": sum(answer["dropped"] for answer in answers),
            "shed": round(sum(shed)),
            "shed_by_rank": [min(shed), max(shed)] if shed else [0, 0],
            "lost": round(sum(samples(text, "vqwatch_messages_lost_total"))),
            "scalars_missing": round(offered - applied) + sum(answer["unheard"] for answer in answers),
        }


def keeps_up(result: dict[str, Any]) -> bool:
    """Return whether nothing was left out and everything was seen within a second."""
    left_out = result["shed"] or result["dropped_by_senders"] or result["scalars_missing"]
    kept_pace = result["sent_per_second"] > 0.9 * result["offered_per_second"]
    return not left_out and kept_pace and result["delay_p99_ms"] < KNEE_DELAY_SECONDS * 1e3


def knee(ranks: int, seconds: float, senders: int) -> list[dict[str, Any]]:
    """Raise the load until the daemon does not keep up; return every step of the way, the last is beyond the knee."""
    rate = float(max(COMFORT, ranks))
    results = [load(ranks, rate, seconds, senders)]
    while keeps_up(results[-1]) and rate < 64 * COMFORT:
        show(results[-1])
        rate *= 2.0**0.5
        results.append(load(ranks, rate, seconds, senders))
    show(results[-1])
    return results


def scrape(runs: int) -> dict[str, Any]:
    """Give a daemon so many runs with every usual reading; return the cost of reading its metrics."""
    with daemon() as target:
        assert target.process is not None
        pid = target.process.pid
        before = resident_mb(pid)
        for number in range(runs):
            speak(target.endpoint, f"run{number}", [0], 1, 200.0, 0.6)
        time.sleep(1.2)
        times, used = [], cpu_seconds(pid)
        for _ in range(5):
            began = time.perf_counter()
            body = _scrape(target.url)
            times.append(time.perf_counter() - began)
        series = sum(not line.startswith("#") for line in body.decode().splitlines())
        return {
            "runs": runs,
            "series": series,
            "bytes": len(body),
            "scrape_ms_median": round(float(np.median(times)) * 1e3, 1),
            "cpu_ms_per_scrape": round((cpu_seconds(pid) - used) / 5 * 1e3, 1),
            "mb_per_run": round((resident_mb(pid) - before) / runs, 2),
        }


def _scrape(url: str) -> bytes:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"  # as Prometheus asks
    with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers={"Accept": accept})) as answer:
        return bytes(answer.read())


def show(row: dict[str, Any]) -> None:
    """Print one line for people."""
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--rate", type=float, help="only this many rank-steps a second, no search for the knee")
    parser.add_argument("--only", choices=["ranks", "runs"])
    options = parser.parse_args()
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if options.only != "runs":
        for ranks in options.ranks:
            if options.rate:
                found[f"ranks_{ranks}"] = [load(ranks, options.rate, options.seconds, options.senders)]
                show(found[f"ranks_{ranks}"][0])
            else:
                found[f"ranks_{ranks}"] = knee(ranks, options.seconds, options.senders)
    if options.only != "ranks":
        found["scrapes"] = [scrape(runs) for runs in options.runs]
        for row in found["scrapes"]:
            show(row)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
