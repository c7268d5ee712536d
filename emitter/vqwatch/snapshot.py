"""Codebooks as they were taken the last time: where each of their tensors is found, and how they were copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .capture import Item, item_of

if TYPE_CHECKING:
    from .codebooks import QuantizerLayer
    from .entry import Build

_Place = tuple["QuantizerLayer", tuple[str, ...], Any, Any, Any]
"""A layer, by which names one of its tensors is found, and the tensor's shape, dtype and device."""


class Snapshot:
    """How codebooks that looked like this were taken: it identifies the plan of their copies.

    ``places`` tells where their tensors are found again, None where they have to be read.
    """

    __slots__ = ("items", "looks", "outgoing", "places")

    def __init__(self, looks: list[Any], items: list[Item], outgoing: list[tuple[str, Build]]) -> None:
        self.looks = looks
        self.items = items
        self.outgoing = outgoing
        self.places: list[_Place] | None = None

    def sources(self, latents: Mapping[str, Any]) -> list[Any] | None:
        """Return the tensors as they are now, None where one of them is missing, looks otherwise, or has to be read."""
        if self.places is None:
            return None
        found: list[Any] = []
        for layer, names, shape, dtype, device in self.places:
            value = layer.at(names) if names else latents.get(layer.info.name)
            if value is None or value.requires_grad:
                return None
            if value.shape != shape or value.dtype != dtype or value.device != device:
                return None
            found.append(value)
        return found

    def remember(self, layers: Mapping[str, QuantizerLayer], latents: Mapping[str, Any]) -> list[Any] | None:
        """Note where each tensor lies, if all are buffers or latents: to find them again costs a fraction of reading.

        Return the tensors, as :meth:`sources` will.
        """
        places: list[_Place] = []
        found: list[Any] = []
        for name, field, _ in self.looks:
            layer = layers[name]
            names = () if field == "latents" else layer.place(field)
            value = None if names is None else layer.at(names) if names else latents.get(name)
            if names is None or value is None or value.requires_grad:
                return None
            places.append((layer, names, value.shape, value.dtype, value.device))
            found.append(value)
        self.places = places
        pairs = zip(self.items, found, strict=True)  # they may lack the axis of heads
        self.items = [item_of(item.key, item.kind, [value], item.shape, item.dtype) for item, value in pairs]
        return found
