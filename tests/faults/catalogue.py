"""Which alerts each fault must raise, within how many steps, and which others may come with them. Data.

``must`` holds what a person has to be told; ``also`` what follows from the fault and may fire beside it: what did so in
20 plays with each of three libraries, and why. Any other warning or critical is a false alarm. VqTemporalOrderLost is
younger than those plays: what it follows from was seen in one play of each fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORSE = frozenset({"VqLossSpike", "VqSnrDrop", "VqSpectralDistanceSpike"})
"""What comes out is suddenly worse; in most faults that is how people would notice."""


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
    # Fewer codes for everything: each measure of their use falls in its turn, and the deep layers get no remainder.
    Case(
        "collapse", 150, {"VqSnrDrop": 15, "VqEntropyDrop": 50, "VqCodebookCollapse": 135},
        WORSE | {
            "VqGradientSpike", "VqLossesRising", "VqPerplexityLow", "VqDeadCodes", "VqLayerUtilizationLow",
            "VqMeanUtilizationLow", "VqCodebookNormShrunk", "VqTemporalOrderLost",
        },
    ),
    # Codes die faster than the replacement brings them back, until hardly one is left.
    Case(
        "slow-death", 250, {"VqEntropyDrop": 190, "VqDeadCodes": 230},
        WORSE | {
            "VqGradientSpike", "VqLossesRising", "VqLayerUtilizationLow", "VqMeanUtilizationLow", "VqCodebookCollapse",
            "VqReplacementNoOp",
        },
    ),
    # One layer: its codes shrink, die, stand still and are not replaced; what it no longer removes is in the output.
    Case(
        "deep-layer-unused", 230, {"VqLayerUtilizationLow": 170, "VqLayerRemovesNoEnergy": 230},
        WORSE | {
            "VqLossesRising", "VqEntropyDrop", "VqPerplexityLow", "VqDeadCodes", "VqCodebookNormShrunk", "VqEmaStalled",
            "VqReplacementNoOp",
        },
    ),
    # The loss has no gradient any more, and all vectors get code 0: no entropy is left.
    Case(
        "nan-vector", 60, {"VqLossNotFinite": 2, "VqCodebookNotFinite": 10, "VqAllIndicesZero": 40},
        frozenset({"VqGradientNotFinite", "VqEntropyDrop"}),
    ),
    # Each code is the last batch's mean: the codebook leaps and loses codes, which are revived at other places.
    Case(
        "ema-decay", 120, {"VqRevivalRateHigh": 80},
        WORSE | {
            "VqLossesRising", "VqEmaMovementSpike", "VqEmaUnstable", "VqCodebookReinitialised", "VqRevivalChurn",
        },
        from_start=True,
    ),
    # The encoder leaves the codes of the deepest layers behind: in one of eight plays their entropy fell by a tenth.
    Case("ema-frozen", 230, {"VqEmaStalled": 220}, frozenset({"VqEntropyDrop"}), from_start=True),
    # What dies stays dead: the others' share, and their errors, grow.
    Case(
        "replacement-no-op", 230, {"VqReplacementNoOp": 230, "VqDeadCodes": 170},
        frozenset({"VqEntropyDrop", "VqLossesRising"}),
    ),
    # Codes are overwritten by vectors of the batch all the time: the codebook leaps, and no revived code lives long.
    Case(
        "churn", 120, {"VqReplacementThresholdTooHigh": 40, "VqRevivalChurn": 80},
        WORSE | {
            "VqLossesRising", "VqEntropyDrop", "VqEmaMovementSpike", "VqEmaUnstable", "VqCodebookReinitialised",
            "VqRevivalRateHigh", "VqRevivedCodesDie",
        },
        from_start=True,
    ),
    # The example's new codes are shorter than what they stand for; lucidrains' and moshi's are not. In one of 24
    # plays more than half of the codes leapt by their own norm in every layer.
    Case("re-init", 60, {"VqEmaMovementSpike": 10}, WORSE | {"VqCodebookNormShrunk", "VqCodebookReinitialised"}),
    Case("nan-loss", 40, {"VqLossNotFinite": 2, "VqGradientNotFinite": 30}),
    # Clipping takes nearly all of it away, but not the wrong direction: 3 of 60 plays.
    Case(
        "exploding-gradients", 60, {"VqGradientSpike": 10, "VqGradientNormHigh": 30}, frozenset({"VqSnrDrop"})
    ),
    # Encoder and decoder stand still while the codebooks go on moving.
    Case("vanishing-gradients", 60, {"VqGradientVanishing": 15, "VqGradientZero": 15}, WORSE),
    # The codebooks run after an encoder that leaps.
    Case(
        "lr-x100", 60, {"VqGradientSpike": 15, "VqLossSpike": 20, "VqSnrDrop": 20},
        WORSE | {"VqEmaMovementSpike"},
    ),
    # Codes leap to one point; vectors spread over equal codes by chance, and those who get none are revived.
    Case(
        "point-embeddings", 110, {"VqSnrDrop": 15, "VqEmbeddingCollapse": 105},
        WORSE | {
            "VqGradientSpike", "VqEntropyDrop", "VqEmaMovementSpike", "VqRevivalRateHigh", "VqTemporalOrderLost",
        },
    ),
    # Gradients by chance: moshi's codebooks run after the encoder that they drive (9 of 20 plays, at step 30).
    Case(
        "decoupled", 60, {"VqSnrDrop": 15, "VqLossSpike": 15},
        WORSE | {"VqGradientSpike", "VqTemporalConsistencyDrop", "VqTemporalOrderLost", "VqEmaMovementSpike"},
    ),
    Case("scrambled", 60, {"VqSnrDrop": 15, "VqLossSpike": 15}, WORSE | {"VqGradientSpike", "VqTemporalOrderLost"}),
    # Smoothed over time, frames no longer change where the input does.
    Case("low-pass", 60, {"VqSnrDrop": 15, "VqSpectralDistanceSpike": 15}, WORSE | {"VqTemporalOrderLost"}),
)  # fmt: skip

STALL = Case("stall", 0, {"VqTrainingStalled": 0}, timed=True)
KILL = Case("kill", 0, {"VqTrainerGone": 10}, frozenset({"VqTrainingStalled"}), timed=True)
SILENT_RANK = Case("silent-rank", 0, {"VqRankSilent": 160}, timed=True)
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
