"""What is told of steps that lie in one slot: together or one by one, the daemon reads the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vqwatch.batch import MOST_TOLD, Taken, alike, arrays_of
from vqwatch.telling import Teller
from vqwatch.wire import MAX_STEPS, Message, Origin, Step, decode_each

ORIGIN = Origin("r", 0, "s")
losses = st.lists(st.sampled_from(["total", "vq", "recon"]), unique=True, max_size=3)
numbers = st.floats(allow_nan=False)


def taken(
    step: int, at: int, of_device: Sequence[str], known: dict[str, float], normed: bool, rates: list[float],
    energies: Sequence[str] = (), modules: Sequence[str] = (), outgoing: Sequence[tuple[str, Any]] = (),
) -> Taken:  # fmt: skip
    """Return a step whose numbers on the device lie from ``at`` on."""
    routine: Any = SimpleNamespace(losses=list(of_device), floats=list(known), normed=normed)
    rows = dict.fromkeys(energies, 4) or None
    made = Taken(step, 1000 * step, routine, at, list(known.values()), rates, outgoing, rows)
    made.modules = list(modules)
    return made


@st.composite
def slots(draw: Any) -> tuple[list[Taken], list[float]]:
    """Steps of which neighbours are often alike, and the numbers that lie in their slot."""
    steps: list[Taken] = []
    values: list[float] = []
    look = None
    for step in range(draw(st.integers(1, 2 * MAX_STEPS))):
        if look is None or draw(st.integers(0, 5)) == 0:
            names = draw(losses)
            split = draw(st.integers(0, len(names)))
            look = names[:split], names[split:], draw(st.booleans()), draw(st.integers(0, 2))
        of_device, floats, normed, rates = look
        energies = draw(st.sampled_from([(), (), (), ("0", "1")]))
        modules = draw(st.sampled_from([(), (), (), ("encoder",)]))
        steps.append(
            taken(
                step, len(values), of_device, {name: draw(numbers) for name in floats}, normed,
                [draw(numbers) for _ in range(rates)], energies, modules,
            )
        )  # fmt: skip
        count = len(of_device) + normed + len(energies)
        values += [draw(st.floats(-1e9, 1e9)) for _ in range(count)]
    return steps, values


def told(steps: Sequence[Taken], values: Sequence[float], *, together: bool) -> list[Message]:
    """Return what the daemon reads of some steps, numbered from 1 on."""
    plan: Any = SimpleNamespace(every={"codes": 2}, overhead=0.5)
    teller = Teller(ORIGIN, plan, Counter({"codes:shape": 3}))
    read: list[Message] = []
    for group in alike(steps) if together else [[step] for step in steps]:
        message, count = teller.steps(group, values, teller.news() if group[-1] is steps[-1] else {})
        assert count == len(group)
        read += decode_each(message(len(read) + 1, 1))
    return read


@given(slots())
def test_steps_told_together_are_read_as_if_told_one_by_one(slot: tuple[list[Taken], list[float]]) -> None:
    steps, values = slot
    together, alone = told(steps, values, together=True), told(steps, values, together=False)
    assert together == alone
    assert [message.step for message in together if isinstance(message, Step)] == [step.step for step in steps]


def test_only_neighbours_that_tell_alike_are_told_together() -> None:
    kinds: list[dict[str, Any]] = [
        {}, {}, {"normed": False}, {}, {"rates": [1.0]}, {"rates": [1.0]}, {"known": {"b": 1.0}}, {"of_device": ["c"]},
        {"energies": ["0"]}, {}, {"modules": ["encoder"]},
    ]  # fmt: skip
    plain: dict[str, Any] = {"of_device": ["total"], "known": {}, "normed": True, "rates": []}
    steps = [taken(step, 0, **{**plain, **kind}) for step, kind in enumerate(kinds)]
    assert [[step.step for step in group] for group in alike(steps)] == [
        [0, 1], [2], [3], [4, 5], [6], [7], [8], [9], [10],
    ]  # fmt: skip


def test_no_more_steps_or_numbers_are_told_together_than_a_message_holds() -> None:
    few = [taken(step, step, ["total"], {}, False, []) for step in range(MAX_STEPS + 1)]
    assert [len(group) for group in alike(few)] == [MAX_STEPS, 1]
    names = [f"loss {index}" for index in range(MOST_TOLD // 3)]
    many = [taken(step, step * len(names), names, {}, False, []) for step in range(3)]
    assert [len(group) for group in alike(many)] == [2, 1]


def test_the_codes_of_neighbours_with_one_routine_are_told_together() -> None:
    def build(*_: Any) -> Any: ...

    def other(*_: Any) -> Any: ...

    outgoing = [[("codes", build)], [("codes", build)], [], [("codes", build)], [("codes", other)],
                [("codes", other), ("codebooks", build)], [("codebooks", build)]]  # fmt: skip
    steps = [taken(step, 0, ["total"], {}, False, [], outgoing=each) for step, each in enumerate(outgoing)]
    assert [(kind, made is build, [step.step for step in of]) for kind, made, of in arrays_of(steps)] == [
        ("codes", True, [0, 1, 3]), ("codes", False, [4, 5]), ("codebooks", True, [5]), ("codebooks", True, [6]),
    ]  # fmt: skip


def test_what_the_emitter_tells_of_itself_is_the_last_steps() -> None:
    steps = [taken(step, step, ["total"], {}, False, []) for step in range(3)]
    read = told(steps, [1.0, 2.0, 3.0], together=True)
    assert [dataclasses.asdict(message)["dropped"] for message in read] == [{}, {}, {"codes:shape": 3}]
