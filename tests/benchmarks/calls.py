"""What each call of ``step()`` takes, by what it did: ``python calls.py --size gpu-bound --seconds 60``.

The average of a call says little: most only keep a step, others copy or send what was kept. Here the emitter's methods
are wrapped, each training step is followed by one call, and the table tells for every kind of call how often it came
and how long it took. ``--spans`` also times what is inside, and prints for each kind of call where its time goes
(exclusive of what is timed within; a clock costs a microsecond or two).

Without a CUDA device it runs on the host: a copy of the package that takes the host for the device, as ``on_host.py``
makes it, with the copies themselves left out, beside a training that leaves the caches as cold as one on a device does.
The Python is then the same, and what CUDA takes is missing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from overhead import settle, sink
from workload import SIZES, Size, Training

HERE = Path(__file__).resolve().parent
WARM_UP = 250
"""Steps before the first that counts: what is taken every 200 steps was taken by then, and its memory is there."""


class Spans:
    """Who was called in one call of ``step()``, and how long each took without what it called, in microseconds."""

    def __init__(self, timed: bool) -> None:
        self.names: list[str] = []
        self.own: list[tuple[str, float]] = []
        self._timed = timed
        self._within: list[float] = []

    def wrap(self, owner: Any, method: str, name: str | Callable[..., str]) -> None:
        """Note every call of a method by this name, or the one that its arguments give."""
        call = getattr(owner, method)
        name_of, fixed = (name, "") if callable(name) else (None, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            name = fixed if name_of is None else name_of(*arguments)
            self.names.append(name)
            if not self._timed:
                return call(*arguments, **named)
            self._within.append(0.0)
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                took = 1e6 * (time.perf_counter() - started)
                inside = self._within.pop()
                if self._within:
                    self._within[-1] += took
                self.own.append((name, took - inside))

        setattr(owner, method, wrapped)

    def clear(self) -> None:
        """Begin another call."""
        self.names.clear()
        self.own.clear()


def wrap_all(spans: Spans, watch: Any, inner: bool) -> None:
    """Wrap what tells calls apart, and with ``inner`` what they are made of."""
    from vqwatch import (
        backlog,
        batch,
        collect,
        emitter,
        entry,
        errands,
        held,
        layout,
        link,
        ordinary,
        outbox,
        routine,
        slots,
        staging,
        telling,
    )
    from vqwatch.codebooks import QuantizerLayer
    from vqwatch.wire import stencil

    for owner, method, name in (
        (ordinary.Ordinary, "_look", "looks"), (ordinary.Ordinary, "_begin", "copies numbers"),
        (ordinary.Ordinary, "_finish", "copies arrays"), (ordinary.Ordinary, "_copy_together", "copies both"),
        (batch.Unlike, "apart", "takes apart"), (outbox.Outbox, "_make_messages", "makes messages"),
        (outbox.Outbox, "send", "sends"),
        (errands.Errands, "listen", "listens"), (errands.Errands, "account", "accounts"),
        (collect.Collector, "gradient_norms", "gradients"), (emitter.Emitter, "_step", "general"),
        (collect.Collector, "take_beside", lambda _, __, due, *___: f"takes {' + '.join(sorted(due))}"),
    ):  # fmt: skip
        spans.wrap(owner, method, name)
    if inner:
        for owner, method in (
            (held.Keeper, "keep"), (held.Keeper, "take"), (held.Held, "look"), (ordinary, "any_changed"),
            (routine.Routine, "fits"), (routine.Routine, "tensors_of"), (ordinary.Ordinary, "copy"),
            (ordinary.Ordinary, "_done"), (ordinary.Ordinary, "capturing"),
            (slots.Slot, "fetch"), (stencil.Stencil, "__init__"), (batch.Regular, "__init__"),
            (collect.Collector, "take_clusters"), (QuantizerLayer, "read"),
            (slots, "_run"), (slots, "_foreach_copy"), (slots, "_record"), (staging.Staging, "free_small"),
            (layout.Layout, "__init__"), (outbox.Outbox, "_send_batch"), (outbox.Outbox, "_send_regular"),
            (link.Link, "together"), (link.Link, "filled"), (link.Link, "_send"), (link, "bundle"), (link, "fill_in"),
            (telling.Teller, "messages"), (telling.Teller, "filling"), (telling.Teller, "form"),
            (telling, "encode_step"), (entry.CodesBuild, "together"), (backlog.Backlog, "add"),
            (backlog.Backlog, "add_sent"), (backlog.Backlog, "acknowledge"), (emitter.Emitter, "_expect"),
            (emitter.Emitter, "_attend"), (errands.Errands, "run"), (errands.Errands, "rest"),
            (emitter.Emitter, "_take_beside"), (type(watch._capture), "stage"),
        ):  # fmt: skip
            spans.wrap(owner, method, f"  {owner.__name__.rpartition('.')[2]}.{method}")


Call = tuple[str, float, list[tuple[str, float]], int]
"""What it did, how long it took, its spans, and its step."""


def measure(size: Size, device: torch.device, seconds: float, budget: float, inner: bool) -> list[Call]:
    """Train for some seconds, and return the calls."""
    import vqwatch

    calls: list[Call] = []
    spans = Spans(inner)
    with ExitStack() as stack:
        training = Training(size, device)
        endpoint = stack.enter_context(sink(stack.enter_context(tempfile.TemporaryDirectory())))
        watch = vqwatch.attach(training.model, training.optimizer, endpoint=endpoint, run="calls", budget=budget)
        stack.callback(watch.close)
        wrap_all(spans, watch, inner)
        cold = torch.randn(8 << 20) if device.type == "cpu" else None
        end, step = time.monotonic() + seconds, 0
        gc.collect()
        gc.freeze()
        while time.monotonic() < end:
            out = training.step()
            if cold is not None:
                cold.add_(1.0)
            spans.clear()
            started = time.perf_counter()
            watch.step(step, **out)
            took = 1e6 * (time.perf_counter() - started)
            did = [name for name in dict.fromkeys(spans.names) if not name.startswith(" ")]
            calls.append((" + ".join(did) or "keep only", took, list(spans.own), step))
            step += 1
        settle(device)
        print(f"{step} steps, cadence {watch.every}, dropped {watch.dropped}, its own ratio {watch.overhead}")
    return calls


def row(name: str, times: Sequence[float], of: int) -> str:
    """Return a line of the table."""
    in_order = sorted(times)
    p99 = in_order[min(len(in_order) - 1, int(0.99 * len(in_order)))]
    return (
        f"| {name} | {100 * len(times) / of:.1f} % | {statistics.median(times):.0f} | {statistics.mean(times):.0f} | "
        f"{p99:.0f} | {in_order[-1]:.0f} |"
    )


def table(warm_up: Sequence[Call], calls: Sequence[Call]) -> str:
    """Return the table, in Markdown; with the warm-up, two lines."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for did, took, _, _ in calls:
        kinds[did].append(took)
    lines = ["| a call that does | how often | p50 µs | mean µs | p99 µs | most µs |", "|---|---:|---:|---:|---:|---:|"]
    lines += [row(did, times, len(calls)) for did, times in sorted(kinds.items(), key=lambda kind: -len(kind[1]))]
    from_100 = [call for call in (*warm_up, *calls) if call[3] >= 100]
    for name, all_calls in (("all", calls), ("from step 100 on", from_100), ("before, the first", warm_up)):
        lines.append(row(f"{name} {len(all_calls)} calls", [call[1] for call in all_calls], len(all_calls)))
    return "\n".join(lines)


def inside(calls: Sequence[Call]) -> str:
    """Return where the time of each kind of call goes, means of its middle eight tenths, in Markdown."""
    kinds: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        kinds[call[0]].append(call)
    lines = ["| in a call that does | µs |", "|---|---:|"]
    for did, found in kinds.items():
        middle = sorted(found, key=lambda call: call[1])[len(found) // 10 : len(found) - len(found) // 10]
        if len(middle) < 8:
            continue
        spent: dict[str, float] = defaultdict(float)
        for _, took, own, _ in middle:
            spent[" beside them"] += took - sum(seconds for _, seconds in own)
            for name, seconds in own:
                spent[name] += seconds
        lines.append(f"| **{did}** | **{statistics.mean(call[1] for call in middle):.0f}** |")
        shares = sorted(spent.items(), key=lambda pair: -pair[1])
        lines += [f"| {name.strip()} | {total / len(middle):.0f} |" for name, total in shares if total > len(middle)]
    return "\n".join(lines)


def slowest(calls: Sequence[Call]) -> str:
    """Return the slowest calls and their steps, and what took longest in each, in Markdown."""
    lines = []
    for did, took, own, step in sorted(calls, key=lambda call: -call[1])[:20]:
        most = ", ".join(f"{name.strip()} {own_us:.0f}" for name, own_us in sorted(own, key=lambda pair: -pair[1])[:4])
        lines.append(f"- step {step}, {did}: {took:.0f}{most and f' ({most})'}")
    return "\n".join(lines)


def on_the_host(stack: ExitStack) -> Size:
    """Let the host stand in for the device; return a training that suits it."""
    sys.path.insert(0, str(HERE.parent / "emitter" / "core"))
    import on_host

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    on_host.copy_for_the_host(Path(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "vqwatch"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    torch.cuda.synchronize = lambda *_: None
    from vqwatch import layout, slots

    slots._foreach_copy = lambda *_, **__: None
    layout._turned = lambda *_: None
    return Size("host", 2, 256, 2, 64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="gpu-bound", help="without a device there is one only")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--spans", action="store_true", help="time what is inside as well")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if torch.cuda.is_available():
            size, device, where = SIZES[arguments.size], torch.device("cuda"), torch.cuda.get_device_name()
        else:
            size, device, where = on_the_host(stack), torch.device("cpu"), "no device, the host stands in for it"
        print(f"{where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {' '.join(sys.argv)}, {size}")
        calls = measure(size, device, arguments.seconds, arguments.budget, arguments.spans)
        warm_up, calls = calls[:WARM_UP], calls[WARM_UP:]
        print(f"\n{table(warm_up, calls)}\n\nThe slowest:\n\n{slowest(calls)}")
        if arguments.spans:
            print(f"\n{inside(calls)}")


if __name__ == "__main__":
    main()
