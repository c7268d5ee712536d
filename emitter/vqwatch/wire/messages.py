"""What can be said: every message kind as a frozen dataclass, and the limits that both sides keep to.

Knows no socket, no clock, no torch and no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

VERSION: Final = 1

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_TENSORS: Final = 512
MAX_DIMENSIONS: Final = 8
MAX_TENSOR_BYTES: Final = 256 * 1024 * 1024
MAX_MESSAGE_BYTES: Final = 512 * 1024 * 1024
MAX_CODEBOOK_SIZE: Final = 1 << 20
MAX_LAYERS: Final = 256
MAX_RANKS: Final = 1 << 20
MAX_NAME_LENGTH: Final = 128
MAX_ENTRIES: Final = 1024
MAX_STEPS: Final = 16
MAX_INTEGER: Final = (1 << 63) - 1

ITEM_BYTES: Final[Mapping[str, int]] = {
    "bool": 1, "u8": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8,
}  # fmt: skip
INTEGER_DTYPES: Final = frozenset({"u8", "i8", "i16", "i32", "i64"})
FLOAT_DTYPES: Final = frozenset({"f16", "bf16", "f32", "f64"})

CODEBOOK_KINDS: Final = frozenset({"ema", "learned", "frozen", "implicit"})
CODEBOOK_FIELDS: Final = frozenset({"codebook", "cluster_size", "embedding_sum", "sketch", "latents"})
EVALUATION_PHASES: Final = frozenset({"begin", "batch", "end", "abandon"})

Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = Any  # bytes going out and bytes or memoryview coming in; anything with the buffer protocol


class WireError(ValueError):
    """A message that cannot be read; ``reason`` is one of :data:`REASONS`, fit for a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


REASONS: Final = (
    "frames", "header_size", "header_format", "version", "kind", "field", "dtype", "shape", "buffer_size", "limit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array on the wire: ``data`` holds ``prod(shape)`` little-endian items in C order.

    ``dtype`` is one of :data:`ITEM_BYTES`; ``data`` is any object with the buffer protocol.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Frame


@dataclass(frozen=True, slots=True)
class Origin:
    """Who speaks: the run's name, the rank in it, and the session (one emitter process's life)."""

    run: str
    rank: int
    session: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantizer of the residual stack, as ``hello`` announces it.

    ``kind`` is one of :data:`CODEBOOK_KINDS`. ``decay`` and the thresholds are None where the family has none:
    ``threshold`` is the EMA count below which a code is replaced, ``threshold_ratio`` the same as a share of
    uniform use.
    """

    name: str
    kind: str
    size: int
    dim: int
    family: str = ""
    path: str = ""
    decay: float | None = None
    threshold: float | None = None
    threshold_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """A session begins (or introduces itself to a restarted daemon). Must arrive."""

    origin: Origin
    seq: int
    first: int
    time_ns: int
    world_size: int
    layers: tuple[Layer, ...]
    version: str = ""
    host: str = ""
    pid: int = 0
    info: Mapping[str, str] = field(default_factory=dict)

    kind = "hello"


@dataclass(frozen=True, slots=True)
class Step:
    """The scalars of one training step on one rank. Must arrive.

    ``residual_energy`` maps a layer to the mean squared norm of what is left *after* it; ``input_energy`` is the
    mean squared norm of what enters the first layer. ``dropped`` maps "kind:reason" to a running count since the
    session began; ``every`` maps a kind to its present cadence in steps; ``overhead`` is the emitter's own host
    time over the step time, a ratio.
    """

    origin: Origin
    seq: int
    first: int
    time_ns: int
    step: int
    losses: Mapping[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    input_energy: float | None = None
    residual_energy: Mapping[str, float] = field(default_factory=dict)
    update_ratio: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    every: Mapping[str, int] = field(default_factory=dict)
    overhead: float | None = None

    kind = "step"


@dataclass(frozen=True, slots=True)
class Codes:
    """Which codes one step's vectors were assigned to. Best effort.

    ``indices`` has shape ``[len(layers), ...]``; negative entries are no codes (masked, dropped out). ``mask``, if
    given, has the shape of ``indices`` without its first axis; where it is false or 0 the entry is no code.
    Layers whose shapes differ travel as several messages of the same step: this one is ``part`` of ``parts``, from 0.
    """

    origin: Origin
    seq: int
    time_ns: int
    step: int
    layers: tuple[str, ...]
    indices: Tensor
    mask: Tensor | None = None
    part: int = 0
    parts: int = 1

    kind = "codes"


@dataclass(frozen=True, slots=True)
class Codebooks:
    """A snapshot of codebooks and EMA buffers after a step. Best effort.

    ``tensors`` maps ``(layer, field)`` to a tensor; fields are :data:`CODEBOOK_FIELDS`: ``codebook`` [K, D] or
    [H, K, D], ``cluster_size`` [K] or [H, K], ``embedding_sum`` like the codebook, ``sketch`` [S] (a linear sketch of
    the codebook, sent by every rank, so that ranks can be compared), ``latents`` [n, D] (a sample of the vectors that
    entered the layer).
    """

    origin: Origin
    seq: int
    time_ns: int
    step: int
    tensors: Mapping[tuple[str, str], Tensor]

    kind = "codebooks"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A sample of inputs and outputs, ``[B, T, D]`` (or ``[B, D]``) each, and the mask ``[B, T]``. Best effort."""

    origin: Origin
    seq: int
    time_ns: int
    step: int
    original: Tensor
    reconstructed: Tensor
    mask: Tensor | None = None

    kind = "reconstruction"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One part of a full validation pass: its begin, one batch of it, or its end. Must arrive.

    A pass is named by the step at which it ran and ``name``; ``batch`` counts from 0; at the end it holds how many
    batches were sent. ``layers`` names the first axis of ``codes``. ``scalars`` are values that the trainer computed
    itself.
    """

    origin: Origin
    seq: int
    first: int
    time_ns: int
    step: int
    phase: str
    name: str = "validation"
    batch: int = 0
    layers: tuple[str, ...] = ()
    original: Tensor | None = None
    reconstructed: Tensor | None = None
    mask: Tensor | None = None
    codes: Tensor | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)

    kind = "evaluation"


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A session ends on purpose. ``sent`` maps a best-effort kind to how many were sent in all. Must arrive."""

    origin: Origin
    seq: int
    first: int
    time_ns: int
    step: int
    reason: str
    sent: Mapping[str, int] = field(default_factory=dict)

    kind = "goodbye"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon (known by ``daemon``, new at each start) expects must-arrive message ``next`` of this session."""

    session: str
    daemon: str
    next: int

    kind = "welcome"


@dataclass(frozen=True, slots=True)
class Ack:
    """Every must-arrive message of this session up to and including ``seq`` is safe with the daemon."""

    session: str
    seq: int

    kind = "ack"


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon asks the training to end; ``reason`` names the alert."""

    session: str
    reason: str

    kind = "stop"


Message: TypeAlias = Hello | Step | Codes | Codebooks | Reconstruction | Evaluation | Goodbye | Welcome | Ack | Stop
MUST_ARRIVE: Final = frozenset({"hello", "step", "evaluation", "goodbye"})
BEST_EFFORT: Final = frozenset({"codes", "codebooks", "reconstruction"})
