"""``vqwatch rules``: check rule files, export them for Prometheus, try them on recordings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vqwatch.wire import Message
from vqwatch_daemon.catalogue import CATALOGUE
from vqwatch_daemon.recording import Event, RecordingError, backtest, read
from vqwatch_rules import RuleError, RuleSet, load
from vqwatch_rules.export import export
from vqwatch_rules.promql import Timing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say what is wrong with rule files, or that nothing is")
    check.add_argument("files", nargs="*", type=Path, help="rule files or directories [the shipped pack alone]")
    out = actions.add_parser("export", help="write the rules as Prometheus alerting rules")
    out.add_argument("files", nargs="*", type=Path)
    out.add_argument("--format", choices=("prometheus", "prometheusrule"), default="prometheus")
    out.add_argument("--step-seconds", type=float, default=1.0, help="what a training step takes [1]")
    out.add_argument("--scrape-seconds", type=float, default=15.0, help="Prometheus' scrape interval [15]")
    out.add_argument("--runbook-base", default=None, help="address that runbook links begin with")
    test = actions.add_parser("test", help="say which alerts would have fired on a recording")
    test.add_argument("--on", type=Path, action="append", required=True, metavar="RECORDING", help="repeatable")
    test.add_argument("--rules", type=Path, action="append", default=[], metavar="FILE", help="repeatable")
    test.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="FILE", help="show what would differ"
    )
    test.add_argument("--window", type=int, default=100, help="as for the daemon [100]")
    test.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Do it; 2 for rule files or recordings that cannot be used."""
    try:
        return {"check": _check, "export": _export, "test": _test}[arguments.action](arguments)
    except RuleError as error:
        sys.stderr.write(f"{error}\n")
    except (RecordingError, OSError) as error:
        sys.stderr.write(f"vqwatch rules: {error}\n")
    return 2


def _load(files: Sequence[Path], runbook_base: str | None = None) -> RuleSet:
    return load(files, {name: metric.labels for name, metric in CATALOGUE.items()}, runbook_base=runbook_base)


def _check(arguments: argparse.Namespace) -> int:
    rules = _load(arguments.files)
    sys.stdout.write(f"{len(rules.rules)} rules, all in order\n")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    timing = Timing(step_seconds=arguments.step_seconds, scrape_seconds=arguments.scrape_seconds)
    sys.stdout.write(export(_load(arguments.files, arguments.runbook_base), arguments.format, timing=timing))
    return 0


def _test(arguments: argparse.Namespace) -> int:
    def messages() -> Iterator[tuple[float, Message]]:
        for path in arguments.on:
            yield from read(path)

    events = backtest(messages(), _load(arguments.rules), window=arguments.window)
    if not arguments.compare:
        _show(arguments, [(" ", event) for event in events])
        return 0
    others = backtest(messages(), _load(arguments.compare), window=arguments.window)
    marked = [("-", event) for event in events if event not in others]
    marked += [("+", event) for event in others if event not in events]
    _show(arguments, sorted(marked, key=lambda item: (item[1].seconds, item[1].alert, item[0])))
    return 0


def _show(arguments: argparse.Namespace, marked: Sequence[tuple[str, Event]]) -> None:
    if arguments.json:
        sys.stdout.write(json.dumps([{"change": mark.strip(), **asdict(event)} for mark, event in marked]) + "\n")
        return
    table = Table("", "step", "s", "severity", "alert", "of", "until step")
    for mark, event in marked:
        labels = ", ".join(f"{key}={value}" for key, value in event.labels)
        end = "still fires" if event.resolved_step is None else str(event.resolved_step)
        table.add_row(
            mark, str(event.step), f"{event.seconds:.1f}", event.severity, event.alert, f"{event.run} {labels}", end
        )
    Console().print(table if marked else "no difference" if arguments.compare else "no alert would have fired")
