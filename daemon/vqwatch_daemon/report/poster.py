"""The report as one picture for slides, 1600 pixels wide. Drawn as SVG, turned into pixels by resvg."""

from __future__ import annotations

import html
import re

from vqwatch_daemon import health
from vqwatch_daemon.report import figures, svg
from vqwatch_daemon.report.story import Story
from vqwatch_daemon.report.words import summary

WIDTH = 1600
_CHARTS = (
    "codebook_utilization_ratio", "codebook_perplexity", "reconstruction_snr_db",
    "loss", "gradient_norm", "ema_revivals_per_step",
)  # fmt: skip


def drawing(story: Story) -> str:
    """Return the poster as SVG."""
    look = svg.PAPER
    tone = look.verdicts[story.verdict]
    parts = [
        svg.text(40, 56, story.run[:70], size=30, fill=look.ink, bold=True),
        svg.text(
            WIDTH - 40, 56, f"steps {story.first_step:,} to {story.last_step:,}", size=18, fill=look.soft, anchor="end"
        ),
        f'<rect x="40" y="76" width="{WIDTH - 80}" height="46" rx="8" fill="{tone}" opacity="0.12"/>',
        f'<rect x="40" y="76" width="8" height="46" rx="3" fill="{tone}"/>',
        svg.text(64, 106, f"{health.SIGNS[story.verdict]}  {story.sentence}", size=20, fill=tone, bold=True),
    ]
    y = 150.0
    for line in summary(story, most_alerts=3)[:7]:
        parts.append(svg.text(44, y, "• " + (line if len(line) < 150 else line[:149] + "…"), size=16, fill=look.soft))
        y += 24
    y += 6
    cell = (WIDTH - 80 + 12) / max(len(story.tiles), 1)
    for i, tile in enumerate(story.tiles):
        parts += _tile(tile, 40 + cell * i, y, cell - 12, look)
    y += 112
    members = {figure.metric: figure for _, section in figures.SECTIONS for figure in section}
    drawn = [figures.chart(story, members[metric], look, 496, 260) for metric in _CHARTS]
    drawn = [item for item in drawn if item]
    for i, item in enumerate(drawn):
        parts.append(_placed(item, 40 + (i % 3) * 512, y + (i // 3) * 276))
    y += 276 * ((len(drawn) + 2) // 3)
    for item in [*figures.heatmaps(story, look, WIDTH - 80)[-1:], figures.timeline(story, look, WIDTH - 80)]:
        if item:
            parts.append(_placed(item, 40, y))
            y += _height(item) + 16
    size = f'viewBox="0 0 {WIDTH} {y + 10:.0f}" width="{WIDTH}" height="{y + 10:.0f}"'
    fonts = "DejaVu Sans, Liberation Sans, Arial, sans-serif"
    ground = f'<rect width="100%" height="100%" fill="{look.card}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{fonts}">{ground}{"".join(parts)}</svg>'


def png(story: Story) -> bytes:
    """Return the poster as a PNG file; raises ModuleNotFoundError without the package resvg-py."""
    import resvg_py  # optional, and only for pictures

    return bytes(resvg_py.svg_to_bytes(svg_string=drawing(story)))


def _tile(tile: health.Tile, x: float, y: float, width: float, look: svg.Look) -> list[str]:
    tone = look.verdicts[tile.verdict]
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="94" rx="6" fill="none" stroke="{look.line}"/>',
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="4" rx="2" fill="{tone}"/>',
        svg.text(x + 10, y + 24, tile.title, size=13, fill=look.soft),
        svg.text(x + 10, y + 54, tile.value, size=22, fill=look.ink, bold=True),
        svg.text(x + 10, y + 78, f"{health.SIGNS[tile.verdict]} {tile.verdict}", size=13, fill=tone, bold=True),
    ]


def _placed(drawn: str, x: float, y: float) -> str:
    return drawn.replace("<svg ", f'<svg x="{x:.0f}" y="{y:.0f}" ', 1)


def _height(drawn: str) -> float:
    found = re.search(r'height="([\d.]+)"', drawn)
    return float(html.unescape(found[1])) if found else 0.0
