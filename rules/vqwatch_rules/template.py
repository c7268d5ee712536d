"""The part of Prometheus' annotation templates that vqwatch understands, so that texts can move either way.

``{{ $value }}``, ``{{ $labels.layer }}``, each optionally through ``| humanize``, ``| humanizePercentage``,
``| humanizeDuration``, and ``{{ printf "%.2f" $value }}``. Everything else is refused when the rules are loaded.
The functions print what Prometheus prints (its ``template/template.go``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

_ACTION: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_EXPRESSION: Final = re.compile(r"(\$value|\$labels\.([a-zA-Z_][a-zA-Z0-9_]*))(?:\s*\|\s*([A-Za-z]+))?")
_PRINTF: Final = re.compile(r'printf\s+"([^"%]*%(?:\.\d+)?[efg][^"%]*)"\s+\$value')
_LARGE: Final = ("k", "M", "G", "T", "P", "E", "Z", "Y")
_SMALL: Final = ("m", "u", "n", "p", "f", "a", "z", "y")


class Template:
    """A text with places for the value and the labels.

    >>> Template("Layer {{ $labels.layer }} uses {{ $value | humanizePercentage }}.").render(0.25, {"layer": "3"})
    'Layer 3 uses 25%.'
    """

    __slots__ = ("_parts", "label_names", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        names: list[str] = []
        parts: list[str | Callable[[float, Mapping[str, str]], str]] = []
        end = 0
        for match in _ACTION.finditer(text):
            parts.append(text[end : match.start()])
            parts.append(_compile(match[1].strip(), names))
            end = match.end()
        parts.append(text[end:])
        if any(isinstance(part, str) and ("{{" in part or "}}" in part) for part in parts):
            raise ValueError("unbalanced {{ }}")
        self._parts = tuple(parts)
        self.label_names = frozenset(names)

    def render(self, value: float, labels: Mapping[str, str]) -> str:
        """Return the text with this value and these labels; a label that is not there is empty."""
        return "".join(part if isinstance(part, str) else part(value, labels) for part in self._parts)


def _compile(expression: str, names: list[str]) -> Callable[[float, Mapping[str, str]], str]:
    if match := _PRINTF.fullmatch(expression):
        form = match[1]
        return lambda value, _labels: _printf(form, value)
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise ValueError(
            f"{{{{ {expression} }}}} is not understood; there are $value, $labels.<name>, "
            f'the functions {", ".join(_FUNCTIONS)} after a |, and printf "%.2f" $value'
        )
    source, name, function = match.groups()
    if function is not None and function not in _FUNCTIONS:
        raise ValueError(f"unknown function {function!r}; there are {', '.join(_FUNCTIONS)}")
    if name is not None:
        names.append(name)
        if function is not None:
            raise ValueError(f"{function} goes with $value, not with {source}")
        return lambda _value, labels: labels.get(name, "")
    shape = _FUNCTIONS[function] if function else _go_float
    return lambda value, _labels: shape(value)


def _go_float(value: float) -> str:
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e21 else repr(value)


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _printf(form: str, value: float) -> str:
    return form % value if math.isfinite(value) else re.sub(r"%(?:\.\d+)?[efg]", _not_finite(value), form)


def humanize(value: float) -> str:
    """Write a number with an SI prefix and four digits.

    >>> humanize(1234567), humanize(0.00025), humanize(0)
    ('1.235M', '250u', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.4g}" if math.isfinite(value) else _not_finite(value)
    prefix = ""
    if abs(value) >= 1:
        for sign in _LARGE:
            if abs(value) < 1000:
                break
            prefix, value = sign, value / 1000
    else:
        for sign in _SMALL:
            if abs(value) >= 1:
                break
            prefix, value = sign, value * 1000
    return f"{value:.4g}{prefix}"


def humanize_percentage(value: float) -> str:
    """Write a share as a percentage.

    >>> humanize_percentage(0.0625)
    '6.25%'
    """
    return f"{value * 100:.4g}%" if math.isfinite(value) else f"{_not_finite(value)}%"


def humanize_duration(seconds: float) -> str:
    """Write seconds as people say them.

    >>> humanize_duration(3725), humanize_duration(0.25)
    ('1h 2m 5s', '250ms')
    """
    if not math.isfinite(seconds):
        return _not_finite(seconds)
    if abs(seconds) < 1:
        prefix = ""
        if seconds:
            for sign in _SMALL:
                if abs(seconds) >= 1:
                    break
                prefix, seconds = sign, seconds * 1000
        return f"{seconds:.4g}{prefix}s"
    sign, whole = ("-" if seconds < 0 else ""), int(abs(seconds))
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {rest}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {rest}s"
    if minutes:
        return f"{sign}{minutes}m {rest}s"
    return f"{sign}{abs(seconds):.4g}s"


_FUNCTIONS: Final[dict[str, Callable[[float], str]]] = {
    "humanize": humanize,
    "humanizePercentage": humanize_percentage,
    "humanizeDuration": humanize_duration,
}
