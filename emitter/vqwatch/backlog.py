"""The must-arrive messages that nobody has acknowledged yet: bounded, in order, replayed from where the daemon asks.

Knows no socket and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .wire import Frame

Encode = Callable[[int, int], list[Frame]]
"""Gives a message's frames, told its number and the oldest number that is still held."""


@dataclass(slots=True)
class Held:
    """One message: its number, its frames, if they were made, and the oldest number held when they were.

    Frames can stand for ``count`` messages with numbers from ``seq`` on, which come and go together.
    """

    seq: int
    frames: list[Frame]
    size: int
    first: int
    encode: Encode
    count: int


class Backlog:
    """Holds at most ``messages`` messages and ``size_bytes`` bytes; what is more pushes the oldest out.

    >>> backlog = Backlog(messages=2, size_bytes=1000)
    >>> for text in (b"a", b"b", b"c"):
    ...     pushed_out = backlog.add(lambda seq, first, text=text: [text])
    >>> pushed_out, backlog.first, backlog.following
    (1, 2, 4)
    """

    def __init__(self, messages: int, size_bytes: int) -> None:
        self._held: deque[Held] = deque()
        self._most_messages = messages
        self._most_bytes = size_bytes
        self._encode_again_below = 0
        self._count = 0
        self._cursor = 0
        self.following = 1
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def first(self) -> int:
        """Return the oldest number still held, or the next one where nothing is."""
        return self._held[0].seq if self._held else self.following

    @property
    def acknowledged(self) -> bool:
        """Return whether nothing is waiting for an acknowledgement."""
        return not self._held

    def add(self, encode: Encode, count: int = 1) -> int:
        """Number and hold a message; return how many older ones it pushed out (their loss is the caller's to count).

        ``count`` is how many messages its frames stand for.
        """
        first = self.first
        frames = encode(self.following, first)
        size = len(frames[0]) if len(frames) == 1 else sum(memoryview(frame).nbytes for frame in frames)
        self._hold(Held(self.following, frames, size, first, encode, count))
        pushed_out = 0
        while len(self._held) > 1 and (self._count > self._most_messages or self.size_bytes > self._most_bytes):
            pushed_out += self._drop_oldest()
        if pushed_out:
            self._encode_again_below = self.first
        return pushed_out

    def add_sent(self, size: int, encode: Encode, count: int) -> None:
        """Number and hold what was sent already, in this many bytes, as the next ``count`` messages.

        For where there was :meth:`room_for` it. It is encoded only if it must be sent again.
        """
        self._hold(Held(self.following, [], size, self.first, encode, count))
        self._cursor += 1

    def _hold(self, held: Held) -> None:
        self._held.append(held)
        self._count += held.count
        self.following += held.count
        self.size_bytes += held.size

    def room_for(self, size: int, count: int = 1) -> bool:
        """Return whether so many messages, of this many bytes in all, fit without pushing anything out."""
        return self._count + count <= self._most_messages and self.size_bytes + size <= self._most_bytes

    def acknowledge(self, seq: int) -> int:
        """Let go of everything up to ``seq``; return how many messages that were."""
        count = 0
        while self._held and self._held[0].seq + self._held[0].count - 1 <= seq:
            count += self._drop_oldest()
        return count

    def _drop_oldest(self) -> int:
        oldest = self._held.popleft()
        self.size_bytes -= oldest.size
        self._count -= oldest.count
        self._cursor = max(0, self._cursor - 1)
        return oldest.count

    def upcoming(self) -> Held | None:
        """Return the next message to hand to the socket, its frames telling truly what is still held."""
        if self._cursor >= len(self._held):
            return None
        return self._truthful(self._held[self._cursor])

    def oldest(self) -> Held | None:
        """Return the oldest message held."""
        return self._truthful(self._held[0]) if self._held else None

    def sent(self) -> None:
        """Note that the upcoming message was handed over."""
        self._cursor += 1

    @property
    def sent_all(self) -> bool:
        """Return whether every message held was handed to the socket since the last rewind."""
        return self.unsent == 0

    @property
    def unsent(self) -> int:
        """Return how many of the messages held, as they were added, are still to be handed to the socket."""
        return len(self._held) - self._cursor

    @property
    def next(self) -> int:
        """Return the number of the upcoming message."""
        return self.following if self.sent_all else self._held[self._cursor].seq

    def rewind(self, seq: int) -> None:
        """Begin again with message ``seq``, or with the oldest one held where that is gone."""
        self._cursor = sum(held.seq + held.count <= seq for held in self._held)

    def _truthful(self, held: Held) -> Held:
        if not held.frames or held.first < self._encode_again_below:
            held.first = self.first
            held.frames = held.encode(held.seq, held.first)
        return held
