"""Messages as an emitter would send them, short to write in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch.wire import (
    HEAD_BYTES,
    Bundled,
    Codebooks,
    Codes,
    Frame,
    Goodbye,
    Hello,
    Layer,
    Message,
    Origin,
    Reconstruction,
    Step,
    Tensor,
    Unpacked,
    bundle,
    encode,
    header_of_codes,
    packed,
)

DTYPES = {"bool": "bool", "uint8": "u8", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
          "float16": "f16", "float32": "f32", "float64": "f64"}  # fmt: skip


def tensor(values: Any, dtype: str | None = None) -> Tensor:
    """Return an array as the wire carries it."""
    array = np.ascontiguousarray(values, dtype=dtype)
    return Tensor(DTYPES[array.dtype.name], array.shape, array.tobytes())


def codes_of_steps(codes: Sequence[Codes]) -> Unpacked:
    """Return the message that stands for the codes of several steps."""
    header = header_of_codes(codes[0], [each.step for each in codes], [each.time_ns for each in codes])
    return header, [tensor for each in codes for tensor in (each.mask, each.indices) if tensor is not None]


def encoded(message: Unpacked) -> list[Frame]:
    """Return the frames of a message."""
    header, tensors = message
    return [packed(header), *(tensor.data for tensor in tensors)]


def bundled(messages: Sequence[Message | Sequence[Frame]], apart: int = 0, spare: int = 0) -> list[Frame]:
    """Return messages, or the frames of some, as one bundle whose buffers lie so many bytes apart.

    It is one frame where the index fits into ``spare`` bytes.
    """
    index: list[Bundled] = []
    data = bytearray()
    for message in messages:
        header, *buffers = encode(message) if isinstance(message, Message) else message
        places = []
        for buffer in buffers:
            places.append((len(data) + apart, memoryview(buffer).nbytes))
            data += bytes(apart) + bytes(buffer)
        index.append((bytes(header), places))
    memory = memoryview(bytearray(HEAD_BYTES) + data + bytes(spare))
    frames = bundle(index, memory, spare) if data else bundle(index)
    assert frames is not None
    return frames


class Memory:
    """Arrays one after the other, as a slot holds them, and behind them bytes that hold nothing."""

    def __init__(self, arrays: NDArray[Any], spare: int = 4096) -> None:
        self._size = arrays[0].nbytes
        self.spare = spare
        self.data = memoryview(bytearray(bytes(HEAD_BYTES) + arrays.tobytes() + bytes(spare)))
        places = range(HEAD_BYTES, HEAD_BYTES + arrays.nbytes, self._size)
        self.parts = [self.data[at : at + self._size] for at in places]

    def place(self, data: Frame) -> tuple[int, int]:
        return self._size * next(at for at, part in enumerate(self.parts) if part is data), self._size


def layers(count: int = 2, size: int = 8, **more: Any) -> tuple[Layer, ...]:
    """Return layers "0", "1", ... of one size."""
    return tuple(Layer(str(i), more.get("kind", "ema"), size, 4, decay=more.get("decay", 0.9)) for i in range(count))


class Trainer:
    """Numbers messages as one emitter session does."""

    def __init__(self, run: str = "r", rank: int = 0, session: str = "s", world_size: int = 1) -> None:
        self.origin = Origin(run, rank, session)
        self.world_size = world_size
        self.seq = 0
        self.sent = {"codes": 0, "codebooks": 0, "reconstruction": 0}

    def _next(self) -> dict[str, Any]:
        self.seq += 1
        return {"origin": self.origin, "seq": self.seq, "first": 1}

    def _best(self, kind: str) -> dict[str, Any]:
        self.sent[kind] += 1
        return {"origin": self.origin, "seq": self.sent[kind], "time_ns": 0}

    def hello(self, stack: tuple[Layer, ...] = ()) -> Hello:
        return Hello(**self._next(), time_ns=0, world_size=self.world_size, layers=stack)

    def step(self, step: int, time: float | None = None, **values: Any) -> Step:
        nanoseconds = int((step if time is None else time) * 1e9)
        return Step(**self._next(), time_ns=nanoseconds, step=step, **values)

    def codes(
        self, step: int, indices: NDArray[Any] | list[Any], names: tuple[str, ...] | None = None, **more: Any
    ) -> Codes:
        array = np.asarray(indices)
        return Codes(**self._best("codes"), step=step, layers=names or tuple(map(str, range(len(array)))),
                     indices=tensor(array), **more)  # fmt: skip

    def codebooks(self, step: int, **parts: Any) -> Codebooks:
        """Each part is a map from layer name to array."""
        tensors = {(name, part): tensor(value) for part, by in parts.items() for name, value in by.items()}
        return Codebooks(**self._best("codebooks"), step=step, tensors=tensors)

    def reconstruction(self, step: int, original: Any, reconstructed: Any, mask: Any = None) -> Reconstruction:
        return Reconstruction(
            **self._best("reconstruction"), step=step, original=tensor(original), reconstructed=tensor(reconstructed),
            mask=None if mask is None else tensor(mask),
        )  # fmt: skip

    def goodbye(self, step: int = 0) -> Goodbye:
        return Goodbye(**self._next(), time_ns=0, step=step, reason="close")
