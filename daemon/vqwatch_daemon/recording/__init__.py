"""Recorded runs: written while they happen, played into a daemon later, and judged by other rules.

vqwatch record -o run.vqrec &            # listens like a daemon and only writes down
vqwatch replay run.vqrec --speed 10      # plays it into a daemon
vqwatch rules test --on run.vqrec        # which alerts would have fired, and when
"""

from vqwatch_daemon.recording.backtest import Event, backtest
from vqwatch_daemon.recording.files import Recorder, RecordingError, Renumber, read

__all__ = ["Event", "Recorder", "RecordingError", "Renumber", "backtest", "read"]
