"""What the demo shows: a live view in a terminal, plain lines elsewhere. Draws a :class:`Story`, decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.demo_story import Event, Plan, Story, value, values

EVENTS_SHOWN: Final = 12
PLAIN_EVERY_SECONDS: Final = 5.0

_COLOURS: Final = {"healthy": "green", "concerning": "yellow", "critical": "red", "": "default"}
_MARKS: Final = {"fault": "!", "mended": "+", "fired": "▲", "resolved": "✓"}
_STYLES: Final = {"fault": "bold magenta", "mended": "bold cyan", "resolved": "green", "fired": "yellow"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what it is called, how it is read, how it is written, whose bands judge it."""

    name: str
    read: Callable[[Mapping[str, Any]], float]
    pattern: str
    metric: str = ""
    healthy: str = ""


def _one(metric: str, *labels: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda readings: value(readings, metric, *labels)


def _least(metric: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda readings: min(values(readings, metric), default=math.nan)


def _most(metric: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda readings: max(values(readings, metric), default=math.nan)


ROWS: Final = (
    Row("loss", _one("loss", "total"), "{:.4f}"),
    Row("gradient norm", _one("gradient_norm"), "{:.3g}", "gradient_norm", "0.1 – 5"),
    Row("signal to noise", _one("reconstruction_snr_db"), "{:.1f} dB", "reconstruction_snr_db", "> 15 dB"),
    Row("utilization, mean", _one("codebook_utilization_mean_ratio"), "{:.0%}",
        "codebook_utilization_mean_ratio", "> 60 %"),
    Row("utilization, worst layer", _one("codebook_utilization_worst_ratio"), "{:.0%}",
        "codebook_utilization_worst_ratio", "> 60 %"),
    Row("perplexity, worst layer", _least("codebook_perplexity"), "{:.0f} of 256", "codebook_perplexity", "> 100"),
    Row("dead codes, worst layer", _most("codebook_dead_ratio"), "{:.0%}", "codebook_dead_ratio", "< 20 %"),
    Row("codes replaced per step, most", _most("ema_revivals_per_step"), "{:.1f}", "ema_revivals_per_step", "< 5"),
    Row("steps per second", _one("steps_per_second"), "{:.1f}"),
    Row("cost of watching", _most("emitter_overhead_ratio"), "{:.2%} of a step"),
)  # fmt: skip


def judge(row: Row, reading: float) -> str:
    """Return "healthy", "concerning", "critical", or "" where nothing can be said.

    Full use of a codebook is judged healthy, as the runbook has it, although the proposal's band ends below it.
    """
    metric = CATALOGUE.get(row.metric)
    if metric is None or metric.bands is None or math.isnan(reading):
        return ""
    size = 256 if metric.bands.per_code else 1
    bounded = min(reading, 0.9) if row.metric.startswith("codebook_utilization") else reading
    return metric.bands.verdict(bounded, size)


class View:
    """A context manager that draws; ``show`` is called after every look at the daemon."""

    def __init__(self, console: Console, plan: Plan, address: str, *, plain: bool) -> None:
        self._console = console
        self._plan = plan
        self._address = address
        self._live = None if plain else Live(console=console, refresh_per_second=4, transient=False)
        self._told = 0
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(
                f"page {self._address}/  metrics {self._address}/metrics  alerts {self._address}/api/alerts"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, story: Story, now: float) -> None:
        """Draw the story as it is at Unix time ``now``."""
        if self._live is not None:
            self._live.update(draw(story, self._address))
            return
        for event in story.events[self._told :]:
            self._console.print(line(event, story))
        self._told = len(story.events)
        if story.step >= 0 and now - self._last_line >= PLAIN_EVERY_SECONDS:
            self._last_line = now
            self._console.print(status_line(story))


def line(event: Event, story: Story) -> Text:
    """Return an event as one line: seconds since the training's first step, step, what happened."""
    since = event.time - (event.time if story.began_at is None else story.began_at)
    what = event.text
    if event.kind in ("fired", "resolved"):
        what = f"{event.text}{_places(event.where)} {event.kind}"
    severity = f" [{event.severity}]" if event.kind == "fired" else ""
    return Text(f"{_MARKS[event.kind]} {since:5.1f} s  step {event.step:4d}  {what}{severity}", style=_style(event))


def _places(where: tuple[str, ...]) -> str:
    """Return label sets in short.

    >>> _places(("layer 0", "layer 1")), _places(("layer 3",)), _places(("",))
    (' (2 times: layer 0, layer 1)', ' (layer 3)', '')
    """
    if not any(where):
        return ""
    shown = ", ".join(where[:2]) + (", …" if len(where) > 2 else "")
    return f" ({shown})" if len(where) == 1 else f" ({len(where)} times: {shown})"


def _style(event: Event) -> str:
    if event.severity == "info":
        return "dim"
    return "bold red" if event.kind == "fired" and event.severity == "critical" else _STYLES[event.kind]


def status_line(story: Story) -> str:
    """Return the readings that matter as one line.

    >>> status_line(Story(Plan.of("collapse", 320)))
    'step -1/740'
    """
    parts = [f"step {story.step}/{story.plan.steps}"]
    for row in ROWS:
        reading = row.read(story.readings)
        if not math.isnan(reading):
            parts.append(f"{row.name} {row.pattern.format(reading)}")
    return "  ".join(parts)


def draw(story: Story, address: str) -> RenderableType:
    """Return the whole live view."""
    plan = story.plan
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    bar.add_row(
        ProgressBar(total=plan.steps, completed=max(0, min(story.step + 1, plan.steps))),
        f"step {max(0, story.step)} of {plan.steps}",
    )
    lines = [line(event, story) for event in story.events[-EVENTS_SHOWN:]] or [Text("none yet")]
    return Group(
        Panel(bar, title=f"training, {_chapter(story)}", title_align="left"),
        _table(story),
        Panel(Group(*lines), title=f"alerts, {len(story.firing)} firing", title_align="left"),
        addresses(address),
    )


def addresses(address: str) -> Text:
    """Return where to look, with links."""
    places = {"page": "/", "metrics": "/metrics", "alerts": "/api/alerts"}
    return Text("   ").join(
        Text.assemble(f"{name} ", (address + path, f"link {address}{path}")) for name, path in places.items()
    )


def _chapter(story: Story) -> str:
    if story.step < 0:
        return "starting"
    if story.fault_at is None:
        return f"healthy, the fault comes at step {story.plan.begins}"
    if story.mended_at is None:
        return f"fault: {story.plan.sentence}"
    return "recovering"


def _table(story: Story) -> Table:
    table = Table(expand=True, show_edge=False, pad_edge=False)
    table.add_column("reading")
    table.add_column("now", justify="right")
    table.add_column("healthy", justify="right", style="dim")
    for row in ROWS:
        reading = row.read(story.readings)
        shown = "–" if math.isnan(reading) and row.name != "loss" else row.pattern.format(reading)
        table.add_row(row.name, Text(shown, style=_COLOURS[judge(row, reading)]), row.healthy)
    return table
