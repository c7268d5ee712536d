"""Chooses the layers whose codes have a series each, under one bound for the whole daemon. No clock, no socket.

A layer has all of its codes or none: a sum over half of them would look like a codebook with dead codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Key: TypeAlias = tuple[str, str]
"""A run and one of its layers."""


class PerCode:
    """At most ``most`` series. ``capped`` counts those that were not given, once for each layer that was turned away.

    >>> per_code = PerCode(most=300)
    >>> per_code.choose({("a", "0"): 256, ("a", "1"): 256, ("b", "0"): 32}), per_code.capped
    ([('a', '0'), ('b', '0')], 256)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.capped = 0
        self._chosen: dict[Key, int] = {}
        self._turned_away: dict[Key, int] = {}

    def choose(self, sizes: Mapping[Key, int]) -> list[Key]:
        """Return which of these layers have series, given the number of codes of each.

        A layer that has them keeps them for as long as it is there; the others come in their order, as they fit.
        """
        kept = {key: size for key, size in self._chosen.items() if sizes.get(key) == size}
        free = self.most - sum(kept.values())
        turned_away = {}
        for key, size in sizes.items():
            if key in kept:
                continue
            if size <= free:
                kept[key] = size
                free -= size
            else:
                turned_away[key] = size
                if self._turned_away.get(key) != size:
                    self.capped += size
        self._chosen, self._turned_away = kept, turned_away
        return [key for key in sizes if key in kept]
