"""What a call of ``step()`` does for the steps before it: copy, send, take gradients, listen, tell the schedule.

One thing a call, so that none takes long, and in most calls nothing: right after a training step every question costs a
microsecond, so that it is worked out beforehand up to when there is none to ask. Knows no tensor and no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .link import Link
    from .ordinary import Ordinary
    from .outbox import Outbox
    from .schedule import Schedule

LISTEN_SECONDS: Final = 2.0
"""How often a training on a device listens to the daemon, which answers once a second where all is well."""

MOST_UNHEARD_CALLS: Final = 3
"""Calls that may find something else to do when it is time to listen; the next one listens first."""

CATCH_UP_SECONDS: Final = 0.05
"""How often it does where messages are to be sent again."""

ACCOUNT_STEPS: Final = 24
"""After how many steps the schedule is told what they cost; at the latest it is when the daemon is listened to."""

MANY_PENDING: Final = 6
"""Where so many wait to be sent, one call does all that is due."""

FREED: Final = 5
"""Steps that were copied, and are freed by a call that does little else: to free all of them at once takes long."""

FREED_BESIDE_SENDING: Final = 1
"""Steps that are freed by one that sends arrays. The next look frees the rest."""

FEWEST_IN_PART: Final = 6
"""Where fewer steps are copied together, because their codes are large, there are no calls to copy them in parts."""


class Errands:
    """The errands of one emitter.

    Before step ``calm_step``, and the moment ``calm_until``, a call that keeps a step has none. ``steps`` were taken
    since the schedule was last told, which cost ``own_seconds``, ``in_kinds`` of them for what is taken now and then.
    """

    def __init__(self, link: Link, outbox: Outbox, plan: Schedule) -> None:
        self.calm_step = 0
        self.calm_until = 0.0
        self.steps = 0
        self.own_seconds = self.in_kinds = 0.0
        self._link = link
        self._outbox = outbox
        self._plan = plan
        self._listened = 0.0
        self._unheard_calls = 0
        self._accounted = 0.0
        self._left = False  # all that was due to the next call, by the last one

    @property
    def crowded(self) -> bool:
        """Return whether so much waits to be sent that a call is to do all that is due."""
        return len(self._outbox.pending) >= MANY_PENDING

    def run(self, ordinary: Ordinary, now: float, busy: bool) -> bool:
        """Do what is due: copy what is kept, send what has arrived, take gradients, listen, account.

        One a call, and nothing where it was ``busy``, unless the last one was too; all of them where much is due.
        Returns whether that is enough for this call.
        """
        pending, unheard = len(self._outbox.pending), now - self._listened
        self._unheard_calls += unheard >= LISTEN_SECONDS
        full = busy and ordinary.full
        crowded = full or self.crowded
        much = crowded or ordinary.keeper.most == 1
        self._left = busy and not (much or self._left)
        if self._left:
            return True
        if self._unheard_calls > MOST_UNHEARD_CALLS:
            self.listen(now)
            self.account(now, ordinary)
            if not much:
                return True
            unheard = 0.0
        due = full or ordinary.due(now)
        if ordinary.gradient_parts and (much or not (due or pending)):
            self.in_kinds += ordinary.take_gradients()
            if not much:
                return True
        if due:
            ordinary.copy(in_part=not much and ordinary.keeper.most >= FEWEST_IN_PART)
            if not much:
                return True
        sent = self.send(now, in_part=not crowded) if pending and not ordinary.capturing() else None
        ordinary.let_go(FREED_BESIDE_SENDING if sent else FREED)
        if sent is not None and not much:
            return True
        if unheard >= LISTEN_SECONDS:
            self.listen(now)
            self.account(now, ordinary)
        elif unheard >= CATCH_UP_SECONDS and self._link.behind:
            self.listen(now)
        elif self.steps >= ACCOUNT_STEPS:
            self.account(now, ordinary)
        else:
            return busy
        return busy or not much

    def rest(self, ordinary: Ordinary, now: float, until: int) -> None:
        """Work out up to when calls have no errands; at step ``until`` they have, at the latest."""
        if self._outbox.pending or ordinary.under_way:
            self.calm_step = 0
            return
        keeper = ordinary.keeper
        left = min(keeper.most - len(keeper.held), ACCOUNT_STEPS - self.steps)
        self.calm_step = min(keeper.last + left, until)
        listen = self._listened + (CATCH_UP_SECONDS if self._link.behind else LISTEN_SECONDS)
        self.calm_until = min(listen, ordinary.due_at(now))

    def send(self, now: float, in_part: bool = False) -> float | None:
        """Send what has arrived; return the seconds that arrays took, 0 for what goes before, None for nothing."""
        seconds = self._outbox.send(now, in_part)
        if seconds is not None:
            self.in_kinds += seconds
        return seconds

    def listen(self, now: float) -> None:
        """Take in what the daemon answered."""
        self._listened = now
        self._unheard_calls = 0
        self._link.turn(now)

    def unheard(self, now: float) -> bool:
        """Return whether it is time to listen."""
        return now - self._listened >= LISTEN_SECONDS

    def account(self, now: float, ordinary: Ordinary | None) -> None:
        """Tell the schedule what the steps since the last time took."""
        steps = self.steps
        if self._accounted and steps:
            seconds = (now - self._accounted) / steps
            self._plan.observe(self.own_seconds / steps, self.in_kinds / steps, seconds, steps)
            if ordinary is not None:
                ordinary.pace()
        self.skip(now)

    def skip(self, now: float) -> None:
        """Let nothing before now be told to the schedule any more."""
        self._accounted = now
        self.own_seconds = self.in_kinds = 0.0
        self.steps = 0
