"""One validation pass, sent batch by batch: its parts must arrive, so they go out in pieces that the backlog can hold.

Outside the training step a copy from the device may be waited for, and so may room in the backlog, for a bounded time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from . import codes as code_reader
from . import wire
from .arrays import Host, Refused, checked_name, gather, take, whole_shape, wire_dtype
from .scalars import OWN, Scalars
from .wire import FLOAT_DTYPES, ITEM_BYTES, MAX_INTEGER, Tensor

if TYPE_CHECKING:
    from .emitter import Emitter

PIECE_BYTES: Final = 4 << 20


class EvaluationPass:
    """A validation pass of one step; use it as a context manager and call :meth:`update` for every batch.

    Leaving the block with an exception abandons the pass: its readings are not made.
    """

    def __init__(self, emitter: Emitter, step: int, name: str, wait: float) -> None:
        self._emitter = emitter
        self._step = step
        self._name = name
        self._wait_left = wait
        self._sent = 0
        self._refused = False

    def __enter__(self) -> EvaluationPass:
        self._emitter._evaluate(self._begin)
        return self

    def _begin(self) -> None:
        try:
            self._refused = True
            self._name = checked_name(self._name)
            self._step = int(self._step)
            if not 0 <= self._step <= MAX_INTEGER:
                raise Refused("step", f"a validation of step {self._step}")
            self._refused = False
        except Refused as refused:
            self._emitter.complaints.refused("evaluation", refused)
            return
        self._send("begin", 0)

    def update(
        self,
        *,
        original: Any = None,
        reconstructed: Any = None,
        mask: Any = None,
        codes: Any = None,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        """Send one batch: arrays as for :meth:`Emitter.step`, samples in the first axis; ``scalars`` of your own.

        Waits for the copies from the device, and for room where the daemon is slow, at most ``wait`` seconds in the
        whole pass; a piece for which there is no room is counted and left out. Never raises.
        """
        self._emitter._evaluate(self._update, original, reconstructed, mask, codes, scalars)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._refused:
            self._emitter._evaluate(self._send, "end" if kind is None else "abandon", self._sent)

    def _update(self, original: Any, reconstructed: Any, mask: Any, codes: Any, scalars: Any) -> None:
        if self._refused:
            return
        fields: dict[str, Host] = self._try(_pair, original, reconstructed, mask) or {}
        parts: list[tuple[tuple[str, ...], Host]] = self._try(self._parts, codes) or []
        numbers = self._numbers(scalars)
        layers, first = parts[0] if parts else ((), None)
        batch = len(next(iter(fields.values())).array) if fields else None
        if first is not None and batch is not None and (first.array.ndim < 2 or first.array.shape[1] != batch):
            self._pieces(fields, (), None, numbers)
            fields, numbers = {}, {}
        self._pieces(fields, layers, first, numbers)
        for more_layers, more in parts[1:]:
            self._pieces({}, more_layers, more, {})

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call returns, or None where that part of the batch cannot be used, which is counted."""
        try:
            return call(*arguments)
        except Refused as refused:
            self._emitter.complaints.refused("evaluation", refused)
        except Exception as error:
            self._emitter.complaints.failed("evaluation", error)
        return None

    def _numbers(self, given: Any) -> dict[str, float]:
        found = Scalars()
        for name, value in self._try(_items, given) or ():
            self._try(found.add, OWN, name, value)
        found.resolve([float(value) for value in found.tensors])
        return found.group(OWN)

    def _parts(self, codes: Any) -> list[tuple[tuple[str, ...], Host]]:
        if codes is None:
            return []
        names, size = self._emitter._collector.layer_names, self._emitter._collector.codebook_size
        found = []
        for part in code_reader.read(codes, names, size, self._try):
            tensor = gather([_on_host(source) for source in part.sources], part.shape, part.dtype, owned=True)
            found.append((part.layers, _as_host(tensor)))
        return found

    def _pieces(self, fields: Mapping[str, Host], layers: Sequence[str], codes: Host | None, numbers: Any) -> None:
        """Send what belongs together in pieces of some samples each."""
        samples = len(next(iter(fields.values())).array) if fields else 0
        if codes is not None and not fields:
            samples = codes.array.shape[1] if codes.array.ndim > 1 else 1
        if not samples:
            if numbers:
                self._send("batch", self._sent, scalars=numbers)
            return
        total = sum(host.array.nbytes for host in fields.values()) + (codes.array.nbytes if codes is not None else 0)
        each = max(1, min(samples, samples * PIECE_BYTES // max(1, total)))
        for start in range(0, samples, each):
            end = start + each
            tensors = {name: _owned(host, (slice(start, end),)) for name, host in fields.items()}
            if codes is not None:
                chosen = (slice(None), slice(start, end)) if codes.array.ndim > 1 else (slice(None),)
                tensors["codes"] = _owned(codes, chosen)
            self._send("batch", self._sent, layers if codes is not None else (), tensors, numbers)
            numbers = {}

    def _send(
        self,
        phase: str,
        batch: int,
        layers: Sequence[str] = (),
        tensors: Mapping[str, Tensor] | None = None,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        emitter, there, time_ns = self._emitter, dict(tensors or {}), time.time_ns()
        size = 1024 + sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in there.values())
        if not self._has_room(size):
            emitter.complaints.say("evaluation:backlog", "a validation batch was left out: the daemon does not keep up")
            return

        def make(seq: int, first: int) -> list[wire.Frame]:
            return wire.encode(
                wire.Evaluation(
                    emitter._origin, seq, first, time_ns, self._step, phase, self._name, batch, tuple(layers),
                    there.get("original"), there.get("reconstructed"), there.get("mask"), there.get("codes"),
                    dict(scalars or {}),
                )
            )  # fmt: skip

        emitter._link.must_arrive("evaluation", make, time.monotonic())
        if phase == "batch":
            self._sent += 1

    def _has_room(self, size: int) -> bool:
        """Return whether a piece fits, after waiting for it as long as the pass still may."""
        link = self._emitter._link
        clock: Callable[[], float] = time.monotonic
        started = clock()
        fits = link.wait_for_room(size, clock, started + self._wait_left)
        self._wait_left -= min(self._wait_left, clock() - started)
        return fits


def _items(given: Any) -> list[tuple[Any, Any]]:
    return [] if given is None else list(given.items())


def _pair(original: Any, reconstructed: Any, mask: Any) -> dict[str, Host]:
    if original is None or reconstructed is None:
        return {}
    pair = [_on_host(take(original, "original")), _on_host(take(reconstructed, "reconstructed"))]
    shape = pair[0].shape
    if whole_shape(original, pair[0])[-1:] != shape[-1:]:
        raise Refused("sharded", f"this rank has {shape[-1]} of the features, expected all")
    if shape != pair[1].shape or not 2 <= len(shape) <= 4:
        raise Refused("shape", f"original {list(shape)} beside reconstructed {list(pair[1].shape)}")
    if not FLOAT_DTYPES.issuperset(host.dtype for host in pair):
        raise Refused("dtype", f"original is {pair[0].dtype} and reconstructed {pair[1].dtype}, expected floats")
    fields = {"original": pair[0], "reconstructed": pair[1]}
    if mask is not None:
        valid = _on_host(take(mask, "mask"))
        if [size for size in valid.shape if size != 1] != [size for size in shape[:-1] if size != 1]:
            raise Refused("shape", f"mask {list(valid.shape)} does not fit the original {list(shape)}")
        fields["mask"] = Host(valid.array.reshape(shape[:-1]), valid.dtype)
    return fields


def _on_host(value: Any) -> Host:
    """Return the array in host memory; from a device it is copied, and waited for."""
    if isinstance(value, Host):
        return value
    taken = take(value.cpu(), "batch")
    assert isinstance(taken, Host)
    return taken


def _as_host(tensor: Tensor) -> Host:
    import numpy as np

    from .arrays import numpy_name

    return Host(np.frombuffer(tensor.data, numpy_name(tensor.dtype)).reshape(tensor.shape), tensor.dtype)


def _owned(host: Host, chosen: tuple[slice, ...]) -> Tensor:
    part = Host(host.array[chosen], host.dtype)
    return gather([part], part.shape, wire_dtype(part), owned=True)
