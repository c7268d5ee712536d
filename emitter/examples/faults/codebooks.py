"""Faults of codebooks: of their codes, their moving averages, and the replacement of dead codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from faults.site import Book, Site, changed

_FAR = 30.0
_HELD_COUNT = 1e-3


class _Exile:
    """Keeps rows of a codebook out of the data's reach, where nothing chooses them and no update pulls them back."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._far = book.codes.clone() * _FAR
        self.rows = torch.zeros(len(book.counts), dtype=torch.bool)

    def hold(self) -> None:
        book, rows = self._book, self.rows
        book.counts[rows] = book.counts[rows].clamp(min=_HELD_COUNT)
        book.put(rows, self._far[rows])


def _most_central(book: Book) -> int:
    return int((book.codes - book.codes.mean(0)).square().sum(1).argmin())


@contextmanager
def collapse(site: Site) -> Iterator[None]:
    """Every layer uses one code for everything.

    Winner takes all: codes that nothing chooses get no updates and stay where nothing reaches them. It happens when
    codes start at another scale than the encoder's output, or the output moves faster than the codes can follow
    (learning rate too high, warm-up too short), and nothing replaces dead codes (lucidrains #205: 40-90 % of the codes
    dead without replacement). Losses keep falling a little, so that nobody looks.
    """
    with ExitStack() as stack:
        for book in site.books:
            exile = _Exile(book)
            exile.rows.fill_(True)
            exile.rows[_most_central(book)] = False
            stack.enter_context(book.threshold(0.0))
            stack.enter_context(site.before_every_step(exile.hold))
        yield


@contextmanager
def slow_death(site: Site) -> Iterator[None]:
    """Codes die one by one in every layer, two a step.

    The encoder's output drifts, and codes at its fringe are left behind one after the other; each step looks fine,
    the trend does not. Replacement is off, as it is by default in lucidrains' library.
    """
    with ExitStack() as stack:
        for book in site.books:
            exile = _Exile(book)
            order = iter(torch.randperm(len(book.counts)).tolist()[:-8])

            def one_more_step(exile: _Exile = exile, order: Iterator[int] = order) -> None:
                for row in (next(order, None), next(order, None)):
                    if row is not None:
                        exile.rows[row] = True
                exile.hold()

            stack.enter_context(book.threshold(0.0))
            stack.enter_context(site.before_every_step(one_more_step))
        yield


@contextmanager
def deep_layer_unused(site: Site) -> Iterator[None]:
    """The last two layers choose one code, the zero vector: bits are spent, nothing is removed.

    Deep residuals are small; a layer whose codes are larger than what is left for it does best by adding nothing.
    Every loss looks normal, because the layers before it do the work.
    """
    with ExitStack() as stack:
        for book in site.books[-2:]:
            exile = _Exile(book)
            exile.rows.fill_(True)
            survivor = torch.zeros_like(exile.rows)
            survivor[_most_central(book)] = True
            exile.rows &= ~survivor

            def hold(book: Book = book, exile: _Exile = exile, survivor: Tensor = survivor) -> None:
                exile.hold()
                book.put(survivor, torch.zeros_like(book.codes[survivor]))

            stack.enter_context(book.threshold(0.0))
            stack.enter_context(site.before_every_step(hold))
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
            exile = _Exile(book)
            exile.rows[torch.randperm(len(exile.rows))[: len(exile.rows) // 2]] = True
            name = "replace_dead_codes" if hasattr(book.module, "replace_dead_codes") else "expire_codes_"
            stack.enter_context(changed(book.module, name, _overwritten))
            stack.enter_context(site.before_every_step(exile.hold))
        yield


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
            fair_share = float(book.counts.mean())
            stack.enter_context(book.threshold(2 * fair_share))
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
        flag = book.module.num_updates if hasattr(book.module, "num_updates") else book.module.initted
        flag.zero_()
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
            else:
                stack.enter_context(changed(book.module, "all_reduce_fn", _overwritten))
        yield
