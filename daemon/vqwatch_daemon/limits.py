"""How much a peer and a run may send, and when a peer has broken the rules often enough. No socket, no clock.

What protects memory: libzmq refuses a frame above ``MAX_TENSOR_BYTES`` before it allocates it, and holds at most
``RECEIVE_HIGH_WATER_MARK`` messages for a peer. An endless message of many frames is bound by neither (libzmq counts
whole messages, and bytes per frame): only permissions, keys and the memory limit of the daemon's unit or container stop
it, which is why every file in ``deploy/`` sets one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Final

from vqwatch.wire import Evaluation, Message, Step

OFFENCES: Final = 64
"""Unreadable, forbidden or excessive messages that are forgiven; one more, and the peer is cut off."""

FORGIVEN_PER_SECOND: Final = 1.0
MOST_PEERS: Final = 32_768
BURST_SECONDS: Final = 8.0
"""A peer may send what its rate allows for so long at once: a backlog comes back in one piece."""

MOST_NAMES: Final = 256
"""Different names of loss components, modules, groups, ... that one run may use; series of more are dropped."""


@dataclass(slots=True)
class _Level:
    """A leaky bucket."""

    level: float = 0.0
    at: float = 0.0

    def pour(self, amount: float, leak: float, most: float, now: float) -> bool:
        """Add ``amount``; return False, and add nothing, when more than ``most`` would be in the bucket."""
        self.level = max(0.0, self.level - leak * (now - self.at))
        self.at = now
        if self.level + amount > most:
            return False
        self.level += amount
        return True


class Rates:
    """Bytes that each of many senders may send per second; forgets senders beyond :data:`MOST_PEERS`.

    >>> rates = Rates(bytes_per_second=100)
    >>> rates.admit("a", 800, now=0.0), rates.admit("a", 1, now=0.0), rates.admit("a", 90, now=1.0)
    (True, False, True)
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._senders: OrderedDict[Any, _Level] = OrderedDict()

    def admit(self, sender: Any, size: int, now: float) -> bool:
        """Return whether this sender may send ``size`` bytes now; ``now`` is monotonic."""
        return _of(self._senders, sender).pour(size, self._rate, self._rate * BURST_SECONDS, now)


class Offences:
    """Counts what peers did wrong; forgives :data:`FORGIVEN_PER_SECOND`."""

    def __init__(self) -> None:
        self._peers: OrderedDict[Any, _Level] = OrderedDict()

    def add(self, peer: Any, now: float) -> bool:
        """Note one more; return whether this peer has to be cut off, after which it begins anew."""
        if _of(self._peers, peer).pour(1.0, FORGIVEN_PER_SECOND, OFFENCES, now):
            return False
        del self._peers[peer]
        return True


def _of(levels: OrderedDict[Any, _Level], key: Any) -> _Level:
    level = levels.get(key)
    if level is None:
        level = levels[key] = _Level()
        if len(levels) > MOST_PEERS:
            levels.popitem(last=False)
    return level


_NAMED: Final[dict[type, tuple[tuple[str, str], ...]]] = {
    Step: (
        ("losses", "component"),
        ("gradient_norms", "module"),
        ("learning_rates", "group"),
        ("dropped", "reason"),
        ("every", "kind"),
    ),
    Evaluation: (("scalars", "metric"),),
}


class Names:
    """The names that one run uses as label values: the first :data:`MOST_NAMES` of each kind stay, others are dropped.

    ``dropped`` counts values left out, by label.
    """

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._known: dict[str, set[str]] = {}
        self.dropped: dict[str, int] = {}

    def admit(self, message: Message) -> Message:
        """Return the message, without the values whose names are too many."""
        changes: dict[str, Any] = {}
        for field, label in _NAMED.get(type(message), ()):
            given = getattr(message, field)
            known = self._known.setdefault(label, set())
            if given.keys() <= known:
                continue
            fitting = {}
            for name, value in given.items():
                if name in known or len(known) < self._most:
                    known.add(name)
                    fitting[name] = value
            if len(fitting) < len(given):
                self.dropped[label] = self.dropped.get(label, 0) + len(given) - len(fitting)
                changes[field] = fitting
        if not changes or not isinstance(message, (Step, Evaluation)):
            return message
        return replace(message, **changes)

    def state(self) -> dict[str, Any]:
        """Return the names known, fit for JSON."""
        return {
            "known": {label: sorted(names) for label, names in self._known.items()},
            "dropped": dict(self.dropped),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._known = {label: set(names) for label, names in state["known"].items()}
        self.dropped = dict(state["dropped"])
