"""What the history keeps of an alert that changed its state."""

from __future__ import annotations

from typing import Any

from vqwatch_rules import Transition


def entry(transition: Transition) -> dict[str, Any]:
    """Return a transition as JSON-able data; ``reason`` is there only where no reading ended the alert."""
    alert = transition.alert
    return {
        "run": alert.run,
        "time": transition.now,
        "step": transition.step,
        "name": alert.name,
        "severity": alert.severity,
        "from": transition.from_,
        "to": transition.to,
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "value": alert.value,
        **({"reason": transition.reason} if transition.reason else {}),
    }
