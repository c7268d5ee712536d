"""What keeping a history costs the daemon, and how large a week of a run becomes.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.history            # ten minutes of a run at 40 steps a second
    OMP_NUM_THREADS=1 python -m tests.benchmarks.history --days 7   # a week at one kept sample a second, some minutes

Every metric of the catalogue for eight layers, each value a random walk. Processor time of the whole process, writer
thread included; one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.history import History, Limits
from vqwatch_daemon.readings import Labels, Readings

LAYERS = [str(index) for index in range(8)]
STEPS_PER_SECOND = 40
START = 1.79e9


def label_sets(labels: tuple[str, ...]) -> list[Labels]:
    """Return plausible label values of a metric."""
    if labels == ("layer",):
        return [(layer,) for layer in LAYERS]
    if labels == ("layer", "other_layer"):
        return list(combinations(LAYERS, 2))
    return [tuple(f"{name}{index}" for name in labels) for index in range(4)] if labels else [()]


def walks() -> Iterator[Readings]:
    """Yield readings of one moment after the other."""
    rng = np.random.default_rng(0)
    series = {m.name: label_sets(m.labels) for m in CATALOGUE.values() if m.per_run and m.name != "evaluation"}
    state = rng.uniform(1, 100, sum(map(len, series.values())))
    while True:
        state = state * (1 + rng.normal(0, 0.01, state.size))
        values = iter(state.tolist())
        yield {name: {labels: next(values) for labels in sets} for name, sets in series.items()}


def at_work(path: Path, seconds: int) -> dict[str, float]:
    """Return what ten minutes of a run at full rate cost."""
    pool = [readings for readings, _ in zip(walks(), range(200), strict=False)]
    history, inside, began = History(path), 0.0, time.process_time()
    for step in range(STEPS_PER_SECOND * seconds):
        before = time.perf_counter()
        history.record("run", step, START + step / STEPS_PER_SECOND, pool[step % len(pool)])
        inside += time.perf_counter() - before
        if step % 80 == 0:
            time.sleep(0.004)  # let the writer keep up: ten minutes pass here in seconds
    history.close()
    steps = STEPS_PER_SECOND * seconds
    used = time.process_time() - began
    return {"record_us": inside / steps * 1e6, "cpu_ms_per_second": used / seconds * 1e3, "dropped": history.dropped}


def over_days(path: Path, days: float) -> dict[str, float]:
    """Return the size of a run of so many days, what it cost, and how long it takes to read."""
    now = [START]
    history = History(path, limits=Limits(flush_seconds=3600), clock=lambda: now[0])
    pool = [readings for readings, _ in zip(walks(), range(997), strict=False)]
    usage = np.random.default_rng(1).multinomial(50_000, np.full(256, 1 / 256), size=(50, len(LAYERS)))
    began, seconds = time.process_time(), int(days * 86_400)
    for second in range(seconds):
        now[0] += 1
        history.record("run", second * STEPS_PER_SECOND, now[0], pool[second % len(pool)])
        history.record_usage(
            "run", second * STEPS_PER_SECOND, now[0], dict(zip(LAYERS, usage[second % 50], strict=True))
        )
        if second % 30 == 0:
            history.flush(60)
    history.flush(60)
    used = time.process_time() - began
    before = time.perf_counter()
    history.series("run", ["codebook_perplexity"], points=400)
    query = time.perf_counter() - before
    history.close()
    size = sum(entry.stat().st_size for entry in path.parent.iterdir())
    return {
        "days": days,
        "megabytes": size / 1e6,
        "cpu_ms_per_second": used / seconds * 1e3,
        "query_ms": query * 1e3,
        "dropped": history.dropped,
    }


def main() -> None:
    """Measure one of the two and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=0.0)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "history.sqlite"
        found = over_days(path, options.days) if options.days else at_work(path, options.seconds)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
