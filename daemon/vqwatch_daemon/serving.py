"""``vqwatch daemon``: settings in, a daemon until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from vqwatch_daemon import heap, settings
from vqwatch_daemon.app import Daemon
from vqwatch_daemon.keeper import StateError
from vqwatch_daemon.keys import KeysError
from vqwatch_daemon.receiver import ReceiverError
from vqwatch_daemon.sinks import missing_library
from vqwatch_daemon.web_config import WebConfigError
from vqwatch_rules import RuleError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the daemon."""
    settings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop; 2 when it cannot be served as asked."""
    try:
        chosen = settings.load(arguments, os.environ)
        logging.basicConfig(
            level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        if missing := [text for text in map(missing_library, chosen.sinks) if text]:
            raise settings.SettingsError("; ".join(missing))
        daemon = Daemon(chosen)
    except (settings.SettingsError, RuleError, ReceiverError, StateError, KeysError, WebConfigError, OSError) as error:
        sys.stderr.write(f"vqwatch daemon: {error}\n")
        return 2

    def stop(_signal: int, _frame: FrameType | None) -> None:
        daemon.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    heap.settle()
    daemon.run()
    return 0
