"""What the next forward pass is to tell: hooks run before ``step()`` is called, so that it is worked out a step ahead.

Knows no tensor and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import schedule

if TYPE_CHECKING:
    from .collect import Collector
    from .schedule import Schedule

HOOKED_AHEAD: Final = 3
"""How many calls before a pass that wants hooks they may be put on: to do so takes long, in the first with time."""


class Ahead:
    """Says which passes want hooks. It is to :meth:`look` at step ``look_at`` - 1, and whenever it is asked earlier.

    Steps need not rise by one: the next is taken to be as far away as the last was.
    """

    def __init__(self, plan: Schedule, collector: Collector) -> None:
        self.look_at = 0
        self._plan = plan
        self._collector = collector
        self._energies_at = 0  # the last step that had them, as the first has

    def look(self, step: int, before: int, busy: bool) -> None:
        """Tell the hooks what the pass after ``step`` will want; ``before`` was the step before, negative for none.

        To put them on or to take them off is left to calls that are not ``busy``, unless they are wanted now.
        """
        plan, collector = self._plan, self._collector
        if collector.wants_energies or step < self._energies_at:
            self._energies_at = step
        apart = step - before if 0 <= before < step else 1
        energies = plan.next_after(schedule.ENERGIES, self._energies_at)
        codebooks = plan.next_after(schedule.CODEBOOKS, step)
        first = min(energies, codebooks) - HOOKED_AHEAD * apart
        soon = step >= first
        collector.expect(energies <= step + apart, codebooks <= step + apart, soon, busy)
        self.look_at = step + 1 if soon or busy else min(plan.next_special, first + 1)
