"""What two layers share: how alike their usage is, and what one code tells about another.

A residual stack whose layers predict each other wastes bits. No random state of its own: a generator is passed in.
"""

from itertools import combinations
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.counting import Counts, Floats, Indices, narrowed
from vqwatch_daemon.metrics.entropy import LOGS, Sizes, entropy_nats

Layer = NDArray[np.integer[Any]]

LARGEST_BASELINE = 0.5
"""Mutual information is unknown where chance alone explains more than this share of what could be shared."""


def usage_correlation(counts: Counts, sizes: Sizes) -> Floats:
    """Return the Pearson correlation [L, L] of the layers' usage counts [L, K], from -1 to 1.

    nan where a layer's counts are constant (unused, or perfectly even) and between layers of different sizes. As the
    proposal asks; know that code numbers of independently initialised layers have nothing to do with each other, so
    the informative value is one near 1: a shared or copied codebook, or the same collapse. For what layers tell about
    each other see :func:`mutual_information`.

    >>> usage_correlation(np.array([[3, 1, 0], [6, 2, 0], [2, 2, 2]]), 3)
    array([[ 1.,  1., nan],
           [ 1.,  1., nan],
           [nan, nan, nan]])
    """
    per_layer = np.broadcast_to(np.asarray(sizes, np.int64), len(counts))
    real = np.arange(counts.shape[-1]) < per_layer[:, np.newaxis]
    mean = counts.sum(axis=-1, keepdims=True) / np.maximum(per_layer, 1)[:, np.newaxis]
    centred = np.where(real, counts - mean, 0.0)
    length = np.sqrt((centred * centred).sum(axis=-1))
    length[length == 0] = np.nan  # exactly 0 for constant usage: its mean is a whole number
    unit = centred / length[:, np.newaxis]
    comparable = per_layer[:, np.newaxis] == per_layer
    return np.where(comparable, np.clip(unit @ unit.T, -1.0, 1.0), np.nan)


def mutual_information(indices: Indices, rng: np.random.Generator) -> Floats:
    """Return what two layers' codes of the same vector share, in nats [L, L], from 0 to the smaller entropy.

    ``indices`` [L, N] are the codes of N vectors, ideally drawn at random from a window (``IdentifierSample.codes``);
    pairs with a negative entry are left out. The diagonal is each layer's entropy.

    The plug-in estimate is biased up by about (K - 1)² / 2N: independent layers of 256 codes show 0.38 nats at N = 1e5.
    So the same is computed for shuffled pairs, which share nothing, and taken away, adjusted for chance so that layers
    that determine each other still read their whole entropy: I = (I_plug - I_0) / (1 - I_0 / H), H the smaller entropy
    (Vinh, Epps and Bailey, JMLR 11, 2010, with the expectation by one shuffle). Noise may make it a little negative.
    Simulated at K = 256, N = 16,384: 0.00 when independent; within 0.2 nats where codes are copied with probability 0
    to 1; a third low where layers share groups of 16 codes (1.9 for 2.8, a tenth low at 65,536).

    nan where I_0 > H / 2: with so few pairs chance explains more than half of all there could be (K = 256 needs about
    N = 5,000); and where a layer has only one code, which cannot tell anything.

    Cost: two histograms per pair of layers, or where K² does not fit 16 bits two sorts of N, so no larger table; 28
    pairs of 16,384 take some milliseconds, so call it every some hundred steps, not every step.

    >>> codes = np.random.default_rng(0).integers(0, 4, (2, 1000))
    >>> mutual_information(np.stack([codes[0], codes[0] ^ 1, codes[1]]), np.random.default_rng(1)).round(2) + 0.0
    array([[1.38, 1.38, 0.  ],
           [1.38, 1.38, 0.  ],
           [0.  , 0.  , 1.39]])
    """
    indices = narrowed(np.ascontiguousarray(indices))  # each layer is read L times: in one piece, and short
    order = rng.permutation(indices.shape[1])
    complete = bool((indices >= 0).all())
    shuffled = indices.take(order, axis=1) if complete else indices
    own = [_entropy(layer[layer >= 0]) for layer in indices]
    shared = np.diag(own)
    for one, other in combinations(range(len(indices)), 2):
        first, second = indices[one], indices[other]
        if complete:
            value = _adjusted(first, second, shuffled[other], (own[one], own[other]))
        else:
            paired = (first >= 0) & (second >= 0)
            first, second = first[paired], second[paired]
            entropies = (_entropy(first), _entropy(second))
            value = _adjusted(first, second, second[np.argsort(order[paired])], entropies)
        shared[one, other] = shared[other, one] = value
    return shared


def _adjusted(first: Layer, second: Layer, shuffled: Layer, entropies: tuple[float, float]) -> float:
    """Mutual information of two layers' codes, adjusted for chance; ``shuffled`` are the second's in another order."""
    most = min(entropies)
    if not most > 0.0:
        return float("nan")
    stride = int(second.max()) + 1
    labels = (int(first.max()) + 1) * stride
    wide = np.dtype(np.uint16 if labels <= 2**16 else np.int32 if labels < 2**31 else np.int64)
    left: Layer = first.astype(wide) * stride
    by_pairs = sum(entropies) - _entropy(left + second.astype(wide))
    by_chance = sum(entropies) - _entropy(left + shuffled.astype(wide))
    if by_chance > LARGEST_BASELINE * most:
        return float("nan")
    return (by_pairs - by_chance) / (1 - by_chance / most)


def _entropy(labels: Layer) -> float:
    """Return the entropy of labels in nats.

    Labels below 2^16 are counted in a table, where each looks up how often it occurs: ln n less the mean of the logs of
    that. Others are sorted, so that memory goes by their number and not by their size.
    """
    if labels.itemsize <= 2 and len(labels) < len(LOGS):
        at = labels.astype(np.intp)
        return log(len(at)) - float(LOGS.take(np.bincount(at).take(at)).sum()) / len(at) if len(at) else float("nan")
    ordered = np.sort(labels)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))
    return float(entropy_nats(np.diff(last, prepend=-1)))
