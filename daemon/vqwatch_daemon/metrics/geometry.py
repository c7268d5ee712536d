"""The shape of one codebook in space: is it spread, full-dimensional, free of twins, of even norm and finite?

Codebooks are [K, D] or, with heads, [H, K, D]. Heads are judged apart (a code competes only within its head) and then
joined so that a sick head shows: the smallest variance, the largest norm spread; rank is the mean over heads and
duplicates are a share of all codes. A codebook with a non-finite value has no geometry: every reading is nan, and
:func:`~vqwatch_daemon.metrics.tensors.nonfinite_values` says why.

:func:`geometry` computes all of them at once and shares the Gram matrix; the other functions are its parts.
It does not know which codes are used: the caller says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vqwatch_daemon.metrics.tensors import Floats, Mask, as_books, as_sizes, nonfinite_values, row_products

NAN: Final = float("nan")

TWIN_COSINE: Final = 0.99
"""Two codes at a cosine above this are near duplicates."""

LARGEST_GRAM: Final = 2048
"""Side of the largest Gram matrix that is built (32 MiB in float64)."""

COMPARED_ROWS: Final = 2048
"""A codebook of more rows has this many of them, evenly spaced, compared with all the others."""

_BLOCK_ENTRIES: Final = 1 << 22  # similarities held at a time when the Gram matrix is not: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class Geometry:
    """The readings of one codebook; nan where there is none (see the functions of the same names)."""

    embedding_variance: float
    effective_rank: float
    near_duplicate_ratio: float
    norm_spread_ratio: float
    nonfinite_values: int


def geometry(codebook: Floats, active: Mask | None = None, *, rank: bool = True) -> Geometry:
    """Return every reading of a codebook [K, D] or [H, K, D]; ``active`` [K] or [H, K] chooses the rows of the rank.

    Without ``rank`` that reading is nan, and the rest costs a third: the eigenvalues are most of it, and they alone
    need a Gram matrix in float64.

    >>> geometry(np.eye(4)).effective_rank
    4.0
    """
    books = as_books(codebook)
    bad = nonfinite_values(books)
    if bad:
        return Geometry(NAN, NAN, NAN, NAN, bad)
    chosen = np.ones(books.shape[:2], bool) if active is None else _as_heads(active, books)
    variances, ranks, twins, spreads, norms = [], [], 0.0, [], []
    for book, rows_used in zip(books, chosen, strict=True):
        rows = book.astype(np.float64)
        small = len(rows) <= min(LARGEST_GRAM, rows.shape[1])
        gram = rows @ rows.T if small and rank else None
        norms.append(np.sqrt(gram.diagonal() if gram is not None else row_products(rows, rows)))
        variances.append(_variance(rows, gram))
        ranks.append(_rank(rows, rows_used, gram) if rank else NAN)
        if small and gram is None:
            gram = _rough_gram(book, rows, norms[-1])
        twins += _twins(rows, norms[-1], gram, TWIN_COSINE)
        spreads.append(_spread(norms[-1]))
    return Geometry(
        embedding_variance=min(variances),
        effective_rank=_mean(ranks),
        near_duplicate_ratio=twins / len(books),
        norm_spread_ratio=_largest(spreads),
        nonfinite_values=0,
    )


def embedding_variance(codebook: Floats) -> float:
    """Return the variance across codes, mean over dimensions; the smallest of the heads. Source: the proposal, 2.1.

    At least 0; 0 for one code; below 1e-6 the codes have become one point. Squared embedding units. In float64, so
    that it is exact to about 1e-15 of the mean square. nan if anything is non-finite.

    >>> embedding_variance(np.array([[0.0, 1.0], [2.0, 1.0]]))
    0.5
    """
    books = as_books(codebook)
    return NAN if nonfinite_values(books) else min(_variance(book.astype(np.float64), None) for book in books)


def effective_rank(codebook: Floats, active: Mask | None = None) -> float:
    """Return how many dimensions the active rows span: exp of the entropy of the singular values' shares.

    Roy and Vetterli, "The effective rank", 2007. Rows are taken as they are, not centred: 1 for codes on one line
    through the origin, at most min(active codes, D); mean over heads. The singular values are the roots of the
    eigenvalues of the smaller Gram matrix in float64, which is several times cheaper than the SVD; those below
    about 1e-7 of the largest are noise and count as 0. nan without a non-zero active row, with a non-finite value, or
    when both sides exceed :data:`LARGEST_GRAM`.

    >>> effective_rank(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    2.0
    """
    books = as_books(codebook)
    if nonfinite_values(books):
        return NAN
    chosen = np.ones(books.shape[:2], bool) if active is None else _as_heads(active, books)
    return _mean([_rank(book.astype(np.float64), use, None) for book, use in zip(books, chosen, strict=True)])


def near_duplicate_ratio(codebook: Floats, cosine: float = TWIN_COSINE) -> float:
    """Return the share of codes, 0 to 1, whose most similar other code of the same head has more than ``cosine``.

    Zero rows have no direction but are copies of each other, so two of them are duplicates. 0 for one code; nan if
    anything is non-finite. Beyond :data:`COMPARED_ROWS` codes it is the share among that many evenly spaced rows,
    each compared with all (standard error at most 0.011). Memory is bounded whatever K is.

    >>> near_duplicate_ratio(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    0.5
    """
    books = as_books(codebook)
    if nonfinite_values(books):
        return NAN
    return _mean([_twins(book, _norms(book), None, cosine) for book in books])


def norm_spread_ratio(codebook: Floats) -> float:
    """Return the largest norm over the median of the norms that are not 0, at least 1; the largest of the heads.

    Dead codes of an EMA codebook that is divided by a vanishing cluster size reach thousands. nan if every row is 0
    or anything is non-finite.

    >>> norm_spread_ratio(np.array([[1.0], [1.0], [5.0]]))
    5.0
    """
    books = as_books(codebook)
    if nonfinite_values(books):
        return NAN
    return _largest([_spread(_norms(book)) for book in books])


def active_rows(cluster_size: Floats, smallest: float = 0.01) -> Mask:
    """Return which codes are in use by their EMA cluster size [K] or [H, K] -> [H, K]; nan is not.

    >>> active_rows(np.array([0.0, 0.5]))
    array([[False,  True]])
    """
    return as_sizes(cluster_size) >= smallest


def _as_heads(active: Mask, books: Floats) -> Mask:
    return np.broadcast_to(active if active.ndim == 2 else active[None], books.shape[:2])


def _norms(book: Floats) -> NDArray[np.float64]:
    rows = book.astype(np.float64)
    return np.asarray(np.sqrt(row_products(rows, rows)))


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else NAN


def _largest(values: list[float]) -> float:
    return max((value for value in values if value == value), default=NAN)


def _rough_gram(book: Floats, rows: NDArray[np.float64], norms: NDArray[np.float64]) -> Floats:
    """Return the Gram matrix in the codebook's own precision, as far as its products stay in range: cosines need it."""
    lengths = norms[norms > 0]
    chosen = book if lengths.size and lengths.min() > 1e-15 and lengths.max() < 1e15 else rows
    return chosen @ chosen.T


def _variance(rows: NDArray[np.float64], gram: NDArray[np.float64] | None) -> float:
    if gram is not None:
        total, centre = gram.trace() / len(rows), gram.sum() / len(rows) ** 2
    else:
        flat, mean = rows.reshape(-1), rows.mean(axis=0)
        total, centre = np.dot(flat, flat) / len(rows), np.dot(mean, mean)
    return max(0.0, float((total - centre) / rows.shape[1]))


def _rank(rows: NDArray[np.float64], active: Mask, gram: NDArray[np.float64] | None) -> float:
    count, dim = int(np.count_nonzero(active)), rows.shape[1]
    if count == 0 or min(count, dim) > LARGEST_GRAM:
        return NAN
    if gram is not None:
        gram = gram if count == len(rows) else gram[np.ix_(active, active)]
    else:
        used = rows[active]
        gram = used @ used.T if count <= dim else used.T @ used
    energies = np.linalg.eigvalsh(gram)
    energies = energies[energies > energies[-1] * len(energies) * np.finfo(np.float64).eps]
    if energies.size == 0 or energies[-1] <= 0:
        return NAN
    shares = np.sqrt(energies)
    shares /= shares.sum()
    return float(np.exp(-np.dot(shares, np.log(shares))))


def _twins(rows: Floats, norms: Floats, gram: Floats | None, cosine: float) -> float:
    zero = norms == 0
    zeros = int(np.count_nonzero(zero))
    lengths = np.where(zero, 1, norms)
    if gram is not None:
        similar = gram > np.multiply.outer(lengths * cosine, lengths)
        np.fill_diagonal(similar, False)
        twins = np.count_nonzero(similar.any(axis=1))
        return (int(twins) + (zeros if zeros > 1 else 0)) / len(rows)
    return _sampled_twins((rows / lengths[:, None]).astype(np.float32), zero, cosine)


def _sampled_twins(directions: NDArray[np.float32], zero: Mask, cosine: float) -> float:
    count = len(directions)
    compared = np.unique(np.linspace(0, count - 1, min(count, COMPARED_ROWS)).astype(np.int64))
    twin = zero[compared] & (np.count_nonzero(zero) > 1)
    block = max(1, _BLOCK_ENTRIES // count)
    for start in range(0, len(compared), block):
        chosen = compared[start : start + block]
        similarity = directions[chosen] @ directions.T
        similarity[np.arange(len(chosen)), chosen] = -np.inf
        twin[start : start + block] |= similarity.max(axis=1) > cosine
    return float(np.count_nonzero(twin)) / len(compared)


def _spread(norms: Floats) -> float:
    lengths = norms[norms > 0]
    return float(lengths.max() / np.median(lengths)) if lengths.size else NAN
