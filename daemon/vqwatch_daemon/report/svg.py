"""Charts as SVG text: axes with round numbers, curves, bands, a timeline, a heatmap as an embedded picture. Pure.

Every text goes through :func:`text`, which escapes; nothing else puts a name into the markup.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RAMP: Final = ("#5a62c8", "#3f7fd0", "#1d97a6", "#3fa05a", "#9a9412", "#d07a1c", "#cf4b5a")
HUES: Final = ("#4a5bc4", "#cf6a1c", "#159183", "#b0478f", "#96840e", "#3b8fd0", "#b84a3f", "#6b7688")
VIRIDIS: Final = ("#440154", "#3e4a89", "#26828e", "#35b779", "#b5de2b", "#fde725")
DASHES: Final = ("", "2 2", "6 3")


@dataclass(frozen=True, slots=True)
class Look:
    """The colours that depend on where a chart is shown: CSS variables in a page, plain colours in a picture."""

    ink: str
    soft: str
    line: str
    card: str
    verdicts: Mapping[str, str]


PAGE: Final = Look(
    "var(--ink)", "var(--soft)", "var(--line)", "var(--card)",
    {name: f"var(--{name})" for name in ("healthy", "concerning", "critical", "info", "unknown")},
)  # fmt: skip
PAPER: Final = Look(
    "#171c26", "#545e70", "#dfe3ea", "#ffffff",
    {"healthy": "#14713f", "concerning": "#8a5a00", "critical": "#b3202f", "info": "#4b5568", "unknown": "#4b5568"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: ``y`` may hold None, or words for what is not finite."""

    name: str
    x: Sequence[float]
    y: Sequence[float | str | None]
    colour: str
    dash: str = ""


def text(
    x: float, y: float, words: str, *, size: float = 11, fill: str, anchor: str = "start", bold: bool = False
) -> str:
    """Return a text element."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{html.escape(words)}</text>"
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``.

    >>> ticks(0, 1), ticks(120, 257)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [150.0, 200.0, 250.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * nice for nice in (1, 2, 2.5, 5, 10) if size * nice >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, with their doubles and fives where there are few.

    >>> log_ticks(0.02, 3)
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    parts = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [float(f"{part}e{power}") for power in powers for part in parts if low <= float(f"{part}e{power}") <= high]
    return found or [low, high]


def short(value: float) -> str:
    """Return a number as an axis shows it.

    >>> short(12000.0), short(0.25), short(3e-5)
    ('12,000', '0.25', '3e-05')
    """
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 or (value == int(value) and size < 1e6) else f"{value:.3g}"


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    look: Look = PAGE,
    width: int = 460,
    height: int = 250,
    log: bool = False,
    percent: bool = False,
    span: tuple[float, float] | None = None,
    bands: Iterable[tuple[float, float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a chart of the lines; ``bands`` are (low, high, verdict), ``marks`` vertical lines (x, verdict)."""
    points = [value for line in lines for value in line.y if _drawable(value, log)]
    xs = [value for line in lines for value in line.x]
    if not points or not xs:
        return ""
    low, high = span if span is not None else _padded(min(points), max(points), log)  # type: ignore[type-var,arg-type]
    left, right, top = 46.0, width - 10.0, 26.0
    rows = math.ceil(len(lines) / 4) if 1 < len(lines) <= 24 else 0
    bottom = height - 22.0 - 15 * rows
    x_of = _scale(min(xs), max(xs), left, right)
    y_of = _log_scale(low, high, bottom, top) if log else _scale(low, high, bottom, top)
    parts = [text(0, 13, title, size=13, fill=look.ink, bold=True)]
    for start, end, verdict in bands:
        first, last = max(start, low), min(end, high)
        if last > first:
            y0, y1 = y_of(last), y_of(first)
            box = f'x="{left}" y="{y0:.1f}" width="{right - left:.1f}" height="{y1 - y0:.1f}"'
            parts.append(f'<rect {box} fill="{look.verdicts[verdict]}" opacity="0.09"/>')
    for value in log_ticks(low, high) if log else ticks(low, high):
        y = y_of(value)
        parts.append(f'<path d="M{left} {y:.1f}H{right:.1f}" stroke="{look.line}" stroke-width="0.7"/>')
        parts.append(
            text(left - 5, y + 3.5, f"{value:.0%}" if percent else short(value), size=10, fill=look.soft, anchor="end")
        )
    parts += [_below(x_of(value), bottom + 14, value, look) for value in ticks(min(xs), max(xs), 6)]
    for x, verdict in marks:
        if min(xs) <= x <= max(xs):
            d = f"M{x_of(x):.1f} {top}V{bottom:.1f}"
            parts.append(f'<path d="{d}" stroke="{look.verdicts[verdict]}" stroke-width="1" stroke-dasharray="3 2"/>')
    for line in lines:
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        d = _path(line, x_of, y_of, log)
        parts.append(
            f'<path d="{d}" fill="none" stroke="{line.colour}" stroke-width="1.5" stroke-linejoin="round"{dash}/>'
        )
    if rows:
        parts += _legend(lines, bottom + 30, left, right, look)
    return _svg(width, height, parts, title)


def timeline(
    title: str,
    rows: Sequence[tuple[str, str, float, float]],
    start: float,
    end: float,
    *,
    look: Look = PAGE,
    width: int = 940,
) -> str:
    """Return bars of (label, verdict, from, to) along the steps from ``start`` to ``end``."""
    if not rows:
        return ""
    left, right = 250.0, width - 10.0
    x_of = _scale(start, max(end, start + 1), left, right)
    parts = [text(0, 13, title, size=13, fill=look.ink, bold=True)]
    for i, (label, verdict, begin, finish) in enumerate(rows):
        y = 26 + 20 * i
        x0, x1 = x_of(begin), max(x_of(finish), x_of(begin) + 3)
        parts.append(
            text(
                left - 8, y + 11, label if len(label) < 40 else label[:39] + "…", size=11, fill=look.soft, anchor="end"
            )
        )
        parts.append(f'<path d="M{left} {y + 7.5}H{right}" stroke="{look.line}" stroke-width="0.7"/>')
        parts.append(
            f'<rect x="{x0:.1f}" y="{y + 1}" width="{x1 - x0:.1f}" height="13" rx="2" fill="{look.verdicts[verdict]}"/>'
        )
    height = 26 + 20 * len(rows) + 20
    parts += [_below(x_of(value), height - 4, value, look) for value in ticks(start, max(end, start + 1), 6)]
    return _svg(width, height, parts, title)


def heatmap(title: str, layers: Mapping[str, Sequence[int]], *, look: Look = PAGE, width: int = 940) -> str:
    """Return layers by codes, coloured by use relative to uniform; codes never used are left blank."""
    columns = max(len(values) for values in layers.values())
    image = np.zeros((len(layers), columns, 4), np.uint8)
    for row, values in enumerate(layers.values()):
        counts = np.asarray(values, float)
        share = np.sqrt(counts / max(4 * counts.sum() / len(counts), 1e-9))
        image[row, : len(counts)] = _viridis(share, counts > 0)
    left, right = 46.0, width - 76.0
    height = 24 + 16 * len(layers)
    data = base64.b64encode(_png(image)).decode()
    parts = [
        text(0, 13, title, size=13, fill=look.ink, bold=True),
        f'<rect x="{left}" y="22" width="{right - left}" height="{height - 24}" fill="{look.line}"/>',
        f'<image x="{left}" y="22" width="{right - left}" height="{height - 24}" preserveAspectRatio="none" '
        f'image-rendering="optimizeSpeed" style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>',
    ]
    for row, (name, values) in enumerate(layers.items()):
        y = 22 + 16 * row + 12
        parts.append(text(left - 6, y, name[:7], size=10, fill=look.soft, anchor="end"))
        used = int(np.count_nonzero(np.asarray(values)))
        parts.append(text(right + 6, y, f"{used} / {len(values)}", size=10, fill=look.soft))
    return _svg(width, height, parts, title)


# --- the pieces -------------------------------------------------------------------------------------------------


def ordered(i: int, n: int) -> tuple[str, str]:
    """Return colour and dash of the i-th of n ordered lines."""
    place = i / (n - 1) * (len(RAMP) - 1) if n > 1 else 1.0
    return _mix(RAMP, place), DASHES[i % 3] if n > 3 else ""


def _svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    fonts = "system-ui, DejaVu Sans, Liberation Sans, Arial, sans-serif"
    label = html.escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}" font-family="{fonts}">'
        f"{''.join(parts)}</svg>"
    )


def _below(x: float, y: float, value: float, look: Look) -> str:
    return text(x, y, short(value), size=10, fill=look.soft, anchor="middle")


def _drawable(value: float | str | None, log: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (not log or value > 0)


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return (low / 1.15, high * 1.15)
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - pad, high + pad)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    size = high - low or 1.0
    return lambda value: start + (value - low) / size * (end - start)


def _log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    inner = _scale(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(value))


def _path(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float], log: bool) -> str:
    parts: list[str] = []
    pen = "M"
    for x, y in zip(line.x, line.y, strict=True):
        if not _drawable(y, log):
            pen = "M"
            continue
        parts.append(f"{pen}{x_of(x):.1f} {y_of(y):.1f}")  # type: ignore[arg-type]
        pen = "L"
    return "".join(parts)


def _legend(lines: Sequence[Line], top: float, left: float, right: float, look: Look) -> list[str]:
    parts = []
    cell = (right - left) / 4
    for i, line in enumerate(lines):
        x, y = left + cell * (i % 4), top + 15 * (i // 4)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        parts.append(f'<path d="M{x:.1f} {y - 3.5:.1f}h16" stroke="{line.colour}" stroke-width="2"{dash}/>')
        parts.append(
            text(x + 20, y, line.name if len(line.name) < 15 else line.name[:14] + "…", size=10, fill=look.soft)
        )
    return parts


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _mix(colours: Sequence[str], place: float) -> str:
    left = min(int(place), len(colours) - 2)
    a, b = _channels(colours[left]), _channels(colours[left + 1])
    return "#" + "".join(f"{round(p + (q - p) * (place - left)):02x}" for p, q in zip(a, b, strict=True))


def _viridis(share: NDArray[Any], used: NDArray[Any]) -> NDArray[np.uint8]:
    stops = np.array([_channels(colour) for colour in VIRIDIS], float)
    place = np.clip(share, 0, 1) * (len(stops) - 1)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, i]) for i in range(3)]
    return np.stack([*channels, np.where(used, 255, 0)], axis=-1).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGBA pixels [rows, columns, 4] as a PNG file."""
    rows, columns, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
