"""Faults of codebooks: of their codes, their moving averages, and the replacement of dead codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from faults.site import Book, Site, changed

_FAR = 1e3
_HELD_COUNT = 1e-3


class _Exile:
    """Keeps rows of a codebook out of the search: nothing chooses them, no update reaches them, they stay as they are.

    During the forward pass they are far away; before and after it they are where they were, as codes are that died.
    """

    def __init__(self, book: Book) -> None:
        self.book = book
        self.rows = torch.zeros(len(book.counts), dtype=torch.bool)
        self._kept = book.codes.clone()

    def hide(self) -> None:
        """Before the forward pass."""
        self._kept = self.book.codes.clone()
        self._write(self._kept + _FAR)

    def show(self) -> None:
        """After the forward pass."""
        self._write(self._kept)

    def _write(self, codes: Tensor) -> None:
        rows = self.rows
        self.book.counts[rows] = self.book.counts[rows].clamp(min=_HELD_COUNT)
        self.book.put(rows, codes[rows])


@contextmanager
def _exiled(site: Site, book: Book, rows: Tensor | None = None, *, still: bool = True) -> Iterator[_Exile]:
    """Keep rows of a codebook out of the search; more may be added later. ``still``: no dead codes are replaced."""
    exile = _Exile(book)
    if rows is not None:
        exile.rows[rows] = True
    with ExitStack() as stack:
        if still:
            stack.enter_context(book.threshold(0.0))
        stack.enter_context(site.around_every_step(exile.hide, exile.show))
        yield exile


def _all_but(book: Book, survivor: int) -> Tensor:
    return torch.arange(len(book.counts)) != survivor


def _most_central(book: Book) -> int:
    """Return the code nearest to the codes' mean; never code 0, which is what a codebook of NaN chooses."""
    return 1 + int((book.codes[1:] - book.codes.mean(0)).square().sum(1).argmin())


@contextmanager
def collapse(site: Site) -> Iterator[None]:
    """Every layer uses one code for everything.

    Winner takes all: codes that nothing chooses never learn, so nothing ever chooses them. A learning rate too high
    or a warm-up too short starts it (the proposal, section 8), and without replacement of dead codes it stays
    (lucidrains #205: 40-90 % of the codes dead). Here the losers are kept out of the search, all at once.
    """
    with ExitStack() as stack:
        for book in site.books:
            stack.enter_context(_exiled(site, book, _all_but(book, _most_central(book))))
        yield


@contextmanager
def slow_death(site: Site) -> Iterator[None]:
    """Codes die one by one in every layer, two a step.

    The encoder's output drifts, and codes at its fringe are left behind one after the other; each step looks fine,
    the trend does not. Replacement is off, as it is by default in lucidrains' library. Here random codes leave the
    search.
    """
    with ExitStack() as stack:
        for book in site.books:
            exile = stack.enter_context(_exiled(site, book))
            order = iter(torch.randperm(len(book.counts)).tolist()[:-8])

            def two_more(exile: _Exile = exile, order: Iterator[int] = order) -> None:
                for row in islice(order, 2):
                    exile.rows[row] = True

            stack.enter_context(site.around_every_step(_nothing, two_more))
        yield


@contextmanager
def deep_layer_unused(site: Site) -> Iterator[None]:
    """The last two layers choose one code, the zero vector: bits are spent, nothing is removed.

    Deep residuals are small; a layer whose codes are larger than what is left for it does best by adding nothing.
    Every loss looks normal, because the layers before it do the work.
    """
    with ExitStack() as stack:
        for book in site.books[-2:]:
            winner = _most_central(book)
            stack.enter_context(_exiled(site, book, _all_but(book, winner)))

            def forget(book: Book = book, row: Tensor = torch.tensor([winner])) -> None:  # noqa: B008
                book.put(row, torch.zeros(1, book.codes.shape[1]))

            stack.enter_context(site.around_every_step(forget, forget))
        yield


@contextmanager
def nan_vector(site: Site) -> Iterator[None]:
    """One NaN in one batch, and the whole codebook is NaN for good.

    The EMA update sums ``one_hot.T @ vectors``, and 0 times NaN is NaN: one bad vector reaches every code (encodec,
    lucidrains, kakaobrain). The next batches are clean, every distance is NaN, and argmin of NaN is code 0. Skipping
    the optimizer's step does not help: the update happened in the forward pass. Only a checkpoint does.
    """

    def spoil(_module: object, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        handle.remove()
        features = inputs[0].clone()
        features[0, 0, 0] = torch.nan
        return features, inputs[1]

    with site.checkpoint_restored_after():
        handle = site.model.register_forward_pre_hook(spoil)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def ema_decay(site: Site) -> Iterator[None]:
    """The decay of the moving averages is set to what 1 - decay should be.

    Libraries disagree about which of the two "decay" or "momentum" names. The codebook then forgets everything but
    the last batch or two: codes jump, and those that one batch does not use are dead at once and replaced for ever.
    """
    with ExitStack() as stack:
        for book in site.books:
            stack.enter_context(changed(book.module, "decay", 1.0 - book.module.decay))
        yield


@contextmanager
def ema_frozen(site: Site) -> Iterator[None]:
    """The decay of the moving averages is 1: the codebook never learns again.

    A schedule that anneals the decay towards 1 gets there, or the module sits in eval mode inside a training model.
    The encoder moves on, the codes do not.
    """
    with ExitStack() as stack:
        for book in site.books:
            stack.enter_context(changed(book.module, "decay", 1.0))
            stack.enter_context(book.threshold(0.0))
        yield


@contextmanager
def replacement_no_op(site: Site) -> Iterator[None]:
    """Dead codes are replaced and the replacement is overwritten in the same pass, so they stay dead.

    encodec 0.1.1, audiocraft 1.3.0 and speechtokenizer 1.0.1 write the fresh codes before the EMA update, which then
    computes the old ones again from sums and counts that nobody reset (espnet PR #6284, WavTokenizer #89). Here half
    of the codes die, as they do there after the first step, and nothing brings them back.
    """
    with ExitStack() as stack:
        for book in site.books:
            half = torch.randperm(len(book.counts))[: len(book.counts) // 2]
            stack.enter_context(_exiled(site, book, half, still=False))
            stack.enter_context(book.replacing(_overwritten))
        yield


def _nothing() -> None:
    """Do nothing before a step."""


def _overwritten(*_inputs: Any, **_options: Any) -> None:
    """Replace nothing that the EMA update would leave in place."""


@contextmanager
def churn(site: Site) -> Iterator[None]:
    """The threshold for dead codes is above what uniform use gives: most of the codebook is replaced at every step.

    lucidrains' README value of 2 with 512 tokens a step and 1024 codes replaces 93 % of the codebook every step
    (WavTokenizer #82): by the pigeonhole principle most codes must fall below it. Codes never live long enough to
    learn; the utilization looks perfect.
    """
    with ExitStack() as stack:
        for book in site.books:
            stack.enter_context(book.threshold(1.5))
            if hasattr(book.module, "replaced_per_step"):
                stack.enter_context(changed(book.module, "replaced_per_step", len(book.counts)))
        yield


@contextmanager
def re_init(site: Site) -> Iterator[None]:
    """A resumed run initialises its codebooks a second time: all codes move at once.

    The flag "already initialised" is a Python attribute outside the state dict (LC-Rec, LETTER, GRID, EdoardoBotta), so
    that loading a checkpoint brings the codes and forgets the flag; the next batch overwrites what was learned.
    """
    for book in site.books:
        book.begin_again()
    yield


@contextmanager
def rank_drift(site: Site) -> Iterator[None]:
    """Ranks no longer share their codebook statistics and drift apart.

    encodec and audiocraft reduce nothing between ranks: rank 1's statistics are thrown away or, with no code expired,
    its codebook goes its own way. Every rank's losses look fine; the checkpoint of rank 0 does not fit rank 1's
    encoder. Nothing happens on a single rank.
    """
    with ExitStack() as stack:
        for book in site.books:
            if hasattr(book.module, "synchronized"):
                stack.enter_context(changed(book.module, "synchronized", False))
            elif hasattr(book.module, "all_reduce_fn"):
                stack.enter_context(changed(book.module, "all_reduce_fn", _overwritten))
            else:
                library = sys.modules[type(book.module).__module__]
                stack.enter_context(changed(library, "_average_tensors", _overwritten))
                stack.enter_context(changed(book.module, "_broadcast_buffers", _overwritten))
        yield
