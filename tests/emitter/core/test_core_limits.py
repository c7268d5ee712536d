"""More than a message can hold: what fits is sent, the rest is counted, and the daemon refuses nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import Model, Peer, array, settle

import vqwatch
from vqwatch.entry import Entry
from vqwatch.held import Held, Keeper
from vqwatch.routine import Routine
from vqwatch.scalars import LOSS, RATE
from vqwatch.wire import MAX_ENTRIES, MAX_LAYERS

Attach = Callable[..., vqwatch.Emitter]
MANY = {f"loss {index}": float(index) for index in range(MAX_ENTRIES + 476)}
FIRST = dict(list(MANY.items())[:MAX_ENTRIES])


def test_of_too_many_losses_and_rates_the_first_arrive_and_the_rest_is_counted(
    attached: Attach, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    watch = attached()
    with caplog.at_level(logging.WARNING, "vqwatch"):
        for step in range(3):
            watch.step(step, losses=MANY, lr=list(range(MAX_ENTRIES + 1)), codes=np.zeros((2, 3, 1), int))
    settle(watch, peer)
    assert [message.losses for message in peer.of("step")] == [FIRST] * 3
    assert [len(message.learning_rates) for message in peer.of("step")] == [MAX_ENTRIES] * 3
    assert peer.kinds()["codes"] == 3
    assert watch.dropped == {"losses:limit": 3 * 476, "lr:limit": 3}
    assert [record.getMessage().count("losses:limit") for record in caplog.records].count(1) == 1


def test_of_names_too_long_for_one_header_as_many_as_fit_arrive(attached: Attach, peer: Peer) -> None:
    watch = attached()
    watch.step(0, losses={"total": 1.0} | {f"{index:04}".ljust(128, "\u732b"): 0.5 for index in range(900)}, lr=0.1)
    settle(watch, peer)
    (step,) = peer.of("step")
    assert (step.losses["total"], step.learning_rates) == (1.0, {"0": 0.1})
    assert len(step.losses) > 50
    assert len(step.losses) + watch.dropped["losses:limit"] == 901


def test_a_validation_batch_sends_what_is_fine_of_its_numbers_and_all_of_its_arrays(
    attached: Attach, peer: Peer
) -> None:
    watch = attached(Model())
    x = torch.randn(2, 3, 4)
    scalars = {"mine": torch.tensor(2.5), "bad": "text", "a\x00b": 1.0, "several": [1.0, 2.0]}
    with watch.evaluation(1) as ev:
        ev.update(original=x, reconstructed=x, scalars=scalars)
        ev.update(scalars=MANY)
    settle(watch, peer)
    _, first, second, end = peer.of("evaluation")
    assert (first.scalars, second.scalars, end.phase) == ({"mine": 2.5}, FIRST, "end")
    assert np.array_equal(array(first.original), x.numpy())
    assert watch.dropped == {
        "evaluation:dtype": 1, "evaluation:name": 1, "evaluation:shape": 1, "evaluation:limit": 476,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("step", "name", "counted"),
    [(-1, "validation", "evaluation:step"), (1 << 63, "validation", "evaluation:step"), (1, "", "evaluation:name")],
)
def test_a_pass_that_no_message_can_name_is_left_out_and_the_next_arrives(
    attached: Attach, peer: Peer, step: int, name: str, counted: str
) -> None:
    watch = attached()
    for number, called in ((step, name), (2, "validation")):
        with watch.evaluation(number, called) as ev:
            ev.update(scalars={"mine": 1.0})
    settle(watch, peer)
    assert [(part.step, part.phase) for part in peer.of("evaluation")] == [(2, "begin"), (2, "batch"), (2, "end")]
    assert watch.dropped == {counted: 1}


class _Hooks:
    tapped: tuple[()] = ()
    norms: dict[str, Any] = {}  # noqa: RUF012  # never written to
    wants_codes = True


def _kept(losses: dict[Any, Any], rates: int) -> Held:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}] * rates)
    keeper = Keeper(_Hooks(), [optimizer], -1)  # type: ignore[arg-type]  # the three attributes that it reads
    assert keeper.keep(0, losses, None, None, None, 1.0)
    return keeper.held[0]


@pytest.mark.parametrize(
    ("losses", "rates", "learned"),
    [
        ({"total": 1.0}, 1, True),
        ({"total": 1.0, **MANY}, 1, False),
        ({"total": 1.0, "a\x00b": 1.0}, 1, False),
        ({"total": 1.0, 7: 1.0}, 1, False),
        ({"total": 1.0}, MAX_ENTRIES + 1, False),
    ],
)
def test_a_step_of_which_numbers_were_refused_is_no_model_for_the_next(
    losses: dict[Any, Any], rates: int, learned: bool
) -> None:
    """The ordinary way sends what it was given under the names it was given: it must be what was sent before."""
    held = _kept({"on the device": torch.tensor(1.0), **losses}, rates)
    entry = Entry(0)
    for group, given in ((LOSS, zip(held.names[1:], held.values[1:], strict=True)), (RATE, enumerate(held.rates))):
        for name, value in given:
            try:
                entry.scalars.add(group, name, value)
            except vqwatch.arrays.Refused:
                continue
    entry.scalars.names = [(LOSS, "on the device")]
    assert (Routine.of(entry, held, with_codes=False) is not None) == learned


def test_codes_whose_names_fit_into_no_header_are_left_out_alone(attached: Attach, peer: Peer) -> None:
    watch = attached()
    codes = {f"{index:04}".ljust(128, "\u732b"): np.zeros(3, int) for index in range(200)}
    x = np.ones((2, 3, 4), np.float32)
    watch.step(0, losses={"total": 1.0}, codes=codes, original=x, reconstructed=x)
    settle(watch, peer)
    assert (peer.kinds()["step"], peer.kinds()["codes"], peer.kinds()["reconstruction"]) == (1, 0, 1)
    assert watch.dropped == {"codes:header_size": 1}


def test_of_more_forward_passes_than_a_step_has_parts_the_first_are_told(attached: Attach, peer: Peer) -> None:
    model = Model()
    watch = attached(model)
    for _ in range(MAX_LAYERS + 44):
        model(torch.randn(1, 2, 8))
    watch.step(0, losses={"total": 1.0})
    settle(watch, peer)
    told = peer.of("codes")
    assert {message.parts for message in told} == {MAX_LAYERS}
    assert len(told) + watch.dropped.get("codes:busy_peer", 0) == MAX_LAYERS
    assert watch.dropped["codes:limit"] == 1
