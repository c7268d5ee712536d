"""The report as one HTML file that needs nothing else: no script, no other file, no other host."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

from vqwatch_daemon import health
from vqwatch_daemon.report import figures
from vqwatch_daemon.report.story import Story
from vqwatch_daemon.report.words import moment, summary

_STYLE: Final = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_WORDS: Final = {"info": "no bands", "unknown": "no evidence"}


def document(story: Story) -> str:
    """Return the report's HTML."""
    name = html.escape(story.run)
    parts = [
        f"<header><h1>{name}</h1><p class='soft'>vqwatch report · steps {story.first_step:,} to {story.last_step:,} · "
        f"{moment(story.started_at)} to {moment(story.last_seen)} UTC</p></header>",
        f"<p class='verdict' style='--tone:var(--{story.verdict})'><b>{health.SIGNS[story.verdict]}</b>"
        f"At the end: {html.escape(story.sentence)}</p>",
        "<h2>What happened</h2>",
        f"<ul class='story'>{''.join(f'<li>{html.escape(line)}</li>' for line in summary(story))}</ul>",
        f"<div class='tiles'>{''.join(map(_tile, story.tiles))}</div>",
        *_alerts(story),
        *_heatmaps(story),
    ]
    for title, members in figures.SECTIONS:
        charts = [drawn for drawn in (figures.chart(story, figure) for figure in members) if drawn]
        if charts:
            parts.append(f"<h2>{title}</h2><div class='charts'>{''.join(map(_card, charts))}</div>")
    parts += _evaluation(story)
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="content-security-policy" content="{_POLICY}">'
        f"<title>{name} · vqwatch report</title><style>{_STYLE}</style>"
    )
    body = f"<main>{''.join(parts)}</main>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>"


def _card(drawn: str) -> str:
    return f"<div class='chart'>{drawn}</div>"


def _tile(tile: health.Tile) -> str:
    word = _WORDS.get(tile.verdict, tile.verdict)
    lines = (
        f"<h3>{html.escape(tile.title)}</h3>",
        f"<div class='value'>{html.escape(tile.value)}</div>",
        f"<div class='word'>{health.SIGNS[tile.verdict]} {word}</div>",
        f"<div class='detail'>{html.escape(tile.detail)}</div>",
    )
    return f"<div class='tile' style='--tone:var(--{tile.verdict})'>{''.join(lines)}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int] | set[int]) -> str:
    """Return a table of texts; the columns in ``numbers`` stand to the right."""
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = (
        "".join(f"<td{' class=n' if i in numbers else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='scroll'><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"


def _alerts(story: Story) -> list[str]:
    if not story.episodes:
        return []
    rows = (
        (
            episode.name,
            episode.severity,
            episode.where,
            f"{episode.start_step:,}",
            "at the end" if episode.end_step is None else f"{episode.end_step:,}",
            episode.summary,
        )
        for episode in story.episodes[:200]
    )
    table = _table(("alert", "severity", "where", "from step", "to step", "what it said"), rows, {3, 4})
    return ["<h2>Alerts</h2>", _card(figures.timeline(story)), _card(table)]


def _heatmaps(story: Story) -> list[str]:
    drawn = figures.heatmaps(story)
    return ["<h2>Code usage</h2>", *map(_card, drawn)] if drawn else []


def _evaluation(story: Story) -> list[str]:
    values = story.readings.get("evaluation", {})
    names = sorted({metric for metric, _ in values})
    if not names:
        return []
    stats = ("mean", "std", "min", "max")
    rows = (
        (name, *(f"{values[name, stat]:.5g}" if (name, stat) in values else "" for stat in stats)) for name in names
    )
    return ["<h2>Last full evaluation</h2>", _card(_table(("metric", *stats), rows, {1, 2, 3, 4}))]
