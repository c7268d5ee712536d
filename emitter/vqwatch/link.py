"""What is said to the daemon and heard from it: never waits, holds a bounded amount, and tells what it could not send.

Must-arrive messages stay in a :class:`Backlog` until they are acknowledged and are sent again from where the daemon
asks; best-effort ones are refused when there is no room. Knows no ZeroMQ: that is the :class:`Dealer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from .backlog import Backlog, Encode
from .dealer import ZERO_COPY_BYTES, Dealer, Loan
from .settings import Keys
from .wire import (
    HEAD_BYTES,
    Ack,
    Bundled,
    Frame,
    Groups,
    Message,
    Stencil,
    Stop,
    Unpacked,
    Welcome,
    WireError,
    bundle,
    decode,
    fill_in,
    packed,
)

Make: TypeAlias = Callable[[int], Unpacked]
"""Makes a best-effort message of its number."""

PATIENCE_SECONDS: Final = 4.0
"""How long the oldest message waits for its acknowledgement before it is sent again. The daemon acknowledges steps once
a second where they are few, and a training may listen every two seconds: less than a turn of each would send again what
arrived."""

LONGEST_PATIENCE_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 0.25
"""How long after its start a link that never heard of a daemon may still hope for one when it is closed."""

MOST_ANSWERS: Final = 64
"""Answers that are read in one turn."""


class Memory(Protocol):
    """Host memory that holds the buffers of some messages: :data:`HEAD_BYTES`, the buffers, and some bytes to spare."""

    @property
    def data(self) -> memoryview:
        """Return all of it, bytes; the head and the last :attr:`spare` may be written to."""

    @property
    def spare(self) -> int:
        """Return how many bytes at the end hold nothing."""

    def place(self, data: Frame) -> tuple[int, int]:
        """Return where a buffer lies: its offset behind the head, and its size in bytes."""


class Form(NamedTuple):
    """How messages that differ in nothing but numbers are sent as one.

    ``stencil`` is for the index of the bundle, ``steps_bytes`` what the one message of steps takes in it, and ``kinds``
    are those of the other messages, with how many each stands for.
    """

    stencil: Stencil
    steps_bytes: int
    kinds: Sequence[tuple[str, int]]


class Link:
    """One session's connection; ``now`` is always monotonic seconds.

    ``dropped`` counts what was not sent, by "kind:reason". ``writable`` tells whether a daemon was connected and had
    room when it was last looked at.
    """

    def __init__(
        self,
        endpoint: str,
        session: str,
        now: float,
        dropped: Counter[str],
        *,
        keys: Keys | None = None,
        backlog: Backlog,
        send_bytes: int,
    ) -> None:
        self.dropped = dropped
        self.backlog = backlog
        self.stop_reason: str | None = None
        self.daemon = ""
        self.sent: Counter[str] = Counter()
        self.session = session
        self._introduction: Encode | None = None
        self._introduced = False  # and not answered yet
        self._started = self._waiting_since = now
        self._patience = PATIENCE_SECONDS
        self._heard: float | None = None
        self.writable = False
        self._dealer = Dealer(endpoint, keys, send_bytes)

    # --- sending --------------------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Return whether messages that must arrive wait to be sent."""
        return not self.backlog.sent_all

    def heard_within(self, seconds: float, now: float) -> bool:
        """Return whether the daemon said anything in the last ``seconds``."""
        return self._heard is not None and now - self._heard <= seconds

    def introduce(self, introduction: Encode, now: float) -> None:
        """Send the session's first message, and keep it for a daemon that does not know this session any more."""
        self._introduction = introduction
        self.must_arrive("hello", introduction, now)

    def must_arrive(self, kind: str, message: Encode, now: float) -> None:
        """Take a message into the backlog and send what can be sent."""
        pushed_out = self.backlog.add(message)
        if pushed_out:
            self.dropped[f"{kind}:backlog"] += pushed_out
        self._send_backlog(now, at_most=2)

    def best_effort(self, kind: str, make: Make, count: int = 1) -> list[Loan] | None:
        """Send the message that ``make`` gives for its number, or count it as dropped and return None.

        ``count`` is how many it stands for. Buffers of :data:`ZERO_COPY_BYTES` and more must stay as they are until
        every loan returned is dead.
        """
        if not self.writable:
            self.dropped[f"{kind}:no_peer" if not self.daemon else f"{kind}:busy_peer"] += count
            return None
        try:
            header, tensors = make(self.sent[kind] + 1)
            frames: list[Frame] = [packed(header), *(tensor.data for tensor in tensors)]
        except WireError as error:
            self.dropped[f"{kind}:{error.reason}"] += count
            return None
        copied = large = 0
        for frame in frames:
            size = memoryview(frame).nbytes
            if size >= ZERO_COPY_BYTES:
                large += size
            else:
                copied += size
        if not self._dealer.room_for(copied + large):
            self.dropped[f"{kind}:send_bytes"] += count
            return None
        loans = self._send(frames, copied, large)
        if loans is None:
            self.dropped[f"{kind}:busy_peer"] += count
            return None
        self.sent[kind] += count
        return loans

    def hold(self, messages: Sequence[tuple[Encode, int]]) -> None:
        """Take must-arrive messages of one kind, "step", into the backlog.

        With each comes how many messages it stands for. They are sent :meth:`together` with arrays, or in their turn.
        """
        for message, steps in messages:
            pushed_out = self.backlog.add(message, steps)
            if pushed_out:
                self.dropped["step:backlog"] += pushed_out

    def together(
        self, arrays: Sequence[tuple[str, Make, int]], memory: Memory, now: float, held: int = 0
    ) -> list[Loan]:
        """Send ``arrays``, and the last ``held`` messages that :meth:`hold` was given, as one where that can be.

        Else one by one. With each array comes how many messages it stands for; their buffers lie in ``memory``, in
        order. What cannot be sent is kept or counted as :meth:`must_arrive` and :meth:`best_effort` do; of arrays that
        cannot be made, the kind and the error are counted.
        """
        backlog = self.backlog
        first = backlog.next
        if self.writable and backlog.unsent <= held and self._dealer.room_for(len(memory.data)):
            made: list[Bundled] = []
            numbers: dict[str, int] = {}
            ready: list[tuple[str, Make, int]] = []
            for array in arrays:
                kind, make, count = array
                number = numbers[kind] if kind in numbers else self.sent[kind]
                try:
                    header, tensors = make(number + 1)
                    made.append((header, [memory.place(tensor.data) for tensor in tensors]))
                except Exception as error:  # the steps must arrive all the same
                    self._not_made(kind, error, count)
                    continue
                numbers[kind] = number + count
                ready.append(array)
            arrays = ready
            loans = self._send_bundle(made, memory)
            if loans is not None:
                if first == backlog.first:
                    self._waiting_since = now
                for kind, number in numbers.items():
                    self.sent[kind] = number
                return loans
            backlog.rewind(first)
        self._send_backlog(now, at_most=2 * held)
        loans = []
        for kind, make, count in arrays:
            try:
                loans += self.best_effort(kind, make, count) or ()
            except Exception as error:
                self._not_made(kind, error, count)
        return loans

    def filled(
        self, form: Form, filling: Groups, memory: Memory, steps: tuple[Encode, int], now: float
    ) -> list[Loan] | None:
        """Send what :meth:`together` would, by its form; return None, with nothing done, where that cannot be.

        ``filling`` are the numbers behind the stencil's first: those of the messages themselves. ``steps`` makes the
        steps' message anew, should that be needed, and tells how many it stands for.
        """
        backlog, sent, stencil = self.backlog, self.sent, form.stencil
        message, count = steps
        data = memory.data
        if not (backlog.sent_all and self.writable and self._dealer.room_for(len(data))):
            return None
        if not backlog.room_for(form.steps_bytes, count):
            return None
        seq, first = backlog.following, backlog.first
        of_messages = [seq, first, *[sent[kind] + 1 for kind, _ in form.kinds]]
        frame = fill_in(stencil, [of_messages, *filling], data, memory.spare)
        if frame is None:
            return None
        size = len(frame)
        large = size >= ZERO_COPY_BYTES
        loans = self._send([frame], 0 if large else size, size if large else 0)
        if loans is None:
            return None
        backlog.add_sent(form.steps_bytes, message, count)
        if first == seq:
            self._waiting_since = now
        for kind, messages in form.kinds:
            sent[kind] += messages
        return loans

    def _send_bundle(self, made: list[Bundled], memory: Memory) -> list[Loan] | None:
        """Send what is upcoming and what was made of arrays as one message; return None where that cannot be."""
        bundled: list[Bundled] = []
        while (held := self.backlog.upcoming()) is not None:
            bundled.append((held.frames[0], ()))
            self.backlog.sent()
        if not (bundled or made):
            return None
        data, spare = memory.data, memory.spare
        if made:
            frames = bundle([*bundled, *made], data, spare)
        elif spare > HEAD_BYTES:  # what holds nothing is enough
            frames = bundle(bundled, data[len(data) - spare :], spare - HEAD_BYTES)
        else:
            frames = bundle(bundled)
        if frames is None:
            return None
        large = len(frames[-1]) if made and len(frames[-1]) >= ZERO_COPY_BYTES else 0
        copied = sum([len(frame) for frame in frames]) - large
        return self._send(frames, copied, large)

    def _not_made(self, kind: str, error: Exception, count: int) -> None:
        if not isinstance(error, KeyError):  # an array that was left out, and counted
            self.dropped[f"{kind}:{type(error).__name__}"] += count

    def _send(self, frames: list[Frame], copied: int, large: int) -> list[Loan] | None:
        loans = self._dealer.send(frames, copied, large)
        if loans is None:
            self.writable = False
        return loans

    def _send_backlog(self, now: float, at_most: int) -> None:
        while at_most and self.writable:
            held = self.backlog.upcoming()
            if held is None:
                return
            if not self._send_held(held.frames, held.size):
                return
            if held.seq == self.backlog.first:
                self._waiting_since = now
            self._introduced |= held.seq == 1
            self.backlog.sent()
            at_most -= 1

    def _send_held(self, frames: list[Frame], size: int) -> bool:
        if len(frames) == 1:
            return self._send(frames, size, 0) is not None
        large = sum(nbytes for frame in frames[1:] if (nbytes := memoryview(frame).nbytes) >= ZERO_COPY_BYTES)
        if size > ZERO_COPY_BYTES and self._dealer.crowded(size):
            return False  # goes out later: it stays in the backlog
        return self._send(frames, size - large, large) is not None

    # --- receiving ------------------------------------------------------------------------------------------------

    def turn(self, now: float, at_most: int = 16) -> None:
        """Take in what the daemon answered and go on with the backlog; call it at every step. Never waits."""
        answered, self.writable = self._dealer.look()
        for _ in range(MOST_ANSWERS):
            if not answered:
                break
            self._receive(now)
            answered, self.writable = self._dealer.look()
        if not self.backlog.acknowledged and self.writable:
            if not self.backlog.sent_all:
                self._send_backlog(now, at_most)
            if now - self._waiting_since > self._patience:
                self._probe(now)

    def _probe(self, now: float) -> None:
        """Send the oldest unacknowledged message again: the answer tells where the daemon stands."""
        held = self.backlog.oldest()
        if held is not None:
            self._send_held(held.frames, held.size)
        self._waiting_since = now
        self._patience = min(2 * self._patience, LONGEST_PATIENCE_SECONDS)

    def _receive(self, now: float) -> None:
        frames = self._dealer.receive()
        if frames is None:
            return
        try:
            message = decode(frames)
        except WireError as error:
            self.dropped[f"answer:{error.reason}"] += 1
            return
        self._heard = now
        self._answer(message, now)

    def _answer(self, message: Message, now: float) -> None:
        if isinstance(message, Ack):
            if message.session == self.session and self.backlog.acknowledge(message.seq):
                self._waiting_since = now
                self._patience = PATIENCE_SECONDS
        elif isinstance(message, Welcome):
            if message.session == self.session:
                self._welcome(message, now)
        elif isinstance(message, Stop):
            if message.session == self.session:
                self.stop_reason = message.reason
        else:
            self.dropped["answer:kind"] += 1

    def _welcome(self, message: Welcome, now: float) -> None:
        self.daemon = message.daemon
        self._waiting_since = now
        self._patience = PATIENCE_SECONDS
        if message.next > 0:
            # The answer to an introduction asks for nothing: what follows it is on its way behind it.
            if not self._introduced:
                self.backlog.rewind(message.next)
            self._introduced = False
            return
        if self._introduction is not None and self.backlog.first > 1:  # acknowledged by an earlier daemon
            self._introduced = self._send(self._introduction(1, self.backlog.first), 1024, 0) is not None
        self.backlog.rewind(0)

    # --- ending ---------------------------------------------------------------------------------------------------

    def wait(self, clock: Callable[[], float], deadline: float) -> bool:
        """Wait until everything is acknowledged, or ``deadline``; return whether it is.

        Does not wait for a daemon that was never there.
        """
        self._waiting_since = clock()
        while True:
            now = clock()
            self._patience = min(self._patience, 0.25)
            self.turn(now, at_most=1024)
            if self.backlog.acknowledged:
                return True
            hopeless = not self.daemon and not self.writable and now - self._started > CONNECT_SECONDS
            if now >= deadline or hopeless:
                return False
            self._dealer.wait(max(1, min(20, round(1000 * (deadline - now)))))

    def wait_for_room(self, size: int, clock: Callable[[], float], deadline: float) -> bool:
        """Wait until the backlog can hold a message of this size, or ``deadline``; return whether it can."""
        while not self.backlog.room_for(size):
            now = clock()
            self.turn(now, at_most=64)
            if self.backlog.room_for(size):
                break
            if now >= deadline or not self.daemon:
                return False
            self._dealer.wait(max(1, min(20, round(1000 * (deadline - now)))))
        return True

    def close(self) -> None:
        """Let go of the socket, in a way that cannot end the process."""
        self._dealer.close(self.backlog.acknowledged)
