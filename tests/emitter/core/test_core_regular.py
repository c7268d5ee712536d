"""Batches of steps that are all alike are told by a form: the daemon reads what it would have read without one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.emitter.core.alike import ORIGIN, Alike, plan

from vqwatch.batch import Regular
from vqwatch.link import Form
from vqwatch.telling import MAKING, Teller
from vqwatch.wire import Frame, Message, bundle, decode_each, fill_in, unbundle


def without_form(teller: Teller, batch: Regular, first: int) -> list[Message]:
    """Return what the daemon reads of a batch whose steps are told each in its own way; messages number from 1."""
    apart = batch.apart()
    numbers = apart.resolve()
    frames: list[list[Frame]] = [make(first, first) for make, _ in teller.messages(apart, numbers, teller.news())]
    for _, make, _ in teller.arrays(apart):
        header, tensors = make(1)
        packed = bundle([(header, [(0, len(tensor.data)) for tensor in tensors])])
        assert packed is not None
        frames.append([unbundle([*packed, bytes(1 << 16)])[0][0], *(tensor.data for tensor in tensors)])
    return [message for parts in frames for message in decode_each(parts)]


def by_form(teller: Teller, form: Form, batch: Regular, first: int) -> list[Message]:
    """Return what it reads of the batch as its form tells it."""
    slot: Any = batch.slot
    of_messages = [first, first, *(1 for _ in form.kinds)]
    frame = fill_in(
        form.stencil, [of_messages, *teller.filling(batch, slot.numbers(batch.count))], slot.data, slot.spare
    )
    assert frame is not None
    return [message for parts in unbundle([frame]) for message in decode_each(parts)]


@given(
    st.lists(st.sampled_from(["total", "vq", "recon"]), unique=True, max_size=3), st.booleans(), st.integers(0, 3),
    st.booleans(), st.integers(0, 2), st.integers(1, 16), st.data(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_what_a_form_tells_is_read_as_without_one(
    losses: list[str], normed: bool, split: int, dropped: bool, rates: int, count: int, data: Any, sizes: bool,
    known: bool, longer: bool,
) -> None:  # fmt: skip
    alike = Alike(losses[:split], losses[split:], normed or not losses[:split], rates)
    schedule = plan()
    if not known:
        schedule.overhead = None
    teller = Teller(ORIGIN, schedule, Counter({"codes:shape": 3} if dropped else {}))
    places = st.lists(st.integers(0, count - 1), unique=True, max_size=count).map(sorted)
    some = data.draw(places)
    # The same number of codes, of other steps; but where sizes are told too, the last step has codes in both or none.
    other = some if sizes else sorted(data.draw(st.permutations(range(count)))[: len(some)])
    first, second = (
        alike.batch(5, count, some, sizes, 1),
        alike.batch(1 << (40 if longer else 4), count, other, sizes, 2),
    )
    assert teller.form(first) is None, "one by itself is not worth it"
    form = teller.form(second)
    assert form is not None
    for batch in (first, second):
        schedule.every = {"codes": 4, "codebooks": 1 << 20}
        assert by_form(teller, form, batch, 7) == without_form(teller, batch, 7)
    assert teller.form(first) is form


def test_batches_that_differ_in_more_than_numbers_have_another_form() -> None:
    dropped, schedule = Counter({"codes:shape": 3}), plan()
    teller = Teller(ORIGIN, schedule, dropped)
    alike, more_rates = Alike(["total"], [], True, 1), Alike(["total"], [], True, 2)
    forms = []
    for batch in (
        alike.batch(0, 4, [0, 1], False, 0), alike.batch(0, 5, [0, 1], False, 0), alike.batch(0, 4, [0], False, 0),
        alike.batch(0, 4, [0, 1], True, 0), alike.batch(0, 4, [0, 3], True, 0), more_rates.batch(0, 4, [0], False, 0),
    ):  # fmt: skip
        assert teller.form(batch) is None
        forms.append(teller.form(batch))
    alike.rates = 2
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "there is one more learning rate"
    alike.rates = 1
    schedule.overhead = None
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "what it takes is not known any more"
    schedule.overhead = 0.25
    dropped["codes:dtype"] += 1
    assert teller.form(alike.batch(0, 4, [0, 1], False, 0)) is None, "what was dropped has one more name"
    forms.append(teller.form(alike.batch(0, 4, [0, 1], False, 0)))
    assert len({id(form) for form in forms if form is not None}) == 7


def test_a_form_is_made_in_parts_and_then_is_there() -> None:
    teller = Teller(ORIGIN, plan(), Counter())
    alike = Alike(["total"], [], True, 1)
    assert teller.form(alike.batch(0, 4, [0, 1], True, 0), in_part=True) is None
    batch = alike.batch(4, 4, [0, 1], True, 0)
    found = [teller.form(batch, in_part=True) for _ in range(12)]
    making = found.count(MAKING)
    assert making > 6
    assert found[:making] == [MAKING] * making
    form = found[making]
    assert isinstance(form, Form)
    assert found[making:] == [form] * (12 - making)
    assert by_form(teller, form, batch, 7) == without_form(teller, batch, 7)


def test_what_does_not_fit_into_one_message_has_no_form() -> None:
    teller = Teller(ORIGIN, plan(), Counter())
    many = Alike([f"loss {index}" for index in range(60)], [], False, 0).batch(0, 16, [], False, 0)
    found = [teller.form(many, in_part=True) for _ in range(9)]
    making = found.count(MAKING)
    assert making > 2
    assert found == [None, *[MAKING] * making, *[None] * (8 - making)], "nor is it tried again"
