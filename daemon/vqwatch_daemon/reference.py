"""The metrics reference, made from the catalogue: ``python -m vqwatch_daemon.reference > METRICS.md``."""

from __future__ import annotations

import sys

from vqwatch_daemon.catalogue import CATALOGUE, GROUPS, Bands, Metric

HEAD = """# Metrics

Made from the catalogue by `make reference`; do not edit. Every per-run metric has the label `run` first. A reading
without evidence is absent, never 0: a codebook that was seen through too few assignments has no utilization yet.
A value that is itself NaN or infinite (a loss, a gradient norm) is exported as such.
"""


def reference() -> str:
    """Return the reference page as Markdown."""
    return HEAD + "".join(f"\n## {title}\n\n{_table(group)}" for group, title in GROUPS.items())


def _table(group: str) -> str:
    rows = [
        "| metric | kind | labels | unit | meaning | healthy, concerning | source |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [_row(metric) for metric in CATALOGUE.values() if metric.group == group]
    return "\n".join(rows) + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.all_labels)
    bands = "" if metric.bands is None else _bands(metric.bands)
    cells = (f"`{metric.exposed_name}`", metric.kind, labels, metric.unit, metric.help, bands, metric.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _bands(bands: Bands) -> str:
    unit = " of K" if bands.per_code else ""
    return f"{_interval(*bands.healthy)}{unit}, {_interval(*bands.concerning)}{unit}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g}–{high:g}"


if __name__ == "__main__":
    sys.stdout.write(reference())
