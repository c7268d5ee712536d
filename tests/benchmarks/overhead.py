"""What watching costs the training: ``python tests/benchmarks/overhead.py --json overhead.json``.

In one process, each with a model of its own, in short blocks in random order: training alone (twice: their difference
is the noise), with vqwatch as it comes, with vqwatch taking everything at every step, with the proposal's monitors,
with the same readings by ``.item()`` into TensorBoard with histograms, and into ``wandb`` offline. A block ends with a
synchronisation, so that work left to the device counts. The overhead is the median over rounds of block time over the
mean of the two bare blocks of the same round, with the interval that holds it in 95 of 100 resamplings.

All variants play ``--rounds``. Then the training that vqwatch watches goes on alone for ``--seconds``, in some blocks
bare, without hooks and the emitter paused, as it is between its blocks: trainings made alike differ by up to a percent,
as their memory falls, and one alone resolves tenths of it. The rivals are closed by then, as their threads would be in
the way. A stand-in for the daemon runs as a process of its own and acknowledges. Python's garbage collector leaves
alone what was there before, in every variant, as its full passes would be most of the noise.

Needs a CUDA device for the two sizes that the goals are stated for; without one it runs a small model on the CPU and
says so. TensorBoard and wandb are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from proposal_monitors import CodebookUse, EmaBuffers, loss_ratios, reconstruction, training_step
from workload import SIZES, Training

import vqwatch

Watch = Callable[[int, dict[str, Any]], None]
BARE = ("bare", "bare again")
OURS = "vqwatch, defaults"
EVERYTHING = dict.fromkeys(("codes", "clusters", "codebooks", "reconstruction", "gradients", "energies"), 1)


@dataclass
class Row:
    """One variant: milliseconds a step in each block, and microseconds of each call of its monitor."""

    name: str
    blocks: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    calls_alone: list[float] = field(default_factory=list)
    device_microseconds: float | None = None


class Variant:
    """A training, and what watches it; between its blocks a ``switch`` holds that still."""

    def __init__(
        self, name: str, training: Training, watch: Watch | None, switch: Callable[[bool], None] = lambda _on: None
    ) -> None:
        self.row = Row(name)
        self.training = training
        self._watch = watch
        self._switch = switch
        self._steps = 0

    def block(self, steps: int, calls: list[float] | None = None) -> float:
        """Train some steps; return how many milliseconds each took until the device was done.

        They are watched where there is a list for what the calls took, in microseconds.
        """
        watch = None if calls is None else self._watch
        if watch is not None:
            self._switch(True)
        settle(self.training.device)
        started = time.perf_counter()
        for _ in range(steps):
            out = self.training.step()
            if watch is not None and calls is not None:
                before = time.perf_counter()
                watch(self._steps, out)
                calls.append(1e6 * (time.perf_counter() - before))
                self._steps += 1
        if watch is not None:
            self._switch(False)
        settle(self.training.device)
        return 1e3 * (time.perf_counter() - started) / steps

    def device_time(self, steps: int) -> None:
        """Note how long the device is busy with the monitor on the training's stream, a step."""
        self._switch(True)
        pairs = []
        for _ in range(steps):
            out = self.training.step()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            if self._watch is not None:
                self._watch(self._steps, out)
            end.record()
            self._steps += 1
            pairs.append((begin, end))
        torch.cuda.synchronize()
        self.row.device_microseconds = 1e3 * statistics.mean(begin.elapsed_time(end) for begin, end in pairs)


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def sink(folder: str) -> Iterator[str]:
    """Run the stand-in for the daemon; yield its endpoint."""
    endpoint = f"ipc://{folder}/sink.sock"
    command = [sys.executable, str(Path(__file__).with_name("sink.py")), endpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield endpoint
        print("the stand-in for the daemon:", process.communicate()[0].strip())


def with_vqwatch(stack: ExitStack, training: Training, endpoint: str, **options: Any) -> tuple[Watch, vqwatch.Emitter]:
    """Return a watch by vqwatch."""
    emitter = vqwatch.attach(training.model, training.optimizer, endpoint=endpoint, run="overhead", **options)
    stack.callback(emitter.close)
    return (lambda step, out: emitter.step(step, **out)), emitter


def with_proposal(training: Training) -> Watch:
    """Return the proposal's monitors, every step, as its integration has them."""
    use = CodebookUse(training.size.codebooks, training.size.codes)
    buffers = EmaBuffers(list(training.model.layers))

    def watch(_step: int, out: dict[str, Any]) -> None:
        use.update(out["codes"].reshape(-1, training.size.codebooks))
        buffers.update()
        reconstruction(out["original"], out["reconstructed"].detach(), out["mask"])
        losses = {name: value.detach() for name, value in out["losses"].items()}
        training_step(training.model, training.optimizer, losses)
        loss_ratios(losses)

    return watch


def readings(training: Training, out: dict[str, Any]) -> dict[str, float]:
    """Return the usual readings the usual way: a number for each, by ``.item()``."""
    found = {f"loss/{name}": value.item() for name, value in out["losses"].items()}
    found["gradient_norm"] = out["grad_norm"].item()
    for layer in range(training.size.codebooks):
        counts = torch.bincount(out["codes"][..., layer].flatten(), minlength=training.size.codes)
        shares = counts / counts.sum()
        found[f"codebook/{layer}/utilization"] = (counts > 0).float().mean().item()
        found[f"codebook/{layer}/perplexity"] = torch.exp(-torch.xlogy(shares, shares).sum()).item()
    found.update(reconstruction(out["original"], out["reconstructed"].detach(), out["mask"]))
    return found


def with_tensorboard(stack: ExitStack, training: Training, folder: str) -> Watch | None:
    """Return a watch by ``.item()`` and TensorBoard: scalars, and a histogram of every layer's codes."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(folder)
    stack.callback(writer.close)

    def watch(step: int, out: dict[str, Any]) -> None:
        for name, value in readings(training, out).items():
            writer.add_scalar(name, value, step)
        for layer in range(training.size.codebooks):
            writer.add_histogram(f"codes/{layer}", out["codes"][..., layer], step)

    return watch


def with_wandb(stack: ExitStack, training: Training, folder: str) -> Watch | None:
    """Return a watch by ``.item()`` and wandb, offline."""
    try:
        import wandb
    except ImportError as error:
        print(f"wandb: {error}")
        return None
    os.environ.update(WANDB_SILENT="true", WANDB_MODE="offline", WANDB_DIR=folder, WANDB_CONSOLE="off")
    run = wandb.init(project="overhead", mode="offline", dir=folder)
    stack.callback(wandb.teardown)
    stack.callback(run.finish)
    return lambda step, out: run.log(readings(training, out), step=step)


def switch_of(emitter: vqwatch.Emitter) -> Callable[[bool], None]:
    """Return what switches an emitter on and off; off, the model has no hooks, as if nobody had ever watched."""
    paused: vqwatch.emitter.Pause | None = None
    quantizers = emitter._quantizers

    def switch(on: bool) -> None:
        nonlocal paused
        if not on:
            quantizers.remove()
            paused = emitter.pause()
        elif paused is not None:
            quantizers.install(emitter._collector)
            paused.resume()
            paused = None

    return switch


def measure(
    size: str, device: torch.device, rounds: int, steps: int, seconds: float, seed: int
) -> tuple[list[Row], list[str]]:
    """Return the rows of one size, and notes."""
    notes: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        endpoint = stack.enter_context(sink(folder))
        rivals = stack.enter_context(ExitStack())
        variants: list[Variant] = [Variant(name, Training(SIZES[size], device), None) for name in BARE]

        def add(name: str, make: Callable[[Training], Watch | None]) -> None:
            training = Training(SIZES[size], device)
            watch = make(training)
            if watch is None:
                notes.append(f"{name}: not installed, left out")
            else:
                variants.append(Variant(name, training, watch))

        emitters: dict[str, vqwatch.Emitter] = {}

        def add_ours(name: str, **options: Any) -> Variant:
            training = Training(SIZES[size], device)
            watch, emitters[name] = with_vqwatch(stack, training, endpoint, **options)
            variants.append(Variant(name, training, watch, switch_of(emitters[name])))
            return variants[-1]

        ours = add_ours(OURS)
        if rounds:
            add_ours("vqwatch, everything every step", every=EVERYTHING, budget=float("inf"))
            add("the proposal's monitors", with_proposal)
            add(".item() + TensorBoard histograms", lambda t: with_tensorboard(rivals, t, f"{folder}/tensorboard"))
            add(".item() + wandb.log, offline", lambda t: with_wandb(rivals, t, folder))
        for variant in variants:
            variant.block(60 if variant is ours else 20, [])
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        shuffled = random.Random(seed)
        for _ in range(rounds):
            for variant in shuffled.sample(variants, len(variants)):
                variant.row.blocks.append(variant.block(steps, variant.row.calls))
        rivals.close()
        rows_alone = [variant.row for variant in variants if variant.row.name in (*BARE, OURS)]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for row in shuffled.sample(rows_alone, len(rows_alone)):
                row.alone.append(ours.block(steps, row.calls_alone if row is ours.row else None))
        if device.type == "cuda" and size != "launch-bound":  # there the device waits for the host in between
            for variant in variants[:4]:
                variant.device_time(100 if variant is ours else 20)
        for name, emitter in emitters.items():
            device_mib, pinned_mib = emitter.staged_bytes / 2**20, emitter.pinned_bytes / 2**20
            notes.append(
                f"{name}: cadence {emitter.every}, dropped {emitter.dropped}, its own ratio {emitter.overhead}, "
                f"staging {device_mib:.0f} MiB on the device, {pinned_mib:.0f} MiB pinned"
            )
    return [variant.row for variant in variants], notes


def relative(blocks: list[float], bare: Sequence[list[float]]) -> list[float]:
    """Return each block's time over the mean of the bare blocks of its round, less one."""
    return [block / statistics.mean(pair) - 1 for block, pair in zip(blocks, zip(*bare, strict=True), strict=True)]


def interval(ratios: list[float], resamplings: int = 2000) -> tuple[float, float, float]:
    """Return the median, and the bounds of its 95 % bootstrap interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(resamplings))
    return medians[int(0.025 * resamplings)], statistics.median(ratios), medians[int(0.975 * resamplings)]


def table(rows: list[Row]) -> str:
    """Return the table, in Markdown."""
    lines = [
        "| variant | ms a step | overhead | 95 % | call mean µs | call p50 µs | call p99 µs | device µs a step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, blocks_of, calls_of in (
        ("", lambda row: row.blocks, lambda row: row.calls),
        (", alone", lambda row: row.alone, lambda row: row.calls_alone),
    ):
        bare = [blocks_of(row) for row in rows if row.name in BARE]
        for row in rows:
            blocks, calls = blocks_of(row), calls_of(row)
            if len(blocks) < 2:
                continue
            low, middle, high = interval(relative(blocks, bare))
            mean = p50 = p99 = busy = ""
            if len(calls) > 1:
                centiles = statistics.quantiles(calls, n=100)
                mean, p50, p99 = (f"{value:.0f}" for value in (statistics.mean(calls), centiles[49], centiles[98]))
            if row.device_microseconds is not None and (name or not row.alone):
                busy = f"{row.device_microseconds:.0f}"
            lines.append(
                f"| {row.name}{name}, {len(blocks)} blocks | {statistics.median(blocks):.2f} | {100 * middle:+.2f} % | "
                f"{100 * low:+.2f} to {100 * high:+.2f} % | {mean} | {p50} | {p99} | {busy} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*")
    parser.add_argument("--rounds", type=int, default=24, help="of all variants; 0 leaves the rivals out")
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0, help="for bare and vqwatch's defaults alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"no GPU: {platform.processor()} CPU"
    print(f"{where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {' '.join(sys.argv)}")
    results: dict[str, Any] = {"device": where, "torch": torch.__version__, "command": sys.argv}
    for size in arguments.sizes or (["gpu-bound", "proposal", "launch-bound"] if device.type == "cuda" else ["cpu"]):
        rows, notes = measure(size, device, arguments.rounds, arguments.steps, arguments.seconds, arguments.seed)
        print(f"\n{size}: {SIZES[size]}\n\n{table(rows)}\n", flush=True)
        print("\n".join(notes), flush=True)
        results[size] = {"rows": [asdict(row) for row in rows], "notes": notes}
        if arguments.json:
            arguments.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
