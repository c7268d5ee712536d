"""``vqwatch``: one command, its subcommands each in their own module and imported when called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NamedTuple


class Command(NamedTuple):
    """A subcommand: the module with its ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""

    module: str
    help: str


COMMANDS: Final = {
    "daemon": Command("vqwatch_daemon.serving", "watch training runs: metrics, page and alerts"),
    "rules": Command("vqwatch_daemon.rules_command", "check, export and try out alert rules"),
    "record": Command("vqwatch_daemon.recording.record_command", "write a run's messages to a file"),
    "replay": Command("vqwatch_daemon.recording.replay_command", "play a recording into a daemon"),
    "keys": Command("vqwatch_daemon.keys_command", "make and list the keys of trainers on other machines"),
    "top": Command("vqwatch_daemon.top", "the page's first screen in a terminal, against any daemon"),
    "report": Command("vqwatch_daemon.report", "what happened in a run, out of its history: HTML, PNG or JSON"),
    "evaluate": Command("vqwatch_daemon.evaluate.command", "the same metrics over a validation set, from checkpoints"),
    "demo": Command("vqwatch_daemon.demo", "a real training with a fault, watched live"),
}

ONE_CORE: Final = frozenset({"daemon", "record", "replay", "rules"})
"""Subcommands that run beside a training. Their matrices are small: a BLAS with a thread for each core would spin on
the cores that the training needs, and be 50 times slower itself where those are busy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code: 0 for success, 2 for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="vqwatch", description="Watches RQ-VAE and residual-VQ training.")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((item for item in (sys.argv[1:] if argv is None else argv) if not item.startswith("-")), "")
    if wanted in ONE_CORE:
        for library in ("OPENBLAS", "OMP", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    runners: dict[str, Callable[[argparse.Namespace], int]] = {}
    for name, command in COMMANDS.items():
        subparser = choices.add_parser(name, help=command.help, description=command.help)
        if name == wanted:
            module = import_module(command.module)
            module.add_arguments(subparser)
            runners[name] = module.run
    arguments = parser.parse_args(argv)
    return runners[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
