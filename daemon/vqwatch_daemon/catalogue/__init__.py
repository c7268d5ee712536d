"""Every metric once: name, kind, unit, labels, help, source and bands.

Exposition, the reference page, rule validation and the dashboards all read this table; a name that is not here cannot
be exported. Names come without the ``vqwatch_`` prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vqwatch_daemon.catalogue.codebook import CODEBOOK, EMA, LAYERS, PER_CODE
from vqwatch_daemon.catalogue.metric import PREFIX, Bands, Metric
from vqwatch_daemon.catalogue.sidecar import SIDECAR, SINKS
from vqwatch_daemon.catalogue.training import EVALUATION, RECONSTRUCTION, TRAINING

__all__ = ["CATALOGUE", "GROUPS", "PER_CODE", "PREFIX", "Bands", "Metric"]

CATALOGUE: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for group in (CODEBOOK, LAYERS, EMA, RECONSTRUCTION, TRAINING, EVALUATION, SIDECAR, SINKS)
    for metric in group
}

GROUPS: Final[Mapping[str, str]] = {
    "codebook": "Codebook use, per layer, over the window",
    "layers": "Across layers",
    "ema": "EMA and codebook, per layer",
    "reconstruction": "Reconstruction",
    "training": "Training",
    "evaluation": "Full evaluation",
    "sidecar": "The sidecar itself",
}
