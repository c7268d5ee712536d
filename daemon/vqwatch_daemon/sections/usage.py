"""Codebook use of one run: codes in, usage readings out.

All layers are counted and judged together, as rows of one array, because a training step must cost the daemon well
under a millisecond. Every step is counted, but the window of a hundred is read once in :data:`READ_EVERY`: one step
changes little in it. Comparing layers with each other costs more and comes every :data:`COMPARE_EVERY` steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Codes, Layer
from vqwatch_daemon.arrays import as_array, as_mask
from vqwatch_daemon.metrics import between, codebook, usage
from vqwatch_daemon.metrics.counting import counted
from vqwatch_daemon.metrics.identifiers import IdentifierSample
from vqwatch_daemon.readings import Labels, Readings, known, one
from vqwatch_daemon.sections.gather import Gather
from vqwatch_daemon.sections.refused import Refused
from vqwatch_daemon.window import UsageWindow

READ_EVERY: Final = 4
"""Steps with codes between two readings; fewer where the window is shorter."""

READ_WITHIN_NS: Final = 200_000_000
"""Nanoseconds between two readings, by the clocks of the ranks, after which a step is read however few came before."""

FIRST_STEPS: Final = 8
"""Steps with codes, from the first, each of which is read: what is wrong from the beginning shows at once."""

COMPARE_EVERY: Final = 20
"""Steps with codes between two readings of what describes the window, and of the layers against each other."""

IDENTIFY_EVERY: Final = 100
"""Steps with codes between two readings of the identifiers; a multiple of :data:`COMPARE_EVERY`."""

RELATE_EVERY: Final = 400
"""Steps with codes between two estimates of the mutual information of layers; a multiple of :data:`COMPARE_EVERY`."""

SMALL_BATCH: Final = 2048
LARGE_BATCH_EVERY: Final = 8
"""Batches of more vectors than this offer their identifiers to the sample only every so many steps; the half-life of
the sample, in vectors that came, is so many times longer then."""

SLOPE_STEPS: Final = 100
"""Steps with codes, the last ones, to whose readings of utilization the slope is fitted."""

SLOPE_EVERY: Final = 10
"""Steps with codes between two fits of the slope."""


class CodebookUse:
    """The window of one run's codes, merged over ranks, and what it says."""

    def __init__(self, layers: tuple[Layer, ...], window: int) -> None:
        self._names: list[Labels] = [(layer.name,) for layer in layers]
        self._rows = {layer.name: row for row, layer in enumerate(layers)}
        self._all_rows = list(range(len(layers)))
        self._of_size = [layer.size for layer in layers]
        self._sizes = np.array(self._of_size, np.int64)
        self._announced = {name: float(size) for name, size in zip(self._names, self._of_size, strict=True)}
        self._empty_window = (window, len(layers), int(self._sizes.max(initial=1)))
        self.window = UsageWindow(*self._empty_window)
        self._gather = Gather()
        self._by_code = np.zeros_like(self.window.counts)  # since the run began
        self._no_codes = np.zeros((2, len(layers)), np.int64)  # since then: ignored, out of range
        self._parts: dict[int, tuple[int, int]] = {}  # of each rank's step that is not whole yet, how many came
        self._utilization: deque[tuple[int, int, list[float]]] = deque()  # updates, step, of each layer
        self._identifiers = IdentifierSample(len(layers))
        self._rng = np.random.default_rng(0)  # fixed, so that a replay gives the same readings
        self._read_every = min(READ_EVERY, window)
        self._unread: list[int] = []  # steps that are complete and in no reading yet
        self._read_updates = self._read_ns = 0  # of the last reading
        self.updates = 0
        self.tokens_per_step: float | None = None

    def add(self, message: Codes, awaited: AbstractSet[int], now: float) -> list[tuple[int, Readings]]:
        """Count one rank's codes; return each step that is complete with them, with readings where they are due.

        Raises :class:`Refused` for a layer that ``hello`` did not announce.
        """
        try:
            rows = [self._rows[name] for name in message.layers]
        except KeyError as error:
            raise Refused("unknown_layer", f"codes of layer {error.args[0]!r}; announced: {list(self._rows)}") from None
        self._count(message, rows)
        rank = message.origin.rank
        said = self._said(rank, message) if self._parts or message.parts > 1 else [message.step]
        complete = [step for whole in said for step in self._gather.add(whole, rank, awaited, now)]
        return [(step, self._take(step, message.time_ns)) for step in complete]

    def _said(self, rank: int, message: Codes) -> list[int]:
        """Return the steps of which a rank has now sent all parts, or will send no more: parts may be lost."""
        step, came = self._parts.pop(rank, (message.step, 0))
        said: list[int] = []
        if step > message.step:
            self._parts[rank] = step, came
            return [message.step]
        if step < message.step:
            said.append(step)
            came = 0
        if came + 1 < message.parts:
            self._parts[rank] = message.step, came + 1
        else:
            said.append(message.step)
        return said

    def _count(self, message: Codes, rows: list[int]) -> None:
        indices, mask = as_array(message.indices), as_mask(message.mask)
        whole = rows == self._all_rows
        taken, repeats = counted(indices, self._of_size if whole else [self._of_size[row] for row in rows], mask)
        at = slice(None) if whole else rows  # a slice is several times cheaper than a list
        if not self.window.add(message.step, at, taken.counts, repeats):
            raise Refused("late", f"codes of step {message.step} have left the window")
        if len(rows) == len(self._names) and (indices[0].size <= SMALL_BATCH or self.updates % LARGE_BATCH_EVERY == 0):
            self._identifiers.add(indices if rows == sorted(rows) else indices[np.argsort(rows)], self._rng, mask)
        self._by_code[at, : taken.counts.shape[1]] += taken.counts
        self._no_codes[:, at] += (taken.ignored, taken.out_of_range)

    def settle(self, awaited: AbstractSet[int]) -> list[tuple[int, Readings]]:
        """Return the reading of what is unread, with steps that are complete now that only these ranks are awaited."""
        return self._rest(self._gather.settle(awaited))

    def overdue(self, now: float, patience_seconds: float) -> list[tuple[int, Readings]]:
        """Return the reading of what is unread, with steps that wait for a rank which does not come."""
        return self._rest(self._gather.overdue(now, patience_seconds))

    def _take(self, step: int, time_ns: int) -> Readings:
        """Take a step that is complete; return readings if they are due with it."""
        self.updates += 1
        self._unread.append(step)
        due = self.updates <= FIRST_STEPS or self.updates % self._read_every == 0  # whatever was read in between
        if not due and abs(time_ns - self._read_ns) < READ_WITHIN_NS:
            return {}
        self._read_ns = time_ns
        return self._read()

    def _rest(self, complete: list[int]) -> list[tuple[int, Readings]]:
        """Take steps for which nobody is awaited; read them and what else is unread, all at once."""
        self.updates += len(complete)
        self._unread += complete
        return [(self._unread[-1], self._read())] if self._unread else []

    def _read(self) -> Readings:
        """Read the window and the steps since the last reading."""
        readings = self._of_window()
        readings.update(self._of_steps())
        tokens = readings.get("codebook_tokens_per_step", {}).values()
        self.tokens_per_step = max(tokens, default=None)
        utilization = readings["codebook_utilization_ratio"]
        values = [utilization.get(name, math.nan) for name in self._names]
        self._utilization.append((self.updates, self._unread[-1], values))
        while self._utilization[0][0] <= self.updates - SLOPE_STEPS:
            self._utilization.popleft()
        if self._is_due(SLOPE_EVERY):
            _, steps, heights = zip(*self._utilization, strict=True)
            slopes = codebook.slope(np.array(steps, np.float64), np.array(heights).T)
            readings["codebook_utilization_slope"] = self._series(slopes)
        if self._is_due(COMPARE_EVERY):
            readings.update(self._between())
        self._unread.clear()
        self._read_updates = self.updates
        return readings

    def _is_due(self, every: int) -> bool:
        """Whether what is read once in so many steps, from the first, has its turn with this reading."""
        return (self.updates - 1) // every > (self._read_updates - 1) // every

    def _series(self, values: Any) -> dict[Labels, float]:
        return known(self._names, np.asarray(values, np.float64).tolist())

    def _of_window(self) -> Readings:
        counts, names = self.window.counts, self._names
        values = usage.judged(counts, self._of_size, self.window.repeats)
        readings = {name: known(names, value) for name, value in values.items()}
        if self._is_due(COMPARE_EVERY):
            effective = np.array(values["codebook_effective_samples"])
            described = usage.described(counts, self._sizes, effective)
            readings.update((name, self._series(value)) for name, value in described.items())
        readings.update((name, one(value)) for name, value in usage.across_layers(values).items())
        readings["codebook_size"] = self._announced
        assigned, ignored, invalid = self._by_code.sum(axis=1), *self._no_codes
        readings["codebook_assignments_total"] = self._series(assigned)
        readings["codebook_ignored_assignments_total"] = self._series(ignored)
        readings["codebook_invalid_assignments_total"] = self._series(invalid)
        readings["ema_updates"] = dict.fromkeys(names, float(self.updates))
        return readings

    def _of_steps(self) -> Readings:
        """Read the steps since the last reading by themselves: nothing of the window before them hides them."""
        counts = self.window.of_steps(self._unread)
        samples, zeros = counts.sum(axis=2), counts[:, :, 0]
        columns = samples.sum(axis=0), zeros.sum(axis=0), np.count_nonzero(samples, axis=0)
        of_layers = zip(self._names, *(column.tolist() for column in columns), strict=True)
        seen = [item for item in of_layers if item[1]]
        return {
            "codebook_tokens_per_step": {name: total / steps for name, total, _, steps in seen},
            "codebook_zero_index_ratio": {name: zero / total for name, total, zero, _ in seen},
        }

    def _between(self) -> Readings:
        """Compare the layers: by their counts often, by the codes that one vector got from each of them seldom."""
        alive = codebook.alive_codes(self.window.counts, self._sizes)
        readings: Readings = {"codebook_alive_codes_estimate": self._series(alive)}
        if len(self._names) > 1:
            correlation = between.usage_correlation(self.window.counts, self._sizes)
            readings["codebook_usage_correlation"] = self._matrix(correlation)
        if self._is_due(IDENTIFY_EVERY):
            sample = self._identifiers.compute()
            readings["identifier_unique_ratio"] = one(sample.unique_ratio)
            readings["identifier_collision_ratio"] = one(sample.collision_ratio)
            readings["identifier_effective_count"] = one(sample.effective_count)
            readings["identifier_samples"] = one(sample.samples)
        if len(self._names) > 1 and self._read_updates and self._is_due(RELATE_EVERY):
            information = between.mutual_information(self._identifiers.codes.T, self._rng)
            readings["codebook_mutual_information_nats"] = self._matrix(information)
        return readings

    def _matrix(self, values: NDArray[np.float64]) -> dict[Labels, float]:
        """Return the entries above the diagonal, labelled by both layers."""
        return {
            (*self._names[row], *self._names[column]): float(values[row, column])
            for row in range(len(self._names))
            for column in range(row + 1, len(self._names))
            if not np.isnan(values[row, column])
        }

    def usage(self) -> dict[str, NDArray[np.int64]]:
        """Return how often each code was used over the window, by layer."""
        return {name: self.window.counts[row, : self._sizes[row]].copy() for name, row in self._rows.items()}

    def since_start(self, layer: str) -> NDArray[np.int64]:
        """Return how often each code of a layer was assigned since the run began."""
        row = self._rows[layer]
        return self._by_code[row, : self._sizes[row]].copy()

    def rewind(self, step: int) -> None:
        """Training has gone back to a checkpoint: steps from ``step`` on will come again."""
        self.window.rewind(step)
        self._gather.rewind(step)
        self._parts.clear()
        self._unread = [taken for taken in self._unread if taken < step]
        self._utilization = deque(item for item in self._utilization if item[1] < step)

    def state(self) -> dict[str, Any]:
        """Return the window and everything beside it, numbers and arrays."""
        return {
            "window": self.window.state(),
            "gather": self._gather.state(),
            "by_code": self._by_code.copy(),
            "no_codes": self._no_codes.copy(),
            "parts": [[rank, *part] for rank, part in self._parts.items()],
            "utilization": [[updates, step, np.array(values)] for updates, step, values in self._utilization],
            "identifiers": self._identifiers.state(),
            "random": self._rng.bit_generator.state,
            "unread": list(self._unread),
            "read": [self._read_updates, self._read_ns],
            "updates": self.updates,
            "tokens_per_step": self.tokens_per_step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of the same layers returned."""
        self.window.restore(state["window"])
        self._gather.restore(state["gather"])
        self._by_code[:] = state["by_code"]
        self._no_codes[:] = state["no_codes"]
        self._parts = {rank: (step, came) for rank, step, came in state["parts"]}
        self._utilization.extend((updates, step, values.tolist()) for updates, step, values in state["utilization"])
        self._identifiers.restore(state["identifiers"])
        self._rng.bit_generator.state = state["random"]
        self._unread = list(state["unread"])
        self._read_updates, self._read_ns = state["read"]
        self.updates, self.tokens_per_step = state["updates"], state["tokens_per_step"]
