"""What messages tell of ordinary steps: of each by itself, of several at once, or of many alike by a stencil."""

from __future__ import annotations

import enum
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from .backlog import Encode
from .batch import alike, arrays_of
from .entry import CodesBuild
from .link import Form, Make
from .schedule import Schedule
from .wire import (
    Bundled,
    Frame,
    Groups,
    Marks,
    Origin,
    Stencil,
    WireError,
    bundle,
    encode_step,
    unpacked,
)

if TYPE_CHECKING:
    from .batch import Batch, Regular, Taken
    from .entry import Arrived, Build

_MOST_FORMS: Final = 64


class Making(enum.Enum):
    """Says that a form is being made."""

    MAKING = 0


MAKING: Final = Making.MAKING


class Telling:
    """What tells one batch: messages of its steps, made a few at a time, and ``arrays``, each with its kind.

    With every message comes how many it stands for. ``made`` counts those of the steps that were made; they are
    ``complete`` where those are all.
    """

    def __init__(self, messages: Iterator[tuple[Encode, int]], arrays: Sequence[tuple[str, Make, int]]) -> None:
        self.arrays = arrays
        self.made = 0
        self.complete = False
        self._messages = messages

    def some(self, most: int | None) -> list[tuple[Encode, int]]:
        """Return what makes the next messages of steps, so many or all that are left."""
        found = list(itertools.islice(self._messages, most))
        self.made += len(found)
        self.complete = most is None or len(found) < most
        return found


class Teller:
    """Makes messages of one session's steps, with what the emitter tells of itself."""

    def __init__(self, origin: Origin, plan: Schedule, dropped: Counter[str]) -> None:
        self._origin = origin
        self._plan = plan
        self._dropped = dropped
        self._forms: dict[Any, Form | None] = {}
        self._met: dict[Any, Iterator[None] | None] = {}  # looks that were met and have no form yet, and its making

    def news(self) -> dict[str, Any]:
        """Return what the emitter tells of itself, as a step's fields."""
        found: dict[str, Any] = {"every": self._plan.every}
        if self._dropped:
            found["dropped"] = self._dropped
        if self._plan.overhead is not None:
            found["overhead"] = self._plan.overhead
        return found

    def step(self, step: int | list[int], time_ns: int | list[int], fields: dict[str, Any]) -> Encode:
        """Return what makes a step's message of its fields, or the one of several and their columns."""
        origin = self._origin

        def make(seq: int, first: int) -> list[Frame]:
            return encode_step(origin, seq, first, time_ns, step, fields)

        return make

    def steps(self, steps: Sequence[Taken], numbers: Sequence[float], news: dict[str, Any]) -> tuple[Encode, int]:
        """Return what makes the message that tells these steps and some news, and how many they are."""
        first = steps[0]
        if len(steps) == 1:
            return self.step(first.step, first.time_ns, first.fields(numbers) | news), 1
        told, times = [taken.step for taken in steps], [taken.time_ns for taken in steps]
        return self.step(told, times, first.columns(numbers, steps) | news), len(steps)

    def messages(self, batch: Batch, numbers: Sequence[float], news: dict[str, Any]) -> Iterator[tuple[Encode, int]]:
        """Yield the messages of a batch's steps, the last one with the news, and how many each stands for."""
        last = batch.steps[-1]
        return (self.steps(steps, numbers, news if steps[-1] is last else {}) for steps in alike(batch.steps))

    def arrays(self, batch: Batch) -> list[tuple[str, Make, int]]:
        """Return the messages of its arrays, each with its kind and how many it stands for."""
        return [(kind, make_of(build, steps), len(steps)) for kind, build, steps in arrays_of(batch.steps)]

    def begin(self, batch: Batch) -> Telling:
        """Return what tells a batch that has arrived, with all of its arrays' messages made but their numbers."""
        messages = self.messages(batch, batch.resolve(), self.news())
        return Telling(messages, [(kind, _ahead(make), count) for kind, make, count in self.arrays(batch)])

    def form(self, batch: Regular, in_part: bool = False) -> Form | Making | None:
        """Return how batches of this look are told; None where none was met before, or they cannot be told so.

        ``in_part`` does no more than a part of making one, and returns :data:`MAKING` where that is to go on with this
        batch. What goes into a form is :meth:`filling`.
        """
        forms, met = self._forms, self._met
        look = batch.look, *self._dropped, self._plan.overhead is None
        if look in forms:
            return forms[look]
        if look not in met:
            if len(forms) + len(met) >= _MOST_FORMS:
                forms.clear()
                met.clear()
            met[look] = None
            return None
        making = met[look] = met[look] or self._make_form(look, batch)
        for _ in making:
            if in_part:
                return MAKING
        del met[look]
        form = forms.setdefault(look, None)
        return MAKING if in_part else form

    def filling(self, batch: Regular, numbers: Sequence[float]) -> Groups:
        """Return what goes into a form for a batch, behind the numbers of the messages themselves."""
        overhead = self._plan.overhead
        own = [] if overhead is None else [overhead]
        return [self._plan.every.values(), self._dropped.values(), own, *batch.told(numbers)]

    def _make_form(self, look: Any, regular: Regular) -> Iterator[None]:
        """Make a form in parts, none of which takes longer than to send a batch.

        There is none where an array was left out, or the steps are too much for one message.
        """
        marks = Marks()
        marked, of_arrays, numbers = regular.marked(marks), regular.marked(marks), marks.floating(regular.count)
        news = self.news()
        every = news["every"] = dict(zip(news["every"], marks.whole(len(news["every"])), strict=True))
        dropped = dict(zip(self._dropped, marks.whole(len(self._dropped)), strict=True))
        own = marks.floating("overhead" in news)
        if dropped:
            news["dropped"] = dropped
        if own:
            news["overhead"] = own[0]
        filling = [every.values(), dropped.values(), own, *marked.told(numbers, of_arrays)]
        yield
        messages = list(self.messages(marked.apart(), numbers, news))
        yield
        with_arrays = of_arrays.apart()
        with_arrays.resolve()
        arrays = self.arrays(with_arrays)
        seq, first, *of_kinds = marks.whole(2 + len(arrays))
        yield
        try:
            header = messages[0][0](seq, first)[0]
            yield
            index: list[Bundled] = [(header, ())]
            for (_, make, _), number in zip(arrays, of_kinds, strict=True):
                unpacked_header, tensors = make(number)
                index.append((unpacked_header, [regular.slot.place(tensor.data) for tensor in tensors]))
            frames = bundle(index)
            if frames is None:
                return
            packed = bytes(frames[0])
            yield
            stencil = Stencil(packed, [[seq, first, *of_kinds], *filling])
            yield
            while stencil.prepare():
                yield
        except (LookupError, WireError):
            return
        self._forms[look] = Form(stencil, len(header), [(kind, count) for kind, _, count in arrays])


def make_of(build: Build, steps: Sequence[Arrived]) -> Make:
    """Return what makes the message of one step's arrays, or the one of the codes of several."""
    if len(steps) == 1:
        return lambda seq: unpacked(build(steps[0], seq))
    assert isinstance(build, CodesBuild)
    return functools.partial(build.together, steps)


def _ahead(make: Make) -> Make:
    """Make a message now, and return what only numbers it; or the same, to fail again where that is counted."""
    try:
        header, tensors = make(1)
    except Exception:
        return make
    return lambda seq: ({**header, "seq": seq}, tensors)
