"""Codebooks and EMA buffers of one run: snapshots in, EMA and geometry readings out.

The lowest rank that sends whole codebooks speaks for all; the others send sketches, which are only compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import Codebooks, Layer
from vqwatch_daemon.arrays import as_floats
from vqwatch_daemon.metrics import ema, geometry
from vqwatch_daemon.metrics.revivals import (
    Revivals,
    Snapshot,
    Survival,
    Unreplaced,
    revivals,
    threshold_to_uniform_ratio,
)
from vqwatch_daemon.metrics.tensors import nonfinite_values
from vqwatch_daemon.readings import Readings
from vqwatch_daemon.sections.refused import Refused
from vqwatch_daemon.window import UsageWindow

SURVIVAL_EVIDENCE: Final = 10
"""Revived codes that must have been judged before their survival is a reading."""

SURVIVAL_MEMORY: Final = 200
"""Judged codes after which survival is counted anew, so that it follows the training."""

REINITIALISED_WITHIN_STEPS: Final = 100
"""Within a session, snapshots further apart than this do not tell a re-initialisation from ordinary learning."""

RANK_EVERY: Final = 4
"""Snapshots between two readings of a layer's effective rank, which costs more than all the rest: layers take turns,
and each keeps its reading meanwhile. The first snapshot reads all of them."""

SKETCH_STEPS: Final = 4
"""Steps whose sketches wait for the other ranks."""


@dataclass(slots=True)
class _Book:
    """One layer's memory: the latest snapshot, the one before it that waits for counts, and what became of codes."""

    layer: Layer
    row: int
    latest: Snapshot | None = None
    waiting: tuple[Snapshot, Snapshot] | None = None
    codebook: tuple[int, NDArray[Any]] | None = None
    survival: Survival | None = None
    unreplaced: Unreplaced | None = None
    revived: int = 0
    threshold: float | None = None
    resumed: bool = False
    snapshots: int = 0
    rank: float = math.nan
    latents: NDArray[Any] | None = field(default=None, repr=False)


class Snapshots:
    """The codebooks of a run over time."""

    def __init__(self, layers: tuple[Layer, ...], window: UsageWindow) -> None:
        self._books = {layer.name: _Book(layer, row) for row, layer in enumerate(layers)}
        self._window = window
        self._reference: int | None = None
        self._sketches: dict[int, dict[str, dict[int, NDArray[Any]]]] = {}
        self.nonfinite = 0

    def describe(self, layers: tuple[Layer, ...]) -> None:
        """Take over settings (decay, threshold) that a new session announces for the same layers."""
        for layer in layers:
            self._books[layer.name].layer = layer

    def add(self, message: Codebooks, tokens_per_step: float | None) -> Readings:
        """Take one rank's snapshot; return what it says by itself. Revivals follow from :meth:`settle`.

        Raises :class:`Refused` for a layer that ``hello`` did not announce, or one of another size than announced.
        """
        by_layer: dict[str, dict[str, NDArray[Any]]] = {}
        for (name, part), tensor in message.tensors.items():
            if name not in self._books:
                raise Refused("unknown_layer", f"snapshot of layer {name!r}; announced: {list(self._books)}")
            self._check_size(name, part, tensor.shape)
            by_layer.setdefault(name, {})[part] = as_floats(tensor)
        readings: Readings = {}
        rank = message.origin.rank
        self.nonfinite = 0
        for name, parts in by_layer.items():
            if "sketch" in parts:
                self._sketch(message.step, name, rank, parts["sketch"], readings)
            if "codebook" in parts or "cluster_size" in parts:
                if self._reference is None or rank < self._reference:
                    self._reference = rank
                if rank == self._reference:
                    self._layer(message.step, self._books[name], parts, tokens_per_step, readings)
        return readings

    def _check_size(self, name: str, part: str, shape: tuple[int, ...]) -> None:
        announced = self._books[name].layer.size
        size = {"codebook": shape[-2:-1], "embedding_sum": shape[-2:-1], "cluster_size": shape[-1:]}.get(part)
        if size and size[0] != announced:
            raise Refused("codebook_size_changed", f"layer {name!r}: {part} of {size[0]} codes, announced {announced}")

    def _sketch(self, step: int, name: str, rank: int, sketch: NDArray[Any], readings: Readings) -> None:
        of_step = self._sketches.setdefault(step, {})
        ranks = of_step.setdefault(name, {})
        ranks[rank] = sketch
        if len(ranks) > 1:
            _put(readings, "codebook_rank_divergence_ratio", name, ema.rank_divergence_ratio(ranks))
        while len(self._sketches) > SKETCH_STEPS:
            del self._sketches[min(self._sketches)]

    def _layer(
        self, step: int, book: _Book, parts: dict[str, NDArray[Any]], tokens: float | None, readings: Readings
    ) -> None:
        name = book.layer.name
        if "latents" in parts:
            book.latents = parts["latents"]
        bad = nonfinite_values(
            *(parts[part] for part in ("codebook", "cluster_size", "embedding_sum") if part in parts)
        )
        self.nonfinite += bad
        _put(readings, "codebook_nonfinite_values", name, bad)
        active: NDArray[np.bool_] | None = None
        if "cluster_size" in parts:
            active = geometry.active_rows(parts["cluster_size"])
            self._sizes(book, parts["cluster_size"], tokens, readings)
        if "codebook" in parts:
            self._geometry(step, book, parts["codebook"], active, readings)
        if "cluster_size" in parts:
            self._remember(step, book, parts, readings)

    def _sizes(self, book: _Book, sizes: NDArray[Any], tokens: float | None, readings: Readings) -> None:
        name, layer = book.layer.name, book.layer
        found = ema.cluster_sizes(sizes)
        _put(readings, "ema_cluster_size_mean", name, found.mean)
        _put(readings, "ema_cluster_size_min", name, found.smallest)
        _put(readings, "ema_cluster_size_std", name, found.std)
        _put(readings, "ema_tiny_clusters", name, found.tiny)
        _put(readings, "ema_perplexity", name, found.perplexity)
        threshold = layer.threshold
        if threshold is None and layer.threshold_ratio is not None:
            threshold = layer.threshold_ratio * found.mean
        book.threshold = threshold
        if threshold:
            _put(readings, "ema_expired_codes", name, ema.expired_codes(sizes, threshold))
        ratio = layer.threshold_ratio  # is what it is, while sizes are still on their way from where they began
        if layer.threshold and tokens:
            ratio = threshold_to_uniform_ratio(layer.threshold, tokens, layer.size)
        if ratio:
            _put(readings, "ema_threshold_to_uniform_ratio", name, ratio)

    def _geometry(
        self, step: int, book: _Book, codebook: NDArray[Any], active: NDArray[np.bool_] | None, readings: Readings
    ) -> None:
        name = book.layer.name
        due = book.snapshots == 0 or (book.snapshots + book.row) % RANK_EVERY == 0
        book.snapshots += 1
        found = geometry.geometry(codebook, active, rank=due)
        if due or found.nonfinite_values:
            book.rank = found.effective_rank
        _put(readings, "codebook_embedding_variance", name, found.embedding_variance)
        _put(readings, "codebook_effective_rank", name, book.rank)
        _put(readings, "codebook_near_duplicate_ratio", name, found.near_duplicate_ratio)
        _put(readings, "codebook_norm_spread_ratio", name, found.norm_spread_ratio)
        if book.latents is not None:
            fit = ema.mismatch(codebook, book.latents, active)
            _put(readings, "codebook_norm_to_latent_ratio", name, fit.norm_ratio)
            _put(readings, "codebook_latent_mean_distance_ratio", name, fit.mean_distance_ratio)
            _put(readings, "codebook_latent_variance_ratio", name, fit.variance_ratio)
        before, resumed = book.codebook, book.resumed
        book.codebook, book.resumed = (step, codebook), False
        if before is None or before[1].shape != codebook.shape:
            return
        # Between two sessions the step may go back: how far rows moved is still told, the pace is not.
        motion = ema.motion(before[1], codebook, max(1, step - before[0]))
        if resumed or step - before[0] <= REINITIALISED_WITHIN_STEPS:
            _put(readings, "codebook_reinitialised_ratio", name, motion.reinitialised_ratio)
        if step > before[0]:
            _put(readings, "ema_movement", name, motion.movement)
            _put(readings, "ema_relative_movement_ratio", name, motion.relative)

    def _remember(self, step: int, book: _Book, parts: dict[str, NDArray[Any]], readings: Readings) -> None:
        """Keep the snapshot; the pair with the one before waits until every count between them is known."""
        later = Snapshot(step, parts["cluster_size"], parts.get("codebook"))
        if book.waiting is not None:
            self._settle(book, readings)
        if book.latest is not None and step > book.latest.step:
            book.waiting = (book.latest, later)
        book.latest = later

    def settle(self, step: int) -> Readings:
        """Return what became known now that the codes of ``step`` are counted over all ranks: revivals."""
        readings: Readings = {}
        for book in self._books.values():
            if book.waiting is not None and book.waiting[1].step <= step:
                self._settle(book, readings)
        return readings

    def _settle(self, book: _Book, readings: Readings) -> None:
        assert book.waiting is not None
        earlier, later = book.waiting
        book.waiting = None
        name, layer = book.layer.name, book.layer
        between = self._window.between(earlier.step, later.step)
        counts = None if between is None else between[:, book.row, : layer.size]
        if counts is not None and np.ndim(later.cluster_size) == 2 and len(later.cluster_size) > 1:
            counts = None  # heads share the indices' axis: their counts cannot be told apart
        found = revivals(earlier, later, decay=layer.decay, counts=counts, threshold=book.threshold)
        if found is None:
            return
        book.revived += found.count
        _put(readings, "ema_revived_codes_total", name, book.revived)
        _put(readings, "ema_revivals_per_step", name, found.per_step)
        _put(readings, "ema_revival_churn_ratio", name, found.churn_ratio)
        _put(readings, "ema_revivals_exact", name, found.method != "estimate")
        self._follow(book, later, found, counts, readings)

    def _follow(
        self, book: _Book, later: Snapshot, found: Revivals, counts: NDArray[Any] | None, readings: Readings
    ) -> None:
        """Watch what becomes of replaced codes, and of those that should have been replaced."""
        name, size = book.layer.name, found.mask.size
        if book.survival is None or book.unreplaced is None:
            book.survival, book.unreplaced = Survival(size), Unreplaced(size)
        seen = self._window.counts[book.row, : book.layer.size] if counts is None else counts.sum(axis=0)
        used = np.asarray(seen > 0)
        if used.size == size:
            book.survival.update(later.step, found.mask, used)
            if book.survival.judged >= SURVIVAL_EVIDENCE:
                _put(readings, "ema_revival_survival_ratio", name, book.survival.ratio)
            if book.survival.judged >= SURVIVAL_MEMORY:
                book.survival.forget()
        if book.threshold:
            share = book.unreplaced.update(later.step, later.cluster_size, book.threshold, found.mask)
            _put(readings, "ema_unreplaced_ratio", name, share)

    def resume(self) -> None:
        """A new session begins: the next snapshot is compared with the last one before, however far apart."""
        for book in self._books.values():
            book.resumed = True

    def rewind(self) -> None:
        """Training has gone back to a checkpoint: pairs and ages do not reach across."""
        self._sketches.clear()
        for book in self._books.values():
            book.latest = book.waiting = book.survival = book.unreplaced = None

    def state(self) -> dict[str, Any]:
        """Return what is remembered of every layer and rank, numbers and arrays."""
        return {
            "reference": self._reference,
            "sketches": [
                [step, name, rank, sketch]
                for step, layers in self._sketches.items()
                for name, ranks in layers.items()
                for rank, sketch in ranks.items()
            ],
            "books": {name: _dump(book) for name, book in self._books.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` of the same layers returned."""
        self._reference = state["reference"]
        for step, name, rank, sketch in state["sketches"]:
            self._sketches.setdefault(step, {}).setdefault(name, {})[rank] = sketch
        for name, raw in state["books"].items():
            _load(self._books[name], raw)


def _dump(book: _Book) -> dict[str, Any]:
    return {
        "latest": book.latest and _dump_snapshot(book.latest),
        "waiting": book.waiting and [_dump_snapshot(snapshot) for snapshot in book.waiting],
        "codebook": book.codebook,
        "survival": book.survival and book.survival.state(),
        "unreplaced": None if book.unreplaced is None else book.unreplaced.state(),
        "revived": book.revived,
        "threshold": book.threshold,
        "latents": book.latents,
        "snapshots": book.snapshots,
        "rank": None if math.isnan(book.rank) else book.rank,
    }


def _load(book: _Book, raw: Mapping[str, Any]) -> None:
    book.latest = raw["latest"] and Snapshot(*raw["latest"])
    if raw["waiting"]:
        earlier, later = raw["waiting"]
        book.waiting = (Snapshot(*earlier), Snapshot(*later))
    if raw["codebook"]:
        step, codebook = raw["codebook"]
        book.codebook = (step, codebook)
    if raw["survival"]:
        book.survival = Survival(len(raw["survival"]["born"]))
        book.survival.restore(raw["survival"])
    if raw["unreplaced"] is not None:
        book.unreplaced = Unreplaced(len(raw["unreplaced"]))
        book.unreplaced.restore(raw["unreplaced"])
    book.revived, book.threshold, book.latents = raw["revived"], raw["threshold"], raw["latents"]
    book.snapshots = raw.get("snapshots", 0)  # a state of before there were turns has none
    book.rank = math.nan if raw.get("rank") is None else raw["rank"]


def _dump_snapshot(snapshot: Snapshot) -> list[Any]:
    return [snapshot.step, snapshot.cluster_size, snapshot.codebook]


def _put(readings: Readings, metric: str, layer: str, value: float) -> None:
    if value == value:  # unknown is absent
        readings.setdefault(metric, {})[layer,] = float(value)
