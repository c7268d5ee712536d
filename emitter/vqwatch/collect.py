"""Gathers what a step has to tell: numbers, codes, codebooks, a reconstruction sample. No socket, no schedule.

What cannot be used is counted and left out; the rest goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from . import codes as code_reader
from . import schedule
from .arrays import Refused, fitting, take, wire_dtype
from .capture import Key
from .complaints import Complaints
from .entry import GRADIENT_KEY, CodebooksBuild, CodesBuild, Entry
from .gradients import Gradients, Sketcher
from .samples import Samples
from .scalars import ENERGY, LOSS, NORM, RATE, learning_rates
from .snapshot import Snapshot
from .wire import MAX_LAYERS, Origin

if TYPE_CHECKING:
    import torch

    from .codebooks import Quantizers

LATENT_ROWS: Final = 64
"""Vectors of a layer's input that travel with a codebook snapshot."""


class Collector:
    """Watches one model and its optimizers: takes what hooks tell in the forward pass, and what ``step`` is given."""

    def __init__(
        self,
        origin: Origin,
        quantizers: Quantizers | None,
        optimizers: Sequence[Any],
        complaints: Complaints,
        *,
        model: torch.nn.Module | None = None,
        reconstruction_bytes: int,
        ranks: int,
    ) -> None:
        self.wants_residuals = True
        self.wants_energies = self.wants_latents = True
        self.tap_seconds = 0.0
        self._origin = origin
        self._quantizers = quantizers
        self._layers = quantizers.layers if quantizers is not None else ()
        self.layer_names = tuple(layer.info.name for layer in self._layers)
        self.codebook_size = max((layer.info.size for layer in self._layers), default=1 << 20)
        self._optimizers = optimizers
        self._complaints = complaints
        self._samples = Samples(origin, reconstruction_bytes)
        self._gradients = Gradients(model) if model is not None else None
        self._sketcher = Sketcher() if ranks > 1 else None
        self._leads = origin.rank == 0
        self.tapped: list[tuple[str, torch.Tensor]] = []
        self.norms: dict[str, tuple[Any, int]] = {}
        self._latents: dict[str, Any] = {}
        self._snapshots: dict[tuple[tuple[str, ...], int], Snapshot] = {}
        self.wants_codes = True
        self._soon = False

    # --- the tap: called by hooks in the forward pass -----------------------------------------------------------------

    def codes(self, layer: str, indices: torch.Tensor) -> None:
        """Take a layer's codes of one forward pass."""
        if len(self.tapped) < 4096:  # forwards without step(): somebody trains on without us
            self.tapped.append((layer, indices))

    def residual(self, layer: str, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take the energy before the first layer and after each, as norms that stay on their device.

        Of several forward passes in one step the first one counts: what a layer leaves over is compared with what
        entered in the same pass.
        """
        started = time.perf_counter()
        try:
            self._residual(layer, before, after)
        except Exception as error:
            self._complaints.failed(schedule.ENERGIES, error)
        self.tap_seconds += time.perf_counter() - started

    def _residual(self, layer: str, before: torch.Tensor, after: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            count = math.prod(before.shape[:-1])
            if count == 0:
                return
            if self.wants_energies and layer not in self.norms:
                norm = torch.linalg.vector_norm
                if "" not in self.norms:
                    self.norms[""] = (norm(before, dtype=torch.float32), count)
                self.norms[layer] = (norm(after, dtype=torch.float32), count)
            if self.wants_latents and layer not in self._latents and before.shape[-1] > 1:
                vectors = before.detach().reshape(-1, before.shape[-1])
                self._latents[layer] = vectors[:: max(1, -(-count // LATENT_ROWS))].clone()

    def forget(self) -> None:
        """Forget what the hooks told: the step that they belong to is not observed."""
        self.tapped = []
        self.norms = {}
        self._latents = {}

    def set_aside(self) -> Callable[[], None]:
        """Let the hooks begin anew; return what goes back to what they told until now."""
        told = self.tapped, self.norms, self._latents
        self.forget()

        def go_back() -> None:
            self.tapped, self.norms, self._latents = told

        return go_back

    def expect(self, energies: bool, latents: bool, soon: bool, later: bool) -> None:
        """Say what the hooks of the next forward pass shall take, or that they will be wanted ``soon``.

        Where the next one wants nothing of them, ``later`` leaves them on or away as they are.
        """
        self.wants_energies = energies
        self.wants_latents = latents and self._leads
        self.wants_residuals = energies or self.wants_latents
        if self.wants_residuals:
            self._latents = {}  # nobody came for them
            self._soon = False
            self._listen()
        elif not later:
            self._soon |= soon  # until they were wanted: hooks that are taken away unheard count as lost
            self._listen()

    def want_codes(self, wanted: bool) -> None:
        """Say whether the hooks of the next forward pass shall take codes."""
        self.wants_codes = wanted
        self._listen()

    def _listen(self) -> None:
        """Have hooks in place if the next forward pass is to tell anything, and only then."""
        quantizers, wanted = self._quantizers, self.wants_codes or self.wants_residuals or self._soon
        if quantizers is not None and quantizers.listening != wanted:
            self._try("quantizers", quantizers.listen, wanted)

    # --- one step -----------------------------------------------------------------------------------------------------

    def collect(
        self, entry: Entry, due: frozenset[str], *, losses: Any, codes: Any, original: Any, reconstructed: Any,
        mask: Any, grad_norm: Any, lr: Any, kept: bool = False,
    ) -> None:  # fmt: skip
        """Fill the entry with what is due. ``kept`` tells of a step of which not everything was kept."""
        tapped, self.tapped = self.tapped, []
        self.want_codes(codes is None)
        rates = self._try("lr", learning_rates, self._optimizers, lr) or {}
        self._take_scalars(entry, losses, grad_norm, rates)
        checked_mask = self._try("mask", take, mask, "mask") if mask is not None else None
        mask_fits = False
        if schedule.CODES in due:
            mask_fits = (
                self._timed(entry, schedule.CODES, self._take_codes, entry, codes, tapped, checked_mask) or False
            )
        if schedule.RECONSTRUCTION in due and original is not None and reconstructed is not None:
            mask_fits = (
                self._timed(
                    entry, schedule.RECONSTRUCTION, self._samples.take, entry, original, reconstructed, checked_mask,
                )
                or mask_fits
            )  # fmt: skip
        elif not mask_fits and checked_mask is not None and original is not None:
            mask_fits = fitting(checked_mask, tuple(getattr(original, "shape", ()))[:-1]) is not None
        if checked_mask is not None and not mask_fits and schedule.CODES in due and not kept:  # compared with all
            detail = f"mask {list(checked_mask.shape)} fits neither the codes nor the original"
            self._complaints.refused("mask", Refused("shape", detail))
        if self._layers and schedule.CODEBOOKS in due:
            self._timed(entry, schedule.CODEBOOKS, self._take_codebooks, entry, ("codebook", "cluster_size"))
        elif schedule.CLUSTERS in due:
            self.take_clusters(entry)
        self._latents = {}
        if entry.plan is not None:  # this entry has more than the codebooks
            entry.items, entry.outgoing, entry.plan = [*entry.items], [*entry.outgoing], None
        if self._gradients is not None and schedule.GRADIENTS in due:
            self._timed(entry, schedule.GRADIENTS, self._take_gradients, entry)

    def _try(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Refused as error:
            self._complaints.refused(kind, error)
        except Exception as error:
            self._complaints.failed(kind, error)
        return None

    def _timed(self, entry: Entry, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self._try(kind, call, *arguments)
        entry.costs[kind] = entry.costs.get(kind, 0.0) + time.perf_counter() - started
        return result

    def _take_scalars(self, entry: Entry, losses: Any, grad_norm: Any, rates: Mapping[str, Any]) -> None:
        scalars = entry.scalars
        if losses is not None:
            for name, value in self._try("losses", _named, losses) or ():
                self._try("losses", scalars.add, LOSS, name, value)
        if grad_norm is not None:
            self._try("grad_norm", scalars.add, NORM, "", grad_norm)
        for name, value in rates.items():
            self._try("lr", scalars.add, RATE, name, value)
        if self.norms:
            for layer, (norm, count) in self.norms.items():
                self._try(schedule.ENERGIES, scalars.add, ENERGY, layer, norm)
                entry.rows[layer] = count
            self.norms = {}

    def _take_codes(self, entry: Entry, codes: Any, tapped: list[tuple[str, Any]], mask: Any) -> bool:
        attempt = partial(self._try, schedule.CODES)
        if codes is not None:
            parts = code_reader.read(codes, self.layer_names, self.codebook_size, attempt)
        else:
            turns = _turns(tapped)
            parts = [part for turn in turns for part in code_reader.by_shape(turn, self.codebook_size, attempt)]
        if len(parts) > MAX_LAYERS:
            detail = f"{len(parts)} forward passes in one step, the codes of {MAX_LAYERS} are sent"
            self._complaints.refused(schedule.CODES, Refused("limit", detail))
            del parts[MAX_LAYERS:]
        fitted = False
        for index, part in enumerate(parts):
            key = ("codes", str(index))
            entry.take(key, schedule.CODES, part.sources, part.shape, part.dtype)
            mask_key: Key | None = None
            shape = part.shape[1:]
            fitted_mask = fitting(mask, shape) if mask is not None else None
            if fitted_mask is not None:
                mask_key = (*key, "mask")
                entry.take(mask_key, schedule.CODES, [fitted_mask], shape, wire_dtype(mask))
                fitted = True
            place = index, len(parts)
            entry.outgoing.append(("codes", CodesBuild(self._origin, part.layers, place, key, mask_key)))
        return fitted

    def _take_codebooks(self, entry: Entry, fields: tuple[str, ...]) -> None:
        """Take the fields of every layer; ranks other than 0 send only sketches, by which they can be compared."""
        known = self._snapshots.get((fields, len(self._latents)))
        if known is not None and not entry.items:
            sources = known.sources(self._latents)
            if sources is not None:
                entry.items, entry.outgoing, entry.plan, entry.sources = known.items, known.outgoing, known, sources
                return
        found: list[tuple[str, str, Any]] = []
        for layer in self._layers:
            name = layer.info.name
            tensors: dict[str, Any] = self._try(schedule.CODEBOOKS, layer.read, fields) or {}
            book = tensors.get("codebook")
            if not self._leads:
                tensors = {}
            if self._sketcher is not None and book is not None:
                tensors["sketch"] = self._sketcher.sketch(book)
            if name in self._latents and book is not None:
                tensors["latents"] = self._latents[name]
            found.extend([(name, field, value) for field, value in tensors.items()])
        looks = [
            (name, field, None if value is None else (value.shape, value.dtype, value.device))
            for name, field, value in found
        ]
        if known is not None and known.places is None and known.looks == looks and not entry.items:
            entry.items, entry.outgoing, entry.plan = known.items, known.outgoing, known
            entry.sources = [value.detach() for _, _, value in found]
            return
        before = len(entry.items)
        keys: list[Key] = []
        for name, field, value in found:
            taken = self._try(schedule.CODEBOOKS, take, value, f"{field} of layer {name}")
            if taken is None:
                continue
            kind = schedule.CLUSTERS if field == "cluster_size" else schedule.CODEBOOKS
            keys.append(("codebooks", name, field))
            entry.take(keys[-1], kind, [taken], tuple(taken.shape), wire_dtype(taken))
        if keys:
            entry.outgoing.append(("codebooks", CodebooksBuild(self._origin, keys)))
        if before == 0 and len(keys) == len(found) and not any(item.on_host for item in entry.items):
            known = self._snapshots[fields, len(self._latents)] = Snapshot(looks, [*entry.items], [*entry.outgoing])
            sources = known.remember({layer.info.name: layer for layer in self._layers}, self._latents)
            if sources is not None:
                entry.items, entry.plan, entry.sources = known.items, known, sources

    def take_beside(self, entry: Entry, due: frozenset[str], original: Any, reconstructed: Any, mask: Any) -> None:
        """Take what is due of a step whose numbers and codes are kept: a sample, codebooks."""
        if schedule.RECONSTRUCTION in due and original is not None and reconstructed is not None:
            self._timed(entry, schedule.RECONSTRUCTION, self._take_sample, entry, original, reconstructed, mask)
        if self._layers and schedule.CODEBOOKS in due:
            self._timed(entry, schedule.CODEBOOKS, self._take_codebooks, entry, ("codebook", "cluster_size"))
        self._latents = {}

    def _take_sample(self, entry: Entry, original: Any, reconstructed: Any, mask: Any) -> None:
        if not self._samples.take_again(entry, original, reconstructed, mask):
            checked = self._try("mask", take, mask, "mask") if mask is not None else None
            self._samples.take(entry, original, reconstructed, checked)

    def gradient_parts(self, whole: bool) -> int:
        """Return in how many steps the gradient norms of all modules are taken."""
        if self._gradients is None:
            return 0
        return 1 if whole else self._gradients.parts

    def gradient_norms(self, part: int | None) -> tuple[torch.Tensor, list[str]] | None:
        """Return the norms of one part's gradients, or of all, and the module of each; None where there are none."""
        found = self._try(schedule.GRADIENTS, self._gradients.norms, part) if self._gradients is not None else None
        return None if found is None or not found[0].is_cuda else found

    def take_clusters(self, entry: Entry) -> None:
        """Take the cluster sizes as they are now."""
        if self._layers and self._leads:
            self._timed(entry, schedule.CLUSTERS, self._take_codebooks, entry, ("cluster_size",))

    def _take_gradients(self, entry: Entry) -> None:
        assert self._gradients is not None
        found = self._gradients.norms()
        if found is not None:
            self.add_gradients(entry, *found)

    def add_gradients(self, entry: Entry, norms: torch.Tensor, modules: list[str]) -> None:
        """Let a step tell these gradient norms, of these modules."""
        taken = take(norms, "gradient norms")
        entry.modules = modules
        entry.take(GRADIENT_KEY, schedule.GRADIENTS, [taken], tuple(taken.shape), "f32")


def _named(losses: Any) -> list[tuple[str, Any]]:
    return (
        [(str(name), value) for name, value in losses.items()] if isinstance(losses, Mapping) else [("total", losses)]
    )


def _turns(tapped: list[tuple[str, Any]]) -> list[list[tuple[str, Any]]]:
    """Split what the hooks told into forward passes: a layer that comes again begins the next one."""
    turns: list[list[tuple[str, Any]]] = []
    seen: set[str] = set()
    for layer, indices in tapped:
        if not turns or layer in seen:
            turns.append([])
            seen = set()
        seen.add(layer)
        turns[-1].append((layer, indices))
    return turns
