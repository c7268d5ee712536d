"""Frames to messages: everything is checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgpack

from .fields import Fields
from .messages import (
    CODEBOOK_FIELDS,
    CODEBOOK_KINDS,
    EVALUATION_PHASES,
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    ITEM_BYTES,
    MAX_CODEBOOK_SIZE,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_INTEGER,
    MAX_LAYERS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_LENGTH,
    MAX_RANKS,
    MAX_STEPS,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    VERSION,
    Ack,
    Codebooks,
    Codes,
    Evaluation,
    Frame,
    Goodbye,
    Hello,
    Layer,
    Message,
    Origin,
    Reconstruction,
    Step,
    Stop,
    Tensor,
    Welcome,
    WireError,
)


def decode(frames: Sequence[Frame]) -> Message:
    """Return the message in these frames; tensors refer to the frames given, nothing is copied.

    Everything is checked before it is believed: sizes before decoding, then version, kind, fields, dtypes, and
    that each buffer is exactly as long as its shape says. Raises :class:`WireError`. Unknown fields are skipped.
    """
    return _read(_opened(frames), frames)


def decode_each(frames: Sequence[Frame]) -> Sequence[Message]:
    """Return the messages in these frames: several where steps are told together, else what :func:`decode` does.

    Raises :class:`WireError` as :func:`decode` does: all of the steps can be read, or none.
    """
    fields = _opened(frames)
    if type(fields.raw("step")) is list:
        kind = fields.text("kind")
        if kind == "step":
            return _read_steps(fields, frames[1:])
        if kind == "codes":
            return _read_codes_of_steps(fields, frames[1:])
    return (_read(fields, frames),)


def _opened(frames: Sequence[Frame]) -> Fields:
    if not 1 <= len(frames) <= MAX_TENSORS + 1:
        raise WireError("frames", f"{len(frames)} frames, 1 to {MAX_TENSORS + 1} allowed")
    fields = Fields(_header(frames[0]))
    version = fields.integer("v", 0, MAX_INTEGER)
    if version != VERSION:
        raise WireError("version", f"{version}, this reader speaks {VERSION}")
    return fields


def _read(fields: Fields, frames: Sequence[Frame]) -> Message:
    kind = fields.text("kind")
    reader = _READERS.get(kind)
    if reader is None:
        raise WireError("kind", f"{kind!r} is none of {', '.join(_READERS)}")
    return reader(fields, _tensors(fields, frames[1:]))


def _header(frame: Frame) -> Mapping[object, object]:
    size = memoryview(frame).nbytes
    if size > MAX_HEADER_BYTES:
        raise WireError("header_size", f"{size} bytes, at most {MAX_HEADER_BYTES}")
    try:
        header = msgpack.unpackb(frame, strict_map_key=True, raw=False)
    except Exception as error:  # msgpack raises a dozen unrelated types for malformed input
        raise WireError("header_format", f"not msgpack: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise WireError("header_format", f"a {type(header).__name__}, expected a map")
    return header


_Tensors: TypeAlias = dict[str, Tensor]


def _tensors(fields: Fields, buffers: Sequence[Frame]) -> _Tensors:
    listed = fields.raw("tensors")
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or len(listed) != len(buffers):
        raise WireError("frames", f"{len(buffers)} buffers for a tensor list of another length")
    tensors: _Tensors = {}
    total = 0
    for entry, buffer in zip(listed, buffers, strict=True):
        name, dtype, shape = _described(entry)
        count = math.prod(shape)
        size = memoryview(buffer).nbytes
        if count * ITEM_BYTES[dtype] != size:
            raise WireError("buffer_size", f"{name}: {size} bytes for {dtype} {list(shape)}")
        total += size
        if size > MAX_TENSOR_BYTES or total > MAX_MESSAGE_BYTES:
            raise WireError("limit", f"{name}: {size} bytes, {total} in the message")
        if name in tensors:
            raise WireError("field", f"tensor {name!r} twice")
        tensors[name] = Tensor(dtype, shape, buffer)
    return tensors


def _described(entry: object) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise WireError("field", "a tensor is described by [name, dtype, shape]")
    name, dtype, shape = entry
    name = Fields({"name": name}).text("name", longest=2 * MAX_NAME_LENGTH)
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise WireError("dtype", f"{name}: {dtype!r:.40} is none of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError("shape", f"{name}: at most {MAX_DIMENSIONS} dimensions")
    if not all(type(size) is int and 0 <= size <= MAX_TENSOR_BYTES for size in shape):
        raise WireError("shape", f"{name}: every dimension is an integer from 0 to {MAX_TENSOR_BYTES}")
    return name, dtype, tuple(shape)


def _tensor(
    tensors: _Tensors, name: str, dtypes: frozenset[str], lowest: int, highest: int, required: bool = True
) -> Tensor | None:
    tensor = tensors.get(name)
    if tensor is None:
        if required:
            raise WireError("field", f"tensor {name!r} is missing")
        return None
    if tensor.dtype not in dtypes:
        raise WireError("dtype", f"{name}: {tensor.dtype} is none of {', '.join(sorted(dtypes))}")
    if not lowest <= len(tensor.shape) <= highest:
        raise WireError("shape", f"{name}: {len(tensor.shape)} dimensions, {lowest} to {highest} allowed")
    return tensor


_MASK_DTYPES: Final = INTEGER_DTYPES | FLOAT_DTYPES | {"bool"}


def _origin(fields: Fields) -> Origin:
    run, rank, session = fields.raw("run"), fields.raw("rank"), fields.raw("session")
    if type(run) is str and type(rank) is int and type(session) is str:  # True would be found under 1
        return _known_origin(run, rank, session)
    return Origin(fields.text("run"), fields.integer("rank", 0, MAX_RANKS - 1), fields.text("session"))


@lru_cache(maxsize=4096)
def _known_origin(run: str, rank: int, session: str) -> Origin:
    """Check who speaks when it speaks first; the same few speak all the time."""
    fields = Fields({"run": run, "rank": rank, "session": session})
    return Origin(fields.text("run"), fields.integer("rank", 0, MAX_RANKS - 1), fields.text("session"))


def _numbered(fields: Fields) -> dict[str, Any]:
    return {
        "origin": _origin(fields),
        "seq": fields.integer("seq"),
        "time_ns": fields.integer("time_ns"),
    }


def _must_arrive(fields: Fields) -> dict[str, Any]:
    values = _numbered(fields)
    values["first"] = fields.integer("first")
    return values


def _read_hello(fields: Fields, _: _Tensors) -> Hello:
    layers = tuple(_read_layer(item) for item in fields.maps("layers", MAX_LAYERS))
    if len({layer.name for layer in layers}) != len(layers):
        raise WireError("field", "layers: two of one name")
    return Hello(
        **_must_arrive(fields),
        world_size=fields.integer("world_size", 1, MAX_RANKS),
        layers=layers,
        version=fields.text("version", "", empty=True),
        host=fields.text("host", "", longest=255, empty=True),
        pid=fields.integer("pid", default=0),
        info=fields.labels("info"),
    )


def _read_layer(fields: Fields) -> Layer:
    kind = fields.text("kind")
    if kind not in CODEBOOK_KINDS:
        raise WireError("field", f"codebook kind {kind!r} is none of {', '.join(sorted(CODEBOOK_KINDS))}")
    return Layer(
        name=fields.text("name"),
        kind=kind,
        size=fields.integer("size", 1, MAX_CODEBOOK_SIZE),
        dim=fields.integer("dim", 0, MAX_TENSOR_BYTES),
        family=fields.text("family", "", empty=True),
        path=fields.text("path", "", longest=512, empty=True),
        decay=fields.number("decay"),
        threshold=fields.number("threshold"),
        threshold_ratio=fields.number("threshold_ratio"),
    )


def _read_step(fields: Fields, _: _Tensors) -> Step:
    return Step(
        **_must_arrive(fields),
        step=fields.integer("step"),
        losses=fields.numbers("losses"),
        gradient_norm=fields.number("gradient_norm"),
        gradient_norms=fields.numbers("gradient_norms"),
        learning_rates=fields.numbers("learning_rates"),
        input_energy=fields.number("input_energy"),
        residual_energy=fields.numbers("residual_energy"),
        update_ratio=fields.number("update_ratio"),
        dropped=fields.counts("dropped"),
        every=fields.counts("every"),
        overhead=fields.number("overhead"),
    )


def _several(fields: Fields) -> tuple[Sequence[int], Sequence[int], int]:
    """Return the numbers and times of steps told together, and the number of the first one's message."""
    steps = fields.integers("step", MAX_STEPS)
    times = fields.integers("time_ns", MAX_STEPS)
    if len(times) != len(steps):
        raise WireError("field", f"time_ns: {len(times)} for {len(steps)} steps")
    return steps, times, fields.integer("seq", 0, MAX_INTEGER - MAX_STEPS)


def _read_steps(fields: Fields, buffers: Sequence[Frame]) -> list[Step]:
    if buffers:
        raise WireError("frames", f"{len(buffers)} buffers for steps, which have none")
    origin, first = _origin(fields), fields.integer("first")
    steps, times, seq = _several(fields)
    count = len(steps)
    losses = fields.columns("losses", count)
    rates = fields.columns("learning_rates", count)
    norms = fields.column("gradient_norm", count)
    told = [
        Step(
            origin,
            seq + index,
            first,
            times[index],
            steps[index],
            losses={name: values[index] for name, values in losses.items()},
            gradient_norm=None if norms is None else norms[index],
            learning_rates={name: values[index] for name, values in rates.items()},
        )
        for index in range(count)
    ]
    told[-1] = replace(
        told[-1], dropped=fields.counts("dropped"), every=fields.counts("every"), overhead=fields.number("overhead")
    )
    return told


def _read_codes(fields: Fields, tensors: _Tensors) -> Codes:
    seq, time_ns, step = (fields.integer(name) for name in ("seq", "time_ns", "step"))
    return _codes(fields, tensors, _origin(fields), seq, time_ns, step)


def _read_codes_of_steps(fields: Fields, buffers: Sequence[Frame]) -> list[Codes]:
    origin = _origin(fields)
    steps, times, seq = _several(fields)
    each, rest = divmod(len(buffers), len(steps))
    if rest:
        raise WireError("frames", f"{len(buffers)} buffers for {len(steps)} steps")
    if sum(memoryview(buffer).nbytes for buffer in buffers) > MAX_MESSAGE_BYTES:
        raise WireError("limit", f"the codes of {len(steps)} steps, {MAX_MESSAGE_BYTES} bytes allowed")
    parts = [_tensors(fields, buffers[index * each : (index + 1) * each]) for index in range(len(steps))]
    first = _codes(fields, parts[0], origin, seq, times[0], steps[0])
    return [first] + [
        Codes(
            origin, seq + index, times[index], steps[index], first.layers, parts[index]["indices"],
            parts[index].get("mask"), first.part, first.parts,
        )
        for index in range(1, len(steps))
    ]  # fmt: skip


def _codes(fields: Fields, tensors: _Tensors, origin: Origin, seq: int, time_ns: int, step: int) -> Codes:
    layers = fields.texts("layers", MAX_LAYERS)
    indices = _tensor(tensors, "indices", INTEGER_DTYPES, 1, MAX_DIMENSIONS)
    mask = _tensor(tensors, "mask", _MASK_DTYPES, 0, MAX_DIMENSIONS, required=False)
    assert indices is not None
    if not layers or indices.shape[0] != len(layers):
        raise WireError("shape", f"indices: {indices.shape[0]} rows for {len(layers)} layers")
    if mask is not None and mask.shape != indices.shape[1:]:
        raise WireError("shape", f"mask: {list(mask.shape)} beside indices {list(indices.shape)}")
    part = fields.integer("part", 0, MAX_LAYERS, default=0)
    parts = fields.integer("parts", 1, MAX_LAYERS, default=1)
    return Codes(origin, seq, time_ns, step, layers, indices, mask, part, parts)


def _read_codebooks(fields: Fields, tensors: _Tensors) -> Codebooks:
    named: dict[tuple[str, str], Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition("/")
        if not layer or len(layer) > MAX_NAME_LENGTH or part not in CODEBOOK_FIELDS:
            raise WireError("field", f"tensor {name!r:.80}: expected LAYER/ and one of {sorted(CODEBOOK_FIELDS)}")
        if tensor.dtype not in FLOAT_DTYPES and tensor.dtype not in INTEGER_DTYPES:
            raise WireError("dtype", f"{name}: {tensor.dtype} holds no numbers")
        _check_codebook_shape(name, part, tensor.shape)
        named[layer, part] = tensor
    if not named:
        raise WireError("field", "a codebook snapshot without tensors")
    for (layer, part), tensor in named.items():
        if part != "cluster_size" or (book := named.get((layer, "codebook"))) is None:
            continue
        if tensor.shape != book.shape[:-1]:
            raise WireError("shape", f"{layer}: cluster_size {list(tensor.shape)} beside codebook {list(book.shape)}")
    return Codebooks(**_numbered(fields), step=fields.integer("step"), tensors=named)


_CODEBOOK_DIMENSIONS: Final = {
    "codebook": (2, 3), "embedding_sum": (2, 3), "cluster_size": (1, 2), "sketch": (1, 1), "latents": (2, 2),
}  # fmt: skip


def _check_codebook_shape(name: str, part: str, shape: tuple[int, ...]) -> None:
    low, high = _CODEBOOK_DIMENSIONS[part]
    if not low <= len(shape) <= high:
        raise WireError("shape", f"{name}: {len(shape)} dimensions, {low} to {high} allowed")
    codes = shape[-2] if part in ("codebook", "embedding_sum") else shape[-1] if part == "cluster_size" else 1
    if not 1 <= codes <= MAX_CODEBOOK_SIZE:
        raise WireError("limit", f"{name}: {codes} codes, 1 to {MAX_CODEBOOK_SIZE} allowed")


def _check_pair(original: Tensor | None, reconstructed: Tensor | None, mask: Tensor | None) -> None:
    if original is not None and reconstructed is not None and original.shape != reconstructed.shape:
        raise WireError("shape", f"original {list(original.shape)} beside {list(reconstructed.shape)}")
    if original is not None and mask is not None and mask.shape != original.shape[: len(mask.shape)]:
        raise WireError("shape", f"mask {list(mask.shape)} beside original {list(original.shape)}")


def _read_reconstruction(fields: Fields, tensors: _Tensors) -> Reconstruction:
    original = _tensor(tensors, "original", FLOAT_DTYPES, 2, 4)
    reconstructed = _tensor(tensors, "reconstructed", FLOAT_DTYPES, 2, 4)
    mask = _tensor(tensors, "mask", _MASK_DTYPES, 1, 3, required=False)
    assert original is not None
    assert reconstructed is not None
    _check_pair(original, reconstructed, mask)
    return Reconstruction(
        **_numbered(fields), step=fields.integer("step"), original=original, reconstructed=reconstructed, mask=mask
    )


def _read_evaluation(fields: Fields, tensors: _Tensors) -> Evaluation:
    phase = fields.text("phase")
    if phase not in EVALUATION_PHASES:
        raise WireError("field", f"phase {phase!r} is none of {', '.join(sorted(EVALUATION_PHASES))}")
    layers = fields.texts("layers", MAX_LAYERS)
    original = _tensor(tensors, "original", FLOAT_DTYPES, 2, 4, required=False)
    reconstructed = _tensor(tensors, "reconstructed", FLOAT_DTYPES, 2, 4, required=False)
    mask = _tensor(tensors, "mask", _MASK_DTYPES, 1, 3, required=False)
    codes = _tensor(tensors, "codes", INTEGER_DTYPES, 1, MAX_DIMENSIONS, required=False)
    if (original is None) != (reconstructed is None):
        raise WireError("field", "original and reconstructed come together")
    _check_pair(original, reconstructed, mask)
    if codes is not None and codes.shape[0] != len(layers):
        raise WireError("shape", f"codes: {codes.shape[0]} rows for {len(layers)} layers")
    return Evaluation(
        **_must_arrive(fields),
        step=fields.integer("step"),
        phase=phase,
        name=fields.text("name", "validation"),
        batch=fields.integer("batch", default=0),
        layers=layers,
        original=original,
        reconstructed=reconstructed,
        mask=mask,
        codes=codes,
        scalars=fields.numbers("scalars"),
    )


def _read_goodbye(fields: Fields, _: _Tensors) -> Goodbye:
    return Goodbye(
        **_must_arrive(fields),
        step=fields.integer("step"),
        reason=fields.text("reason", "", longest=512, empty=True),
        sent=fields.counts("sent"),
    )


def _read_welcome(fields: Fields, _: _Tensors) -> Welcome:
    return Welcome(fields.text("session"), fields.text("daemon"), fields.integer("next"))


def _read_ack(fields: Fields, _: _Tensors) -> Ack:
    return Ack(fields.text("session"), fields.integer("seq"))


def _read_stop(fields: Fields, _: _Tensors) -> Stop:
    return Stop(fields.text("session"), fields.text("reason", "", longest=512, empty=True))


_READERS: Final[Mapping[str, Callable[[Fields, _Tensors], Message]]] = {
    "hello": _read_hello,
    "step": _read_step,
    "codes": _read_codes,
    "codebooks": _read_codebooks,
    "reconstruction": _read_reconstruction,
    "evaluation": _read_evaluation,
    "goodbye": _read_goodbye,
    "welcome": _read_welcome,
    "ack": _read_ack,
    "stop": _read_stop,
}
