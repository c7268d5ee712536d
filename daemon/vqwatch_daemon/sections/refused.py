"""A message that was readable and still cannot be used."""

from __future__ import annotations


class Refused(Exception):
    """Part of a run's input is not taken; ``reason`` fits a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
