"""The fields of a header, one by one, each with its type and its range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from .messages import MAX_ENTRIES, MAX_INTEGER, MAX_NAME_LENGTH, WireError


class Fields:
    """Reads a header's fields. Each raises :class:`WireError` where it is not as expected."""

    def __init__(self, values: Mapping[object, object]) -> None:
        self._values = values

    def _fail(self, key: str, expected: str) -> WireError:
        shown = repr(self._values.get(key, "nothing"))
        return WireError("field", f"{key}: expected {expected}, got {shown[:80]}")

    def has(self, key: str) -> bool:
        """Return whether the field is there and not nil."""
        return self._values.get(key) is not None

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER, default: int | None = None) -> int:
        """Return an integer from ``low`` to ``high``; ``default`` where the field is absent and there is one."""
        value = self._values.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str) -> float | None:
        """Return a number, None where the field is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self._fail(key, "a number")
        return float(value)  # type: ignore[arg-type]  # narrowed above; mypy does not follow type()

    def text(self, key: str, default: str | None = None, longest: int = MAX_NAME_LENGTH, empty: bool = False) -> str:
        """Return printable text."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or len(value) > longest or not (value or empty) or not value.isprintable():
            raise self._fail(key, f"printable text of at most {longest} characters")
        return value

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """Return names that differ from each other."""
        value = self._values.get(key, ())
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise self._fail(key, f"a list of at most {most} names")
        names = tuple(value)
        if not _are_names(names):
            names = tuple(_name(key, item) for item in names)
        if len(set(names)) != len(names):
            raise self._fail(key, "names that differ from each other")
        return names

    def numbers(self, key: str) -> Mapping[str, float]:
        """Return numbers by name."""
        given = self._values.get(key)
        if _is_usual(given, _FLOATS):
            return given  # type: ignore[return-value]  # looked at just now
        return {name: _float(key, value) for name, value in self._entries(key)}

    def counts(self, key: str) -> Mapping[str, int]:
        """Return whole numbers by name."""
        given = self._values.get(key)
        if not given and _is_usual(given, _INTEGERS):
            return {}
        return {name: Fields({key: value}).integer(key) for name, value in self._entries(key)}

    def integers(self, key: str, most: int) -> list[int]:
        """Return a list of 1 to ``most`` whole numbers."""
        values = self._values.get(key)
        if type(values) is not list or not 1 <= len(values) <= most:
            raise self._fail(key, f"a list of 1 to {most} integers")
        if not all(type(value) is int and 0 <= value <= MAX_INTEGER for value in values):
            raise self._fail(key, f"integers from 0 to {MAX_INTEGER}")
        return values

    def column(self, key: str, count: int) -> Sequence[float] | None:
        """Return a number for each of ``count`` steps, None where the field is absent."""
        return self._column(key, self._values[key], count) if self.has(key) else None

    def columns(self, key: str, count: int) -> Mapping[str, Sequence[float]]:
        """Return, by name, a number for each of ``count`` steps."""
        return {name: self._column(key, values, count) for name, values in self._entries(key)}

    def _column(self, key: str, values: object, count: int) -> Sequence[float]:
        if type(values) is not list or len(values) != count:
            raise WireError("field", f"{key}: expected a list of {count} numbers, got {values!r:.80}")
        return values if _FLOATS.issuperset(map(type, values)) else [_float(key, value) for value in values]

    def labels(self, key: str) -> Mapping[str, str]:
        """Return texts by name."""
        return {name: Fields({key: value}).text(key, longest=512, empty=True) for name, value in self._entries(key)}

    def _entries(self, key: str) -> list[tuple[str, object]]:
        value = self._values.get(key, {})
        if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
            raise self._fail(key, f"a map of at most {MAX_ENTRIES} entries")
        return [(_name(key, name), item) for name, item in value.items()]

    def maps(self, key: str, most: int) -> list[Fields]:
        """Return a list of maps, as fields of their own."""
        value = self._values.get(key, [])
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
            raise self._fail(key, f"a list of at most {most} maps")
        return [Fields(item) for item in value]

    def raw(self, key: str) -> object:
        """Return the field as it is, unchecked."""
        return self._values.get(key)


_MOST_REMEMBERED: Final = 64
_FLOATS: Final = frozenset({float})
_INTEGERS: Final = frozenset({int})


def _is_usual(given: object, types: frozenset[type]) -> bool:
    """Whether this is a map as nearly all are: from names to values of one type, which then need no look each."""
    return type(given) is dict and types.issuperset(map(type, given.values())) and _are_names(tuple(given))


def _are_names(values: tuple[object, ...]) -> bool:
    """Whether all are names, of which the same few come with every step; False for more than are remembered."""
    try:
        return len(values) <= _MOST_REMEMBERED and _are_known_names(values)
    except TypeError:  # a list among them, say, which cannot be looked up
        return False


@lru_cache(maxsize=256)
def _are_known_names(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable() for value in values)


def _name(key: str, value: object) -> str:
    """Return a name among the entries of a field; as strict as :meth:`Fields.text`, and made for many of them."""
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable():
        return value
    return Fields({key: value}).text(key)


def _float(key: str, value: object) -> float:
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise WireError("field", f"{key}: expected numbers, got {value!r:.80}")
