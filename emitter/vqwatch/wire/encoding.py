"""Messages to frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgpack

from .messages import (
    MAX_HEADER_BYTES,
    VERSION,
    Ack,
    Codebooks,
    Codes,
    Evaluation,
    Frame,
    Goodbye,
    Hello,
    Message,
    Origin,
    Reconstruction,
    Step,
    Stop,
    Tensor,
    Welcome,
    WireError,
)

# One packer for all: a new one allocates 256 KiB, which costs more than the packing, and so does memory that was not
# touched for a step. It never lets go of the GIL.
packer: Final = msgpack.Packer()


def encode(message: Message) -> list[Frame]:
    """Return the frames of a message: the header, then one buffer for each tensor.

    Buffers are passed through, not copied: the caller must not change them before they are sent.
    Raises :class:`WireError` when the header would be longer than :data:`MAX_HEADER_BYTES`.
    """
    header, tensors = unpacked(message)
    return [packed(header), *(tensor.data for tensor in tensors)]


Header: TypeAlias = dict[str, Any]

Unpacked: TypeAlias = tuple[Header, list[Tensor]]
"""A message's header before it is packed, and the tensors whose buffers follow it."""


def unpacked(message: Message) -> Unpacked:
    """Return the header of a message before it is packed, and the tensors whose buffers follow it."""
    header, tensors = _PACKERS[message.kind](message)
    header["v"] = VERSION
    header["kind"] = message.kind
    if tensors:
        header["tensors"] = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors]
    return header, [tensor for _, tensor in tensors]


def encode_step(
    origin: Origin,
    seq: int,
    first: int,
    time_ns: int | Sequence[int],
    step: int | Sequence[int],
    fields: Mapping[str, Any],
) -> list[Frame]:
    """Return the frames of a :class:`Step` with these of its optional fields, none of them empty or None.

    What :func:`encode` gives for a message, for those who send one at every step: six times as fast.

    They stand for several, numbered from ``seq`` on, where ``step`` and ``time_ns`` are lists of at most
    :data:`MAX_STEPS` entries: the losses, the gradient norm and the learning rates are then lists with one number for
    each step, and ``dropped``, ``every`` and ``overhead`` the last step's.
    :func:`~vqwatch.wire.decode_each` gives them back one by one.
    """
    header = {
        "v": VERSION,
        "kind": "step",
        "run": origin.run,
        "rank": origin.rank,
        "session": origin.session,
        "seq": seq,
        "time_ns": time_ns,
        "first": first,
        "step": step,
        **fields,
    }
    return [packed(header)]


def header_of_codes(first: Codes, steps: Sequence[int], times_ns: Sequence[int]) -> Header:
    """Return the header of one message that stands for the codes of several steps, ``first`` and some like it.

    They are numbered from its ``seq`` on. At most :data:`MAX_STEPS`; their buffers follow, step by step, in the order
    of :func:`encode`. :func:`~vqwatch.wire.decode_each` gives them back one by one.
    """
    header, tensors = _pack_codes(first)
    header["v"], header["kind"] = VERSION, "codes"
    header["tensors"] = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors]
    header["step"], header["time_ns"] = steps, times_ns
    return header


def packed(header: Mapping[str, Any]) -> bytes:
    """Return a message's header as its first frame. Raises :class:`WireError` where it cannot be one."""
    try:
        frame: bytes = packer.pack(header)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError("field", f"{header['kind']} holds what msgpack cannot pack: {error}") from error
    if len(frame) > MAX_HEADER_BYTES:
        raise WireError("header_size", f"{len(frame)} bytes, at most {MAX_HEADER_BYTES}")
    return frame


_Packed: TypeAlias = tuple[dict[str, Any], list[tuple[str, Tensor]]]


class _Numbered(Protocol):
    @property
    def origin(self) -> Origin: ...
    @property
    def seq(self) -> int: ...
    @property
    def time_ns(self) -> int: ...


def _start(message: _Numbered, **more: Any) -> dict[str, Any]:
    origin = message.origin
    return {
        "run": origin.run,
        "rank": origin.rank,
        "session": origin.session,
        "seq": message.seq,
        "time_ns": message.time_ns,
        **more,
    }


def _present(**values: Any) -> dict[str, Any]:
    """Leave out what is None or empty; the reader has the same defaults."""
    return {key: value for key, value in values.items() if value is not None and value != {} and value != ()}


def _pack_hello(m: Hello) -> _Packed:
    layers = [
        _present(
            name=layer.name, kind=layer.kind, size=layer.size, dim=layer.dim, family=layer.family, path=layer.path,
            decay=layer.decay, threshold=layer.threshold, threshold_ratio=layer.threshold_ratio,
        )
        for layer in m.layers
    ]  # fmt: skip
    return _start(
        m, first=m.first, world_size=m.world_size, layers=layers, version=m.version, host=m.host, pid=m.pid,
        info=dict(m.info),
    ), []  # fmt: skip


def _pack_step(m: Step) -> _Packed:
    return _start(
        m,
        first=m.first,
        step=m.step,
        **_present(
            losses=m.losses, gradient_norm=m.gradient_norm, gradient_norms=m.gradient_norms,
            learning_rates=m.learning_rates, input_energy=m.input_energy, residual_energy=m.residual_energy,
            update_ratio=m.update_ratio, dropped=m.dropped, every=m.every, overhead=m.overhead,
        ),
    ), []  # fmt: skip


def _named(**tensors: Tensor | None) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]


def _pack_codes(m: Codes) -> _Packed:
    header = _start(m)
    header["step"], header["layers"], header["part"], header["parts"] = m.step, m.layers, m.part, m.parts
    indices = ("indices", m.indices)
    return header, [indices] if m.mask is None else [("mask", m.mask), indices]


def _pack_codebooks(m: Codebooks) -> _Packed:
    return _start(m, step=m.step), [(f"{layer}/{name}", tensor) for (layer, name), tensor in m.tensors.items()]


def _pack_reconstruction(m: Reconstruction) -> _Packed:
    return _start(m, step=m.step), _named(mask=m.mask, original=m.original, reconstructed=m.reconstructed)


def _pack_evaluation(m: Evaluation) -> _Packed:
    header = _start(
        m, first=m.first, step=m.step, phase=m.phase, name=m.name, batch=m.batch, layers=m.layers,
        **_present(scalars=m.scalars),
    )  # fmt: skip
    return header, _named(mask=m.mask, codes=m.codes, original=m.original, reconstructed=m.reconstructed)


def _pack_goodbye(m: Goodbye) -> _Packed:
    return _start(m, first=m.first, step=m.step, reason=m.reason, **_present(sent=m.sent)), []


def _pack_welcome(m: Welcome) -> _Packed:
    return {"session": m.session, "daemon": m.daemon, "next": m.next}, []


def _pack_ack(m: Ack) -> _Packed:
    return {"session": m.session, "seq": m.seq}, []


def _pack_stop(m: Stop) -> _Packed:
    return {"session": m.session, "reason": m.reason}, []


_PACKERS: Final[Mapping[str, Callable[[Any], _Packed]]] = {
    "hello": _pack_hello,
    "step": _pack_step,
    "codes": _pack_codes,
    "codebooks": _pack_codebooks,
    "reconstruction": _pack_reconstruction,
    "evaluation": _pack_evaluation,
    "goodbye": _pack_goodbye,
    "welcome": _pack_welcome,
    "ack": _pack_ack,
    "stop": _pack_stop,
}
