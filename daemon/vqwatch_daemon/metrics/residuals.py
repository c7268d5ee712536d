"""How much of the input each quantizer of a residual stack takes away.

Energies are mean squared norms: of what enters the first layer, and of what is left after each. No tensors here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vqwatch_daemon.metrics.reconstruction import HIGHEST_SNR

NAN: Final = float("nan")


@dataclass(frozen=True, slots=True)
class Residuals:
    """Per layer, in the order of the stack: energy left over input energy, and gain in dB; nan where not known."""

    energy_ratio: tuple[float, ...]
    gain_db: tuple[float, ...]


def residuals(input_energy: float, energies: Sequence[float]) -> Residuals:
    """Return R_l = E||r_l||^2 / E||r_0||^2 and the gain 10 log10(R_(l-1) / R_l) of each layer l.

    ``energies`` has one entry per layer, of what is left after it; nan for a layer that was not measured (dropped out),
    which makes its own two readings and the next layer's gain unknown. Ratios are at least 0 and should fall from
    layer to layer; a gain near 0 dB is a useless layer, one below 0 adds error. The gain is held within +-138.5 dB, so
    that a perfect layer has a number; a layer that has nothing left to quantize and leaves it so has none. All nan
    without input energy (0, negative or not finite).

    >>> residuals(8.0, [4.0, 4.0]).energy_ratio
    (0.5, 0.5)
    >>> [round(gain, 3) for gain in residuals(8.0, [4.0, 4.0]).gain_db]
    [3.01, 0.0]
    """
    if not (math.isfinite(input_energy) and input_energy > 0):
        return Residuals((NAN,) * len(energies), (NAN,) * len(energies))
    ratios, gains, before = [], [], input_energy
    for energy in energies:
        after = energy if 0 <= energy < math.inf else NAN
        ratios.append(after / input_energy)
        gains.append(_gain(before, after))
        before = after
    return Residuals(tuple(ratios), tuple(gains))


def _gain(before: float, after: float) -> float:
    """Return the gain in dB; the logarithms are subtracted, as the quotient may leave the range of floats."""
    if before > 0 and after > 0:
        return max(-HIGHEST_SNR, min(HIGHEST_SNR, 10 * (math.log10(before) - math.log10(after))))
    if math.isnan(before) or math.isnan(after) or before == after:
        return NAN
    return HIGHEST_SNR if after == 0 else -HIGHEST_SNR
