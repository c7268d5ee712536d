"""Keeps Python's garbage collector from walking what lives as long as the process."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (5_000, 20, 20)
"""Containers made and not freed before a collection of the youngest, and collections of each before one of the next."""


def settle() -> None:
    """Take everything that exists now out of every later collection; call it once, when all is built.

    Modules, rules and catalogue are some hundred thousand objects that no collection ever frees, and a step makes
    hundreds of dictionaries, so that walking them all again and again was a fifth of what a step cost. Readings hold
    no cycles: they go when they are replaced, without the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
