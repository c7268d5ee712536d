"""Every crash that a fuzzer found, for ever, and the seeds that they begin with. ``make fuzz`` does more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

CRASHES = sorted((Path(__file__).parent / "crashes").glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_fuzzer_break_nothing(name: str) -> None:
    target = TARGETS[name]()
    for seed in getattr(seeds, name)():
        target(seed)
        target(seed[: len(seed) // 2])


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_something_does_so_no_more(path: Path) -> None:
    TARGETS[path.parent.name]()(path.read_bytes())
