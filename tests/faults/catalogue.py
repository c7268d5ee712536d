"""Which alerts each fault must raise, within how many steps, and which others may come with them. Data.

``must`` holds what a person has to be told; ``also`` what follows from the fault and may fire beside it. Any other
warning or critical is a false alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

QUALITY = frozenset(
    {
        "VqGradientSpike",
        "VqLossSpike",
        "VqSnrDrop",
        "VqSpectralDistanceSpike",
        "VqTemporalConsistencyDrop",
        "VqTemporalOrderLost",
        "VqLossesRising",
    }
)
"""The loss and the reconstruction got worse."""

USE = frozenset(
    {
        "VqEntropyDrop",
        "VqPerplexityLow",
        "VqDeadCodes",
        "VqLayerUtilizationLow",
        "VqMeanUtilizationLow",
        "VqCodebookCollapse",
        "VqCodebookNormShrunk",
    }
)
"""Codes are no longer used, and the layers after them get what they left over."""

UNREST = frozenset({"VqEmaMovementSpike", "VqEmaUnstable", "VqCodebookReinitialised", "VqNearDuplicateCodes"})
"""Codes move, all at once or without end."""

REVIVAL = frozenset({"VqRevivalChurn", "VqRevivalRateHigh", "VqRevivedCodesDie", "VqReplacementThresholdTooHigh"})
"""Codes are replaced, or die of it."""


@dataclass(frozen=True)
class Case:
    """One fault: how many steps it lasts, what must fire within how many, what may.

    ``from_start`` is for a wrong setting, which is there when the run (resumed from its checkpoint) attaches. What is
    ``timed`` fires after seconds, not after steps.
    """

    fault: str
    lasts: int
    must: Mapping[str, int]
    also: frozenset[str] = frozenset()
    from_start: bool = False
    timed: bool = False


WARMING = Case("healthy", 700, {})
"""From the first step of a training on."""
HEALTHY = Case("none", 300, {})
"""What the faults go on from, going on without one: a resumed run."""
SMALL = Case("healthy-32", 800, {})
"""Batches of at most 32 codes."""

CASES = (
    Case("collapse", 150, {"VqSnrDrop": 15, "VqEntropyDrop": 50, "VqCodebookCollapse": 135}, QUALITY | USE),
    Case(
        "slow-death", 250, {"VqEntropyDrop": 190, "VqDeadCodes": 230},
        QUALITY | USE | {"VqReplacementNoOp"},
    ),
    Case(
        "deep-layer-unused", 230, {"VqLayerUtilizationLow": 170, "VqLayerRemovesNoEnergy": 230},
        QUALITY | USE | {"VqEmaStalled", "VqReplacementNoOp"},
    ),
    Case(
        "nan-vector", 60, {"VqLossNotFinite": 2, "VqCodebookNotFinite": 10, "VqAllIndicesZero": 40},
        QUALITY | USE | {"VqGradientNotFinite"},
    ),
    Case("ema-decay", 120, {"VqRevivalRateHigh": 80}, QUALITY | UNREST | REVIVAL, from_start=True),
    Case("ema-frozen", 230, {"VqEmaStalled": 220}, QUALITY, from_start=True),
    Case("replacement-no-op", 230, {"VqReplacementNoOp": 230, "VqDeadCodes": 170}, QUALITY | USE),
    Case(
        "churn", 120, {"VqReplacementThresholdTooHigh": 40, "VqRevivalChurn": 80},
        QUALITY | USE | UNREST | REVIVAL, from_start=True,
    ),
    Case("re-init", 60, {"VqEmaMovementSpike": 10}, QUALITY | USE | UNREST),
    Case("nan-loss", 40, {"VqLossNotFinite": 2, "VqGradientNotFinite": 30}),
    Case("exploding-gradients", 60, {"VqGradientSpike": 10, "VqGradientNormHigh": 30}, QUALITY),
    Case("vanishing-gradients", 60, {"VqGradientVanishing": 15, "VqGradientZero": 15}, QUALITY),
    Case("lr-x100", 60, {"VqGradientSpike": 15, "VqLossSpike": 20, "VqSnrDrop": 20}, QUALITY | USE | UNREST | REVIVAL),
    Case("point-embeddings", 110, {"VqSnrDrop": 15, "VqEmbeddingCollapse": 105}, QUALITY | USE | UNREST | REVIVAL),
    Case("decoupled", 60, {"VqSnrDrop": 15, "VqLossSpike": 15}, QUALITY | USE),
    Case("scrambled", 60, {"VqSnrDrop": 15, "VqLossSpike": 15}, QUALITY | USE),
    Case("low-pass", 60, {"VqSnrDrop": 15, "VqSpectralDistanceSpike": 15}, QUALITY | USE),
)  # fmt: skip

STALL = Case("stall", 0, {"VqTrainingStalled": 0}, timed=True)
KILL = Case("kill", 0, {"VqTrainerGone": 10}, frozenset({"VqTrainingStalled"}), timed=True)
SILENT_RANK = Case("silent-rank", 0, {"VqRankSilent": 160}, frozenset({"VqRankLagging"}), timed=True)
RANK_DRIFT = Case("rank-drift", 0, {"VqRanksDrift": 120})
"""Faults of processes, played by functions of their own."""

EVERY_CASE = {case.fault: case for case in (WARMING, HEALTHY, SMALL, *CASES, STALL, KILL, SILENT_RANK, RANK_DRIFT)}


@dataclass(frozen=True)
class Judgement:
    """How a fault was told: steps to each alert that must fire (None: it did not, or too late), and false alarms."""

    steps: Mapping[str, int | None]
    false: frozenset[str]

    @property
    def good(self) -> bool:
        """True when everything that must fire did in time, and nothing else but consequences."""
        return not self.false and None not in self.steps.values()


def judge(case: Case, fired: Mapping[str, int]) -> Judgement:
    """Judge what fired (alert name -> steps after the fault's begin) against the catalogue.

    >>> judge(Case("x", 10, {"VqA": 5}), {"VqA": 3, "VqB": 1})
    Judgement(steps={'VqA': 3}, false=frozenset({'VqB'}))
    """
    steps = {
        name: fired[name] if name in fired and fired[name] <= within else None for name, within in case.must.items()
    }
    return Judgement(steps, frozenset(fired) - frozenset(case.must) - case.also)
