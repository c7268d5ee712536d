"""Full validation passes of one run: messages of several ranks in, readings of whole passes out.

A pass is known by its name and step. It is read when every rank that began it has ended it, and read again, as one,
when a further rank ends. Only whole passes count: a part that is missing, a session that was abandoned or a beginning
that nobody saw makes no readings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Evaluation, Layer
from vqwatch_daemon.arrays import as_array, as_floats, as_mask
from vqwatch_daemon.readings import Readings, one
from vqwatch_daemon.sections.corpus import Corpus
from vqwatch_daemon.sections.refused import Refused

PASSES_KEPT: Final = 4
"""Passes that are under way or may be joined by further ranks; the oldest is given up for a fifth."""

_Key: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class Pass:
    """One pass as far as it has come: batches of each rank, and the ranks that are through."""

    corpus: Corpus
    parts: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)


class Evaluations:
    """The validation passes of a run; several ranks may share one."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._rows = {layer.name: row for row, layer in enumerate(layers)}
        self._sizes = np.array([layer.size for layer in layers], np.int64)
        self._passes: dict[_Key, Pass] = {}
        self._abandoned: deque[_Key] = deque(maxlen=64)

    def add(self, message: Evaluation, training: NDArray[np.int64]) -> Readings | None:
        """Take one part of a pass; return its readings when it has ended on every rank that began it.

        ``training`` [layers, codes] is the training window's usage. Raises :class:`Refused` for what does not fit.
        """
        key, rank = (message.name, message.step), message.origin.rank
        if message.phase == "abandon":
            self._passes.pop(key, None)
            self._abandoned.append(key)
            return None
        if message.phase == "begin":
            self._begin(key, rank)
        current = self._passes.get(key)
        if key in self._abandoned:
            return None
        if current is None or rank not in current.parts or rank in current.ended:
            raise Refused("evaluation_begin", f"a part of evaluation {key} of rank {rank}, which did not begin one")
        if message.phase == "batch":
            current.parts[rank] += 1
            self._batch(current.corpus, message)
        current.corpus.note(message.scalars)
        return self._end(current, message, training) if message.phase == "end" else None

    def _begin(self, key: _Key, rank: int) -> None:
        current = self._passes.get(key)
        if current is not None and rank in current.parts:  # the same rank begins again: what it sent before is void
            del self._passes[key]
            current = None
        if current is None:
            if key in self._abandoned:
                self._abandoned.remove(key)
            while len(self._passes) >= PASSES_KEPT:
                del self._passes[next(iter(self._passes))]
            current = self._passes[key] = Pass(Corpus(self._sizes))
        current.parts[rank] = 0

    def _batch(self, corpus: Corpus, message: Evaluation) -> None:
        mask = as_mask(message.mask)
        unknown = [name for name in message.layers if name not in self._rows]
        if unknown:
            raise Refused("unknown_layer", f"evaluation codes of {unknown}; announced: {list(self._rows)}")
        if message.original is not None and message.reconstructed is not None:
            try:
                corpus.compare(as_floats(message.original), as_floats(message.reconstructed), mask)
            except ValueError as error:
                raise Refused("mask", str(error)) from error
        if message.codes is not None:
            corpus.assign([self._rows[name] for name in message.layers], as_array(message.codes), mask)

    def _end(self, current: Pass, message: Evaluation, training: NDArray[np.int64]) -> Readings | None:
        rank = message.origin.rank
        if current.parts[rank] != message.batch:
            del self._passes[message.name, message.step]
            raise Refused(
                "evaluation_incomplete", f"rank {rank} sent {message.batch} parts, {current.parts[rank]} arrived"
            )
        current.ended.add(rank)
        if len(current.ended) < len(current.parts):
            return None
        series: dict[tuple[str, ...], float] = dict(current.corpus.statistics(training).items())
        return {"evaluation": series, "evaluation_step": one(message.step)}

    def state(self) -> dict[str, Any]:
        """Return the passes that are under way, numbers and arrays."""
        return {
            "passes": [
                [name, step, current.corpus.state(), list(current.parts.items()), sorted(current.ended)]
                for (name, step), current in self._passes.items()
                if len(current.ended) < len(current.parts)
            ],
            "abandoned": [list(key) for key in self._abandoned],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of the same layers returned."""
        for name, step, corpus, parts, ended in state["passes"]:
            current = self._passes[name, step] = Pass(Corpus(self._sizes), dict(parts), set(ended))
            current.corpus.restore(corpus)
        self._abandoned.extend((name, step) for name, step in state["abandoned"])
