"""What the fuzzers begin with: each kind of message, a bundle, the shipped rules, and the API's paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.messages import Trainer, bundled, codes_of_steps, encoded, layers, tensor

from vqwatch.wire import Ack, Evaluation, Message, Stop, Welcome, encode, encode_step
from vqwatch_rules import default_pack

FRAME_END = b"\xfe\xed"
"""Separates frames in an input: short, so that a mutation moves it."""


def join(frames: Sequence[Any]) -> bytes:
    """Return frames as one input."""
    return FRAME_END.join(bytes(frame) for frame in frames)


def split(data: bytes) -> list[bytes]:
    """Return the frames of an input."""
    return data.split(FRAME_END)


def messages() -> Iterator[Message]:
    """Yield one message of each kind."""
    trainer = Trainer()
    sample = np.ones((1, 2, 3), np.float32)
    yield trainer.hello(layers(2, 4))
    yield trainer.step(1, losses={"total": 1.0}, gradient_norm=float("nan"), learning_rates={"0": 1e-3})
    yield trainer.codes(1, [[1, 2], [3, 0]])
    yield trainer.codebooks(1, codebook={"0": np.ones((4, 2), np.float32)}, cluster_size={"0": np.ones(4, np.float32)})
    yield trainer.reconstruction(1, sample, sample, np.ones((1, 2), bool))
    yield Evaluation(trainer.origin, 3, 1, 0, 1, "batch", layers=("0",), codes=tensor([[1, 2]]), scalars={"a": 1.0})
    yield trainer.goodbye()
    yield Welcome("s", "d", 4)
    yield Ack("s", 3)
    yield Stop("s", "Collapse")


def wire() -> list[bytes]:
    """Return the seeds of the wire: each message, steps and codes told together, a bundle; more would slow it down."""
    every, trainer = list(messages()), Trainer()
    columns = {"losses": {"total": [1.0, 2.0]}, "gradient_norm": [1.0, 0.5], "learning_rates": {"0": [1e-3, 1e-3]}}
    steps = encode_step(trainer.origin, 2, 1, [10, 20], [1, 2], {**columns, "overhead": 0.01})
    codes = codes_of_steps([trainer.codes(step, [[1, 2], [3, 0]]) for step in (1, 2)])
    return [
        *(join(encode(message)) for message in every),
        join(steps),
        join(encoded(codes)),
        join(bundled([every[-1], every[2]], 1)),
        join(bundled([every[-1], every[2]], 1, 4096)),
    ]


def rules() -> list[bytes]:
    """Return the seeds of rule loading: the shipped rules, one in a file."""
    _, *single = re.split(r"(?m)^(?=  - alert:)", default_pack().read_text(encoding="utf-8"))
    return [f"version: 1\nrules:\n{rule}".encode() for rule in single]


def http() -> list[bytes]:
    """Return the seeds of the HTTP API: a path with a query, then headers, one a line."""
    paths = ("/metrics", "/-/ready", "/", "/api/runs", "/api/alerts", "/api/runs/rq-512", "/api/runs/rq-512/usage",
             "/api/runs/rq-512/series?metric=loss&points=10", "/api/events", "/runbooks/CodebookCollapse")  # fmt: skip
    return [f"{path}\naccept: text/html\nif-none-match: x".encode() for path in paths]


def write(directory: Path, seeds: Sequence[bytes]) -> None:
    """Write seeds into a corpus directory, beside what a fuzzer found before."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds):
        (directory / f"seed-{index}").write_bytes(seed)
