"""``vqwatch evaluate``: a checkpoint, or each new one of a directory, over a whole validation set.

Exit codes: 0 evaluated, and no rule as bad as ``--fail-on`` holds; 1 one does; 2 it could not be evaluated as asked.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from vqwatch_daemon.evaluate import checkpoints, judging, measuring, showing
from vqwatch_daemon.evaluate.checkpoints import CheckpointError
from vqwatch_daemon.evaluate.forward import ForwardError
from vqwatch_daemon.evaluate.pushing import Push, PushError, keys
from vqwatch_daemon.evaluate.quantizers import CodebooksUnknown
from vqwatch_daemon.evaluate.watchlist import Watchlist, listed
from vqwatch_rules import RuleError, RuleSet

if TYPE_CHECKING:
    from torch import nn

FAILURES = (CheckpointError, ForwardError, CodebooksUnknown, PushError, measuring.NamedNothing, RuleError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vqwatch evaluate``."""
    parser.add_argument("--model", required=True, metavar="MODULE:NAME", help="function that returns the model")
    parser.add_argument("--data", required=True, metavar="MODULE:NAME", help="batches, or a function that returns them")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="PATH", help="the state to evaluate")
    what.add_argument("--watch", type=Path, metavar="DIR", help="evaluate each checkpoint that appears here, once")
    parser.add_argument("--forward", metavar="MODULE:NAME", help="function(model, batch) -> mapping, for other models")
    parser.add_argument("--device", default="cpu", help="where the model runs [cpu]")
    parser.add_argument("--codebook-size", type=int, metavar="K", help="codes of each layer [told from the model]")
    parser.add_argument("--step", type=int, help="training step of the checkpoint [told from it, or from its name]")
    parser.add_argument("--rules", type=Path, action="append", default=[], metavar="FILE", help="on top of the pack")
    parser.add_argument("--fail-on", choices=judging.SEVERITIES, help="exit 1 when a rule this bad, or worse, holds")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each checkpoint, and no table")
    parser.add_argument("--push", metavar="ENDPOINT", help="send the evaluation to a running daemon")
    parser.add_argument("--push-seconds", type=float, default=10.0, help="how long a silent daemon is waited for [10]")
    parser.add_argument("--run", default=os.environ.get("VQWATCH_RUN", "evaluation"), help="run that it belongs to")
    parser.add_argument("--poll-seconds", type=float, default=2.0, help="how often --watch looks [2]")
    parser.add_argument("--unsafe-pickle", action="store_true", help="load checkpoints that may run code on loading")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as asked; see the module for the exit codes."""
    try:
        job = Job.of(arguments)
        if arguments.watch is None:
            return job.evaluate(arguments.checkpoint)
        return watch(job, arguments.watch, arguments.poll_seconds)
    except FAILURES as error:
        sys.stderr.write(f"vqwatch evaluate: {error}\n")
        return 2


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that evaluating one checkpoint needs besides the checkpoint."""

    model: nn.Module
    data: Any
    rules: RuleSet
    options: argparse.Namespace

    @classmethod
    def of(cls, options: argparse.Namespace) -> Job:
        """Build the model and read the rules; raises what :func:`run` reports."""
        rules = judging.rules_for_evaluation(options.rules)
        factory = measuring.named(options.model)
        data = measuring.named(options.data)
        model = factory() if not hasattr(factory, "load_state_dict") or isinstance(factory, type) else factory
        return cls(model.to(options.device), data, rules, options)

    def evaluate(self, path: Path) -> int:
        """Evaluate one checkpoint, show it and send it; return the exit code that it asks for."""
        options = self.options
        state, told = checkpoints.read(path, options.device, unsafe_pickle=options.unsafe_pickle)
        checkpoints.put(state, self.model)
        step = options.step if options.step is not None else told or 0
        adapter = measuring.named(options.forward) if options.forward else None
        with Bar(path.name) as bar:
            found = measuring.measure(
                self.model,
                measuring.batches(self.data),
                device=options.device,
                adapter=adapter,
                codebook_size=options.codebook_size,
                progress=bar,
                push=self._push(step),
            )
        readings = judging.readings(found.corpus, step, found.losses)
        judgement = judging.judge(
            self.rules, options.run, step, readings, [int(size) for size in found.corpus.sizes], time.time()
        )
        if options.json:
            sys.stdout.write(showing.as_json(str(path), step, found.samples, readings, judgement) + "\n")
            sys.stdout.flush()
        else:
            showing.show(Console(), str(path), found.samples, readings, judgement)
        return int(judgement.fails(options.fail_on))

    def _push(self, step: int) -> Callable[[tuple[int, ...]], Push] | None:
        options = self.options
        if options.push is None:
            return None
        found = keys(os.environ)
        return lambda sizes: Push(options.push, options.run, step, sizes, timeout=options.push_seconds, keys=found)


class Bar:
    """A progress bar on the error output, where that is a terminal."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __call__(self, done: int, total: int | None) -> None:
        """Show that so many batches are done."""
        self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def watch(job: Job, directory: Path, poll_seconds: float) -> int:
    """Evaluate every checkpoint of a directory, those that are there and those that come, until SIGTERM or SIGINT.

    One that cannot be read is left until it changes and keeps no other waiting. One that the daemon did not take is
    evaluated again until it does, and those after it wait. Returns 1 when ``--fail-on`` was met by any, else 0.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: stopping.set())
    watchlist = Watchlist(still_seconds=poll_seconds)
    refused: Path | None = None
    worst = 0
    while not stopping.is_set():
        ready = watchlist.look(listed(directory), time.monotonic())
        for stamp in ready:
            if stopping.is_set():
                break
            try:
                worst = max(worst, job.evaluate(stamp.path))
            except FileNotFoundError:
                continue
            except PushError as error:
                if refused != stamp.path:
                    sys.stderr.write(f"vqwatch evaluate: {stamp.path.name} waits: {error}\n")
                    sys.stderr.flush()
                refused = stamp.path
                break
            except (CheckpointError, ForwardError) as error:
                sys.stderr.write(f"vqwatch evaluate: {error}\n")
            watchlist.settle(stamp)
        stopping.wait(poll_seconds)
    return worst
