"""The message vocabulary between a training process and the daemon: dataclasses <-> frames.

>>> frames = encode(Goodbye(Origin("demo", 0, "a1"), seq=7, first=7, time_ns=0, step=41, reason="close"))
>>> decode(frames).step
41

A message is ``[header][buffer]*``: a msgpack map, then one raw little-endian C-order buffer for each tensor that the
header names (``WIRE.md`` beside this package describes the format for other languages). Everything that cannot be read
is one :class:`WireError`.
"""

from .decoding import decode
from .encoding import encode
from .endpoint import default_endpoint, socket_directory
from .messages import (
    BEST_EFFORT,
    CODEBOOK_FIELDS,
    CODEBOOK_KINDS,
    EVALUATION_PHASES,
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    ITEM_BYTES,
    MAX_CODEBOOK_SIZE,
    MAX_DIMENSIONS,
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    MAX_INTEGER,
    MAX_LAYERS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_LENGTH,
    MAX_RANKS,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    MUST_ARRIVE,
    REASONS,
    VERSION,
    Ack,
    Buffer,
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

__all__ = [
    "BEST_EFFORT",
    "CODEBOOK_FIELDS",
    "CODEBOOK_KINDS",
    "EVALUATION_PHASES",
    "FLOAT_DTYPES",
    "INTEGER_DTYPES",
    "ITEM_BYTES",
    "MAX_CODEBOOK_SIZE",
    "MAX_DIMENSIONS",
    "MAX_ENTRIES",
    "MAX_HEADER_BYTES",
    "MAX_INTEGER",
    "MAX_LAYERS",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME_LENGTH",
    "MAX_RANKS",
    "MAX_TENSORS",
    "MAX_TENSOR_BYTES",
    "MUST_ARRIVE",
    "REASONS",
    "VERSION",
    "Ack",
    "Buffer",
    "Codebooks",
    "Codes",
    "Evaluation",
    "Frame",
    "Goodbye",
    "Hello",
    "Layer",
    "Message",
    "Origin",
    "Reconstruction",
    "Step",
    "Stop",
    "Tensor",
    "Welcome",
    "WireError",
    "decode",
    "default_endpoint",
    "encode",
    "socket_directory",
]
