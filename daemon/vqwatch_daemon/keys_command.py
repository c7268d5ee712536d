"""``vqwatch keys``: make and list the keys by which trainers on other machines come in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vqwatch_daemon import keys
from vqwatch_daemon.keys import Keys, KeysError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions make, list and show."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("make", help="make a client's keys, and the daemon's the first time")
    make.add_argument("name", help="who shall use them: a person, a machine, a job")
    make.add_argument(
        "--run", action="append", metavar="PATTERN", help="runs that may be told of; repeatable [all of them]"
    )
    listing = actions.add_parser("list", help="list who may come in, and to which runs")
    show = actions.add_parser("show", help="print the daemon's public key, for VQWATCH_SERVER_KEY")
    for action in (make, listing, show):
        action.add_argument("--keys", type=Path, required=True, metavar="DIR", help="the daemon's --keys directory")


def run(arguments: argparse.Namespace) -> int:
    """Do it; 2 when it cannot be done."""
    try:
        {"make": _make, "list": _list, "show": _show}[arguments.action](arguments)
    except (KeysError, OSError) as error:
        sys.stderr.write(f"vqwatch keys: {error}\n")
        return 2
    return 0


def _make(arguments: argparse.Namespace) -> None:
    path = keys.make(arguments.keys, arguments.name, arguments.run or keys.ALL_RUNS)
    sys.stdout.write(
        f"Carry {path} to where {arguments.name} trains, by a way that nobody listens to, and remove it here. There:\n"
        f"  export VQWATCH_SERVER_KEY='{Keys(arguments.keys).public.decode()}'\n"
        f"  export VQWATCH_KEY_FILE={path.name}\n"
    )


def _list(arguments: argparse.Namespace) -> None:
    found = Keys(arguments.keys)
    for client in found.clients:
        sys.stdout.write(f"{client.name}\t{client.public.decode()}\t{', '.join(client.runs) or 'no runs'}\n")
    for problem in found.problems:
        sys.stderr.write(f"vqwatch keys: {problem}\n")


def _show(arguments: argparse.Namespace) -> None:
    sys.stdout.write(f"{Keys(arguments.keys).public.decode()}\n")
