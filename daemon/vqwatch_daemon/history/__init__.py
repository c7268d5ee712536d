"""The store: readings, code usage and the alert log of every run, kept across restarts and thinned with age.

>>> import tempfile
>>> from pathlib import Path
>>> store = History(Path(tempfile.mkdtemp()) / "history.db")
>>> store.record("demo", 10, 1_790_000_000.0, {"loss": {("total",): 0.5}})
True
>>> store.close()
>>> store.series("demo", ["loss"])["loss"]["value"]
[[0.5]]

One SQLite file in WAL mode. ``History`` writes it from a thread of its own and never makes its caller wait;
``HistoryReader`` reads it, beside a daemon or without one.
"""

from __future__ import annotations

from vqwatch_daemon.history.limits import Limits
from vqwatch_daemon.history.reader import HistoryReader
from vqwatch_daemon.history.store import History

__all__ = ["History", "HistoryReader", "Limits"]
