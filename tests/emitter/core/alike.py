"""Batches of steps that are all alike, in memory as a slot is, for the tests of how they are told and sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.messages import Memory

from vqwatch.batch import Regular
from vqwatch.entry import CodebooksBuild, CodesBuild
from vqwatch.schedule import Schedule
from vqwatch.wire import Origin, Tensor

ORIGIN = Origin("r", 0, "s")
CODES = CodesBuild(ORIGIN, ("0",), (0, 1), ("codes", "0"), None)
SIZES = CodebooksBuild(ORIGIN, [("codebooks", "0", "cluster_size")])


class Slot(Memory):
    """Memory with the codes of some steps, and cluster sizes behind them; tells when it is let go of.

    Its numbers, those ``given``, are others from then on.
    """

    def __init__(self, numbers: list[float], parts: int, sizes: bool = False) -> None:
        super().__init__(np.arange(64 * (parts + 1), dtype=np.int16).reshape(parts + 1, 1, 64))
        self.given = numbers
        self._numbers = np.array(numbers)
        self._sizes = sizes
        self.released = 0
        self.arrived = True

    def fetch(self) -> bool:
        return False

    def numbers(self, count: int) -> memoryview:
        return self._numbers.data[:count]

    def tensors(self, part: int) -> dict[Any, Tensor]:
        return {("codes", "0"): Tensor("i16", (1, 64), self.parts[part])}

    def extras(self) -> Iterator[tuple[int, dict[Any, Tensor]]]:
        if self._sizes:
            yield -1, {("codebooks", "0", "cluster_size"): Tensor("f32", (32,), self.parts[-1])}

    def release(self, loans: list[Any]) -> None:
        self.released += 1
        self._numbers[:] = np.nan


@dataclass(eq=False)
class Way:
    """What a batch needs of its routine."""

    losses: list[str]
    floats: list[str]
    normed: bool
    numbers: int
    arrays: Any

    @property
    def outgoing(self) -> Any:
        return self.arrays.outgoing


class Alike:
    """Makes batches that look alike: of steps with these losses on the device, and these that are floats."""

    def __init__(self, losses: list[str], floats: list[str], normed: bool, rates: int) -> None:
        self.floats, self.rates, self.width = floats, rates, len(losses) + normed
        arrays = SimpleNamespace(outgoing=(("codes", CODES),))
        self.routine: Any = Way(losses, floats, normed, self.width, arrays)

    def batch(self, first: int, count: int, parts: list[int], sizes: bool, seed: int) -> Regular:
        """Return a batch of steps from ``first`` on; those at ``parts`` have codes, the last one cluster sizes."""
        values = iter(np.random.default_rng(seed).normal(size=(count, self.width + self.rates + len(self.floats))))
        held: list[Any] = []
        numbers: list[float] = []
        for step, row in enumerate(values, start=first):
            of_step = [float(value) for value in row]
            numbers += of_step[: self.width]
            rates, floats = of_step[self.width :][: self.rates], of_step[self.width + self.rates :]
            held.append(SimpleNamespace(step=step, time_ns=10**18 + step, rates=rates, floats=floats))
        slot: Any = Slot(numbers, len(parts), sizes)
        beside = [("codebooks", SIZES)] if sizes else []
        return Regular(slot, self.routine, held, parts, beside, "plan" if sizes else None, 0.0)


def plan() -> Schedule:
    schedule = Schedule({"codes": 1, "codebooks": 50}, 1.0)
    schedule.overhead = 0.25
    return schedule
