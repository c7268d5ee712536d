"""Steps kept as they were given, so that what they hold is looked at, and copied, for several at once.

Between two of the trainer's steps every cache is the trainer's: what a step touches first costs ten times what it costs
in a loop, and the first call into CUDA more than all the rest. So an ordinary step on a device keeps its tensors and
returns. What is kept must not change meanwhile: a tensor that is written to gets a new version, and memory that is used
again, such as the outputs of a replayed CUDA graph, has the same address twice; :meth:`Held.changed` and the
:class:`Keeper` tell. Collectives write without a new version: where ranks talk, numbers are copied at once.

Knows no device, no schedule and no socket. Imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch

from .wire import MAX_INTEGER

if TYPE_CHECKING:
    from .collect import Collector

_Tensor: Final = torch.Tensor
_time_ns: Final = time.time_ns
_no_grad: Any = torch.no_grad
_NO_NORMS: Final[Mapping[str, tuple[torch.Tensor, int]]] = MappingProxyType({})


class Held:
    """One step as it was given. ``values`` are its losses, detached, beside ``names``.

    ``tensors`` are those of the numbers, ``numbers`` of them, then those of the arrays, with ``versions`` of a moment.
    """

    __slots__ = (
        "codes", "gradients", "mask", "names", "norm", "norms", "numbers", "rates", "step", "tapped", "tensors",
        "time_ns", "values", "versions",
    )  # fmt: skip

    step: int
    time_ns: int
    names: tuple[str, ...]
    values: list[Any]
    norm: torch.Tensor | None
    norms: Mapping[str, tuple[torch.Tensor, int]]
    rates: list[Any]
    codes: torch.Tensor | None
    tapped: Sequence[tuple[str, torch.Tensor]]
    mask: torch.Tensor | None
    tensors: list[torch.Tensor]
    numbers: int
    versions: list[int]
    gradients: tuple[torch.Tensor, list[str]] | None

    @property
    def scalars(self) -> list[torch.Tensor]:
        """Return the tensors of the losses, of the norm and of the layers' norms."""
        found = self.tensors[: self.numbers]
        return found + [norm for norm, _ in self.norms.values()] if self.norms else found

    @property
    def seldom(self) -> list[torch.Tensor]:
        """Return what few steps have: the norms of layers, then one tensor of all norms of gradients."""
        norms = [norm for norm, _ in self.norms.values()]
        return norms if self.gradients is None else [*norms, self.gradients[0]]

    @property
    def seldom_count(self) -> int:
        """Return how many numbers that is."""
        return len(self.norms) + (0 if self.gradients is None else len(self.gradients[1]))

    @property
    def floats(self) -> list[float]:
        """Return the losses that are floats."""
        return [value for value in self.values if type(value) is float]

    @property
    def arrays(self) -> list[torch.Tensor]:
        """Return codes and mask."""
        return self.tensors[self.numbers :]

    def look(self) -> None:
        """Note which tensors there are, and their versions now."""
        tensors = [value for value in self.values if type(value) is _Tensor]
        if self.norm is not None:
            tensors.append(self.norm)
        self.numbers = len(tensors)
        if self.codes is not None:
            tensors.append(self.codes)
        else:
            tensors += [indices for _, indices in self.tapped]
        if self.mask is not None:
            tensors.append(self.mask)
        self.tensors = tensors
        self.versions = [tensor._version for tensor in tensors]

    def changed(self) -> tuple[bool, bool]:
        """Return whether a number, and whether codes or mask were written to since the step."""
        now = [tensor._version for tensor in self.tensors]
        if now == self.versions:
            return False, False
        count = self.numbers
        return now[:count] != self.versions[:count], now[count:] != self.versions[count:]

    def leave_out(self, numbers: bool, arrays: bool) -> None:
        """Have no numbers any more, or no arrays."""
        if numbers:
            self.names, self.values, self.norm, self.norms = (), [], None, {}
            self.gradients = None  # some modules' only: without the norm of all, theirs would be taken for it
        if arrays:
            self.codes, self.tapped, self.mask = None, (), None
        self.look()

    def let_go_of_arrays(self) -> None:
        """Have no arrays any more, as they were copied."""
        self.codes, self.tapped, self.mask = None, (), None
        del self.tensors[self.numbers :]

    def copy_numbers(self) -> None:
        """Have copies of the numbers."""
        count = self.numbers
        if not count:
            return
        with _no_grad():
            copies = list(torch.stack([number.reshape(()) for number in self.tensors[:count]]).unbind())
        copies.reverse()
        self.values = [copies.pop() if type(value) is _Tensor else value for value in self.values]
        if self.norm is not None:
            self.norm = copies.pop()
        self.look()


def any_changed(steps: Sequence[Held]) -> bool:
    """Return whether any of the tensors of some steps was written to since its step was given."""
    return any([tensor._version for tensor in held.tensors] != held.versions for held in steps)


class Keeper:
    """Keeps up to ``most`` steps of one thread. ``since`` is when the oldest was given, monotonic seconds.

    ``at_once`` says that numbers are to be copied when they are given. ``reused`` says that memory was used again by a
    later step, ``numbers_reused`` and ``arrays_reused`` whose, as places in ``held``: what these hold is not to be
    believed.
    ``begun`` are the addresses of the arrays of steps that were taken, as long as those are not copied, and
    ``begun_reused`` whose of them was used again.
    """

    __slots__ = (
        "_collector", "_numbers", "_optimizers", "_owner", "_places", "arrays_reused", "at_once", "begun",
        "begun_reused", "held", "last", "most", "numbers_reused", "reused", "since",
    )  # fmt: skip

    def __init__(self, collector: Collector, optimizers: Sequence[Any], last: int) -> None:
        self.held: list[Held] = []
        self.last = last
        self.most = 1
        self.since = 0.0
        self.at_once = False
        self.reused = False
        self.numbers_reused: list[int] = []
        self.arrays_reused: list[int] = []
        self.begun: list[int] = []
        self.begun_reused: list[int] = []
        self._collector = collector
        self._optimizers = optimizers
        self._owner = get_ident()
        self._numbers: list[int] = []  # the address of each step's first number,
        self._places: list[int] = []  # and of its first array

    def keep(self, step: int, losses: Any, codes: Any, mask: Any, grad_norm: Any, now: float) -> bool:
        """Keep a step; return False, with nothing done, where it cannot be kept."""
        if type(step) is not int or not self.last < step <= MAX_INTEGER:
            return False
        if type(losses) is not dict or get_ident() != self._owner:
            return False
        if (
            (codes is not None and type(codes) is not _Tensor)
            or (mask is not None and type(mask) is not _Tensor)
            or (grad_norm is not None and type(grad_norm) is not _Tensor)
        ):
            return False
        held = Held()
        held.values = values = []
        held.codes, held.mask, held.norm = codes, mask, grad_norm
        number = 0
        for value in losses.values():
            if type(value) is _Tensor:
                value = value.detach()  # not to keep the graph that it hangs on
                number = number or value.data_ptr()
            elif type(value) is not float:
                return False
            values.append(value)
        collector = self._collector
        if codes is not None:
            held.tapped = ()
            place = codes.data_ptr()
        else:
            held.tapped = tapped = collector.tapped or ()  # not the list that the next forward pass adds to
            place = tapped[0][1].data_ptr() if tapped else 0
        held.rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        held.step = step
        held.time_ns = _time_ns()
        held.names = tuple(losses)
        held.norms = collector.norms or _NO_NORMS
        held.gradients = None
        held.look()
        if collector.tapped:
            collector.tapped = []
        if collector.norms:
            collector.norms = {}
        if collector.wants_codes is not (codes is None):
            collector.want_codes(codes is None)
        numbers, places = self._numbers, self._places
        if self.at_once:
            held.copy_numbers()
            number = 0
        if not self.held:
            self.since = now
        elif number and number in numbers:
            self.numbers_reused.append(_taken_from(numbers, number))
            self.reused = True
        if place and place in places:
            self.arrays_reused.append(_taken_from(places, place))
            self.reused = True
        if place and place in self.begun:
            self.begun_reused.append(_taken_from(self.begun, place))
        numbers.append(number)
        places.append(place)
        self.last = step
        self.held.append(held)
        return True

    def take_reused(self) -> tuple[list[int], list[int]]:
        """Return ``numbers_reused`` and ``arrays_reused``, and forget them."""
        found = self.numbers_reused, self.arrays_reused
        self.numbers_reused, self.arrays_reused, self.reused = [], [], False
        return found

    def take(self, count: int | None = None) -> tuple[list[Held], list[int]]:
        """Return the first so many of the steps that are kept, or all, and keep them no longer.

        With them come the addresses of their arrays.
        """
        count = len(self.held) if count is None else count
        held, self.held = self.held[:count], self.held[count:]
        places, self._places = self._places[:count], self._places[count:]
        del self._numbers[:count]
        return held, places


def _taken_from(addresses: list[int], address: int) -> int:
    """Return where an address is, and put nothing there: it is another's now."""
    index = addresses.index(address)
    addresses[index] = 0
    return index
