"""Whatever is handed to ``step()``: nothing escapes, the daemon's own receiver gets what is fine, the rest counts."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.emitter.core.anything import among, anything, bad_names, names, numbers_by_name, objects, tensors
from tests.emitter.core.daemon import Daemon
from tests.emitter.core.hand import Model, array

import vqwatch
from vqwatch.schedule import EVERYTHING
from vqwatch.wire import BEST_EFFORT

FEATURES = torch.randn(2, 5, 8)
CODES = torch.arange(20).reshape(2, 5, 2) % 16
GOOD: dict[str, Any] = {
    "losses": {"total": 1.5}, "codes": CODES, "original": FEATURES, "reconstructed": FEATURES,
    "mask": torch.ones(2, 5, dtype=torch.bool), "grad_norm": 2.5, "lr": 0.1,
}  # fmt: skip


class Watched:
    """An emitter beside that daemon, which counts its own steps."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        self.step = 0
        self.emitter = vqwatch.attach(
            Model(), endpoint=self.daemon.endpoint, run="anything", budget=float("inf"), every=EVERYTHING
        )
        self.until(lambda: self.emitter.flush(0.0))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert not self.daemon.rejected, f"the daemon rejected {self.daemon.rejected}"
            assert time.monotonic() < deadline, "it never came to hold"
            self.daemon.turn()

    def tell(self, told: dict[str, Any]) -> Counter[str]:
        """Tell one step and let it arrive; return what was left out in it."""
        self.step += 1
        self.daemon.taken.clear()
        self.daemon.rejected.clear()
        before = Counter(self.emitter.dropped)
        self.emitter.step(self.step, **told)
        left_out = Counter(self.emitter.dropped) - before
        self.settle()
        return left_out

    def settle(self) -> None:
        """Let everything that was sent arrive."""
        self.until(lambda: self.emitter.flush(0.0))
        sent = self.emitter._link.sent
        self.until(lambda: all(self.daemon.received[kind] >= sent.get(kind, 0) for kind in BEST_EFFORT))

    def close(self) -> None:
        self.emitter.close(0.0)
        self.daemon.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    logging.getLogger("vqwatch").setLevel(logging.CRITICAL)
    made = Watched()
    yield made
    made.close()
    logging.getLogger("vqwatch").setLevel(logging.NOTSET)


def counted(left_out: Counter[str], kind: str) -> bool:
    return any(key.startswith(f"{kind}:") for key in left_out)


arguments: dict[str, st.SearchStrategy[Any]] = {
    "codes": st.one_of(
        among(st.one_of(names, bad_names)), st.just({str(index): np.zeros(3, int) for index in range(300)})
    ),
    **dict.fromkeys(("original", "reconstructed", "mask", "grad_norm"), anything), "lr": numbers_by_name,
}  # fmt: skip
bad_arguments = st.sets(st.sampled_from(sorted(arguments)), min_size=1).flatmap(
    lambda chosen: st.fixed_dictionaries({name: arguments[name] for name in sorted(chosen)})
)
lenient = settings(
    phases=[Phase.explicit, Phase.generate],  # shrinking waits for what never arrives, many times over
    deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None,
)  # fmt: skip


@settings(lenient, max_examples=300)
@given(bad=bad_arguments, bad_losses=numbers_by_name)
def test_nothing_escapes_and_what_is_fine_arrives(watched: Watched, bad: dict[str, Any], bad_losses: Any) -> None:
    """Each argument is good or anything; the good ones arrive whatever the others are."""
    losses: dict[Any, Any] = {"total": 1.5}
    losses.update(bad_losses if type(bad_losses) is dict else {"bad": bad_losses})
    losses["total"] = 1.5
    left_out = watched.tell({**GOOD, "losses": losses, **bad})
    (step,) = watched.daemon.of("step", watched.step)
    assert step.losses["total"] == 1.5
    assert watched.daemon.rejected == []
    if "grad_norm" not in bad:
        assert step.gradient_norm == 2.5
    if "lr" not in bad:
        assert step.learning_rates == {"0": 0.1}
    told = watched.daemon.of("codes", watched.step)
    if "codes" not in bad:
        assert np.array_equal(array(told[0].indices), CODES.movedim(-1, 0))
    elif bad["codes"] is not None and not told:
        assert counted(left_out, "codes") or not len(bad["codes"])
    compared = watched.daemon.of("reconstruction", watched.step)
    if not bad.keys() & {"original", "reconstructed"}:
        assert np.array_equal(array(compared[0].original), FEATURES)
    elif not compared and all({**GOOD, **bad}[name] is not None for name in ("original", "reconstructed")):
        assert counted(left_out, "reconstruction")
    if bad.get("mask") is not None and not any(message.mask for message in (*told, *compared)):
        assert counted(left_out, "mask") or not (told or compared)


@settings(lenient, max_examples=60)
@given(losses=numbers_by_name)
def test_losses_may_be_anything_and_the_arrays_arrive(watched: Watched, losses: Any) -> None:
    watched.tell({**GOOD, "losses": losses})
    assert len(watched.daemon.of("step", watched.step)) == 1
    assert len(watched.daemon.of("codes", watched.step)) == 1
    assert len(watched.daemon.of("reconstruction", watched.step)) == 1
    assert watched.daemon.rejected == []


@settings(lenient, max_examples=60)
@given(step=st.one_of(objects, tensors, st.sampled_from([None, -1, 1 << 70, 1.5, "7", math.nan])), losses=anything)
def test_a_step_number_may_be_anything_and_the_next_step_arrives(watched: Watched, step: Any, losses: Any) -> None:
    watched.emitter.step(step, losses=losses)
    watched.emitter.step(watched.step, losses=losses)
    watched.tell(GOOD)
    assert len(watched.daemon.of("step", watched.step)) == 1


evaluated: dict[str, st.SearchStrategy[Any]] = {
    "codes": arguments["codes"], "scalars": numbers_by_name,
    **dict.fromkeys(("original", "reconstructed", "mask"), anything),
}  # fmt: skip


@settings(lenient, max_examples=120)
@given(told=st.fixed_dictionaries({}, optional=evaluated))
def test_of_a_validation_batch_what_is_fine_arrives_and_so_does_the_next(
    watched: Watched, told: dict[str, Any]
) -> None:
    watched.daemon.taken.clear()
    batch = {"original": FEATURES, "reconstructed": FEATURES, "codes": CODES, "scalars": {"mine": 2.5}}
    with watched.emitter.evaluation(watched.step) as validation:
        validation.update(**{**batch, **told})
        validation.update(**batch)
    watched.settle()
    _, *first, second, end = [m for m in watched.daemon.taken if m.kind == "evaluation"]
    assert (end.phase, end.batch) == ("end", len(first) + 1)
    assert np.array_equal(array(second.original), FEATURES)
    assert np.array_equal(array(second.codes), CODES.movedim(-1, 0))
    assert second.scalars == {"mine": 2.5}
    if "scalars" not in told:
        assert {"mine": 2.5} in [message.scalars for message in first]
    if "codes" not in told:
        assert [array(m.codes).tolist() for m in first if m.codes] == [CODES.movedim(-1, 0).tolist()]
    if not told.keys() & {"original", "reconstructed", "mask"}:
        assert [array(m.original).tolist() for m in first if m.original] == [FEATURES.tolist()]
    assert watched.daemon.rejected == []
