"""What the engine hands out: alerts, and their changes of state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

AlertState: TypeAlias = Literal["pending", "firing", "resolved"]
State: TypeAlias = Literal["inactive", "pending", "firing", "resolved"]
Presence: TypeAlias = Literal["live", "gone", "finished"]
"""Whether a run is still heard of: it is, it fell silent without a goodbye, or it said goodbye."""


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a run said of one quantizer layer: the kind of its codebook, size, dimensions, and its EMA's settings."""

    kind: str = "ema"
    size: int = 0
    dim: int = 0
    decay: float | None = None
    threshold: float | None = None
    threshold_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run said of itself."""

    world_size: int
    layers: Mapping[str, LayerFacts]


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that holds for one label set, at one severity, as it is at one moment.

    ``labels`` are its identity and never change: alertname, severity, run (unless it is about the daemon), layer and
    whatever else the reading has. ``value`` and ``annotations`` follow the readings. Times are Unix seconds.
    ``action`` is "stop" when the rule asks for the run to be stopped.
    """

    name: str
    severity: str
    run: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: AlertState
    value: float
    started_step: int
    active_at: float
    fired_at: float | None = None
    resolved_at: float | None = None
    action: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert changed its state at ``step``; ``alert`` is as it was right after.

    ``reason`` says why it ended where no reading ended it: its run is over, its layer or its rule is gone.
    """

    alert: Alert
    from_: State
    to: State
    step: int
    now: float
    reason: str = ""
