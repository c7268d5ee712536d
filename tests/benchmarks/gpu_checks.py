"""Checks of the emitter that need a CUDA device: run on one by ``python tests/benchmarks/gpu_checks.py``.

Shows that ``step()`` synchronises nothing (``torch.cuda.set_sync_debug_mode("error")``), allocates nothing after
warm-up, delivers exactly what the tensors held at that step although they change right after, and leaves training
bit-identical; then prints which calls its host time goes to. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq
from batch_checks import (
    delivers_by_way_of_device_memory,
    delivers_codes_now_and_then,
    delivers_large_ones_often,
    delivers_ordinary_steps,
    delivers_steps_few_at_a_time,
    delivers_steps_many_at_a_time,
    delivers_steps_of_any_length,
    goes_on_after_an_error,
    keeps_its_pace_around_pauses,
    leaves_out_what_was_written_to,
    leaves_out_what_was_written_to_late,
    refuses_codes_that_are_none,
    tells_a_sample_after_its_step,
)
from gpu_peer import CUDA, EVERYTHING, Peer, array, watched
from number_checks import (
    tells_gradients_of_each_module_in_turn,
    tells_norms_of_layers_and_gradients,
    tells_the_rates_of_each_step,
)
from random_checks import delivers_whatever_is_told
from workload import SIZES, Training

import vqwatch
from vqwatch.schedule import MOST_TOGETHER
from vqwatch.wire import Codebooks, Codes, Reconstruction, Step


def delivers_what_the_tensors_held(peer: Peer) -> str:
    """Every array equals a copy taken at the step, although training overwrites the originals at once."""
    training = Training(SIZES["launch-bound"], CUDA)
    watch = watched(peer, training, every=EVERYTHING, budget=float("inf"))
    wanted = []
    for step in range(30):
        out = training.step()
        books = [layer.embedding.clone() for layer in training.model.layers]
        sizes = [layer.ema_cluster_size.clone() for layer in training.model.layers]
        watch.step(step, **out)
        wanted.append(
            (out["codes"].clone(), books, sizes, out["losses"]["total"].clone(), out["reconstructed"].detach().clone())
        )
        for layer in training.model.layers:
            layer.embedding.add_(0.0)
        peer.take()
        if step % 4 == 3:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    watch.flush(0.2)
    peer.take(200)
    watch.flush(0.2)
    peer.take(200)
    compared = 0
    for message in peer.of(Codes):
        codes = wanted[message.step][0].movedim(-1, 0).cpu().numpy()
        assert np.array_equal(array(message.indices, "<i2"), codes), f"codes of step {message.step}"
        compared += 1
    for message in peer.of(Codebooks):
        for (layer, field), tensor in message.tensors.items():
            if field in ("codebook", "cluster_size"):
                held = wanted[message.step][1 if field == "codebook" else 2][int(layer)].cpu().numpy()
                assert np.array_equal(array(tensor, "<f4")[0], held), f"{field} of layer {layer}, step {message.step}"
                compared += 1
    for message in peer.of(Reconstruction):
        reconstructed = wanted[message.step][4].cpu().numpy()
        sample = array(message.reconstructed, "<f4")
        assert any(np.array_equal(sample[0], row[: sample.shape[1]]) for row in reconstructed), "reconstruction"
        compared += 1
    steps = peer.of(Step)
    for message in steps:
        assert message.losses["total"] == wanted[message.step][3].item(), f"loss of step {message.step}"
        assert message.gradient_norms, "gradient norms"
        assert len(message.residual_energy) == 8 or message.step == 0, "energies"
    assert [message.step for message in steps] == list(range(30)), [message.step for message in steps]
    dropped = watch.dropped
    watch.close(0.0)
    assert compared > 100, (compared, dropped)
    return f"{compared} arrays equal, 30 steps in order, dropped {dropped}"


def finds_codebooks_again(peer: Peer) -> str:
    """Cluster sizes that lie elsewhere than they did, as a tensor that is no buffer any more: told all the same.

    Also where the training pauses, or a step comes the general way, more often than they are due.
    """
    training = Training(SIZES["launch-bound"], CUDA)
    watch = watched(peer, training, budget=float("inf"), every={"clusters": 10})
    layer = training.model.layers[3]
    wanted = {}
    for step in range(180):
        out = training.step()
        if step == 60:
            layer.__dict__["ema_cluster_size"] = layer._buffers.pop("ema_cluster_size")
        wanted[step] = layer.ema_cluster_size.clone().cpu().numpy()
        watch.step(step, **out, lr=0.5 if 80 < step < 108 and step % 4 == 3 else None)
        if 108 <= step < 124 and step % 4 == 3:
            with watch.pause():
                pass
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    found = [(m.step, m.tensors["3", "cluster_size"]) for m in peer.of(Codebooks) if ("3", "cluster_size") in m.tensors]
    for step, sizes in found:
        assert np.array_equal(array(sizes, "<f4").reshape(-1), wanted[step]), step
    assert {step // 10 for step, _ in found if 80 < step < 124} >= {9, 10, 11, 12}, [step for step, _ in found]
    late = sum(step >= 60 for step, _ in found)
    assert min(late, len(found) - late) >= 5, ([step for step, _ in found], watch.dropped)
    assert watch.dropped == {}, watch.dropped
    watch.close(0.0)
    return f"before and after: {len(found) - late} {late}"


def tells_gradients_with_codebooks(peer: Peer) -> str:
    """Codebooks that must be read, as sketches are, and gradients in the same step, taken the general way: both."""
    training = Training(SIZES["launch-bound"], CUDA)
    every = {"codes": 0, "codebooks": 4, "gradients": 2, "reconstruction": 0, "clusters": 0, "energies": 0}
    watch = watched(peer, training, world_size=2, rank=0, every=every, budget=float("inf"))
    for step in range(24):
        watch.step(step, **training.step(), lr=0.5)
        torch.cuda.synchronize()
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    norms = {message.step: len(message.gradient_norms) for message in peer.of(Step) if message.gradient_norms}
    books = {message.step: len(message.tensors) for message in peer.of(Codebooks)}
    assert list(norms) == list(range(0, 24, 2)), (norms, books, watch.dropped)
    assert list(books) == list(range(0, 24, 4)), (norms, books, watch.dropped)
    assert len({*norms.values()}) == len({*books.values()}) == 1, (norms, books, watch.dropped)
    assert watch.dropped == {}, watch.dropped
    watch.close(0.0)
    return f"modules and tensors at each step: {norms[0]} {books[0]}"


def delivers_what_graphs_put_out(peer: Peer) -> str:
    """Steps in a replayed CUDA graph, or compiled with reduce-overhead, use memory again: nothing wrong is sent."""

    def assign(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x * 50).long().clamp(0, 99), x.mean()

    def values(step: int) -> torch.Tensor:
        return torch.rand(4, 64, 3, generator=torch.Generator().manual_seed(step)).to(CUDA)

    static = values(0)
    graph = torch.cuda.CUDAGraph()
    assign(static)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        outputs = assign(static)
    compiled = torch.compile(assign, mode="reduce-overhead")

    def replayed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        static.copy_(x)
        graph.replay()
        return outputs

    counts: list[Any] = []
    for assigns in (replayed, compiled):
        peer.messages.clear()
        watch = vqwatch.attach(endpoint=peer.endpoint, run="gpu", budget=float("inf"))
        peer.take(1000)
        for step in range(200):
            torch.cuda._sleep(2_000_000)
            codes, loss = assigns(values(step)) if step > 60 else assign(values(step))  # eager, to begin with
            watch.step(step, losses={"total": loss}, codes=codes)
            torch.cuda.synchronize()
            peer.take()
        watch.flush(0.2)
        peer.take(200)
        for message in peer.of(Codes):
            wanted = assign(values(message.step))[0].movedim(-1, 0).cpu().numpy()
            assert np.array_equal(array(message.indices, "<i2" if message.indices.dtype == "i16" else "<i4"), wanted)
        for message in peer.of(Step):
            total = message.losses.get("total")
            assert total is None or abs(total - assign(values(message.step))[1].item()) < 1e-6, message.step
        codes = len(peer.of(Codes))
        lost = watch.dropped.get("codes:overwritten", 0)
        counts += [codes, lost]
        assert [message.step for message in peer.of(Step)] == list(range(200))
        assert codes + lost == 200, (counts, watch.dropped)
        assert lost <= MOST_TOGETHER, counts
        watch.close(0.0)
    return f"codes that arrived, left out: {counts}"


def never_synchronises(peer: Peer) -> str:
    """No call of ours waits for the device."""
    training = Training(SIZES["launch-bound"], CUDA)
    watch = watched(peer, training, every=EVERYTHING, budget=float("inf"))
    for step in range(40):
        out = training.step()
        if step == 20:
            torch.cuda.set_sync_debug_mode("error")
        try:
            watch.step(step, **out)
        finally:
            if step > 20:
                torch.cuda.set_sync_debug_mode("default")
        if step > 20:
            torch.cuda.set_sync_debug_mode("error")
        peer.take()
    torch.cuda.set_sync_debug_mode("default")
    dropped = watch.dropped
    watch.close(0.0)
    assert not any(":" in key and key.endswith(("Error", "Exception")) for key in dropped), dropped
    return f"20 steps with everything under set_sync_debug_mode('error'), dropped {dropped}"


def allocates_nothing_after_warm_up(peer: Peer) -> str:
    """Device memory and pinned memory stay flat: at rest, and at most as much more as is kept at the wrong moment."""
    size = SIZES["launch-bound"]
    training = Training(size, CUDA)
    watch = watched(peer, training, budget=float("inf"))
    marks = []
    for step in range(400):
        if step in (100, 300):
            torch.cuda.reset_peak_memory_stats()
        out = training.step()
        watch.step(step, **out)
        del out
        peer.take()
        if step in (199, 399):
            peak = torch.cuda.max_memory_allocated()  # of a hundred steps
            watch.flush(0.2)
            torch.cuda.synchronize()
            pinned = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
            marks.append((peak, torch.cuda.memory_allocated(), pinned, watch.staged_bytes, watch.pinned_bytes))
    peer.messages.clear()
    watch.close(0.0)
    (peak, rest, *staged), (peak_then, rest_then, *staged_then) = marks
    assert staged == staged_then, marks
    codes_of_a_step = 8 * size.batch * size.frames * size.codebooks
    assert abs(rest_then - rest) < codes_of_a_step // 2, marks
    assert peak_then - peak <= 20 * codes_of_a_step, marks  # the most that is kept when the training needs most
    device, pinned = (value / 2**20 for value in staged[1:])
    return (
        f"staging {device:.1f} MiB on the device and {pinned:.1f} MiB pinned, flat from step 200 to 400; "
        f"at rest {rest_then - rest:+d} bytes of {rest}"
    )


def leaves_training_bit_identical(peer: Peer) -> str:
    """The same seed gives the same weights with and without."""
    torch.use_deterministic_algorithms(True)
    weights = []
    for with_us in (False, True):
        training = Training(SIZES["launch-bound"], CUDA)
        watch = watched(peer, training, every=EVERYTHING) if with_us else None
        for step in range(25):
            out = training.step()
            if watch is not None:
                watch.step(step, **out)
                peer.take()
        weights.append({name: value.clone() for name, value in training.model.state_dict().items()})
        if watch is not None:
            watch.close(0.0)
    torch.use_deterministic_algorithms(False)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    return f"{len(weights[0])} tensors equal after 25 steps"


def is_still_while_a_graph_is_captured(peer: Peer) -> str:
    """A step() inside a capture does nothing and breaks nothing; after it, all goes on."""
    watch = vqwatch.attach(endpoint=peer.endpoint, run="gpu")
    peer.take(1000)
    static = torch.randn(64, 64, device=CUDA)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        static @ static
    torch.cuda.current_stream().wait_stream(side)
    watch.step(0, losses={"total": static.sum()})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = (static @ static).sum()
        watch.step(1, losses={"total": loss})
    for step in range(2, 12):
        graph.replay()
        watch.step(step, losses={"total": loss})
        torch.cuda.synchronize()
    watch.flush(0.2)
    peer.take(200)
    steps = [message.step for message in peer.of(Step)]
    value = peer.of(Step)[-1].losses["total"]
    watch.close(0.0)
    assert steps == [0, *range(2, 12)], steps
    assert value == loss.item()
    return "captured, replayed 10 times"


def takes_odd_inputs(peer: Peer) -> str:
    """bf16, fp8, non-contiguous, sparse, some on the host and some on the device: what can be sent is sent."""
    watch = vqwatch.attach(endpoint=peer.endpoint, run="gpu", every=EVERYTHING, budget=float("inf"))
    peer.take(1000)
    x = torch.randn(2, 8, 16, device=CUDA)
    loss = {"bf16": x.sum().bfloat16(), "one": x.sum().view(1), "float": 1.5, "nan": x.sum() * float("nan"), "many": x}
    cases: list[dict[str, Any]] = [
        {"codes": torch.randint(0, 9, (2, 8, 3), device=CUDA, dtype=torch.int32)},
        {"codes": torch.randint(0, 9, (2, 8, 3))},
        {"codes": [torch.randint(0, 9, (2, 8), device=CUDA) for _ in range(3)]},
        {"codes": x},
        {"original": x.bfloat16(), "reconstructed": x.to(torch.float8_e4m3fn)},
        {
            "original": x.transpose(1, 2),
            "reconstructed": x.transpose(1, 2),
            "mask": torch.ones(2, 16, dtype=torch.bool),
        },
        {"original": x.to_sparse(), "reconstructed": x},
        {"original": x, "reconstructed": x, "mask": torch.ones(3, device=CUDA)},
        {"original": x.cpu().numpy(), "reconstructed": x},
    ]
    for step, case in enumerate(cases):
        watch.step(step, losses=loss, **case)
        torch.cuda.synchronize()
    watch.flush(0.2)
    peer.take(200)
    counts = {kind.__name__: len(peer.of(kind)) for kind in (Step, Codes, Reconstruction)}
    dropped = watch.dropped
    watch.close(0.0)
    assert (counts["Step"], counts["Codes"], counts["Reconstruction"]) == (len(cases), 3, 4), (counts, dropped)
    return f"{counts}, dropped {dropped}"


def profile(size: str, steps: int) -> None:
    """Print latency percentiles of step() with the defaults, and which calls the host time goes to."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/sink.sock"
        sink = Path(__file__).with_name("sink.py")
        process = subprocess.Popen([sys.executable, str(sink), endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        training = Training(SIZES[size], CUDA)
        watch = vqwatch.attach(training.model, training.optimizer, endpoint=endpoint, run=size, budget=float("inf"))
        times = []
        for step in range(steps):
            out = training.step()
            started = time.perf_counter()
            watch.step(step, **out)
            times.append(time.perf_counter() - started)
        torch.cuda.synchronize()
        micro = np.array(times[100:]) * 1e6
        heavy = [f"{np.median(micro[phase::50]):.0f}" for phase in (0, 20, 30, 10)]
        shares = [f"{value:.0f}" for value in np.percentile(micro, (10, 25, 50, 75, 90, 95, 98, 99, 99.5))]
        print(f"{size}: percentiles 10 25 50 75 90 95 98 99 99.5: {shares}")
        print(f"{size}: step() p50 {np.percentile(micro, 50):.0f} us, p90 {np.percentile(micro, 90):.0f}, "
              f"p99 {np.percentile(micro, 99):.0f}, max {micro.max():.0f}; mean {micro.mean():.0f}; "
              f"codebooks/reconstruction/gradients/clusters steps {heavy}; dropped {watch.dropped}")  # fmt: skip
        profiler = cProfile.Profile()
        for step in range(steps, steps + 300):
            out = training.step()
            profiler.enable()
            watch.step(step, **out)
            profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(24)
        watch.close()
        print(process.communicate()[0].decode())


def main() -> int:
    """Run the checks, then the profiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--profile", nargs="*", default=["launch-bound", "proposal"])
    parser.add_argument("--skip-checks", action="store_true")
    arguments = parser.parse_args()
    print(torch.__version__, torch.cuda.get_device_name(), zmq.zmq_version())
    checks: list[Callable[[Peer], str]] = [
        takes_odd_inputs, is_still_while_a_graph_is_captured, delivers_what_the_tensors_held, delivers_ordinary_steps,
        delivers_codes_now_and_then, delivers_steps_few_at_a_time, delivers_steps_many_at_a_time,
        tells_a_sample_after_its_step, delivers_steps_of_any_length, refuses_codes_that_are_none,
        keeps_its_pace_around_pauses, delivers_by_way_of_device_memory, delivers_large_ones_often,
        finds_codebooks_again, tells_gradients_with_codebooks,
        leaves_out_what_was_written_to, leaves_out_what_was_written_to_late, goes_on_after_an_error,
        tells_the_rates_of_each_step, tells_norms_of_layers_and_gradients, tells_gradients_of_each_module_in_turn,
        delivers_whatever_is_told, delivers_what_graphs_put_out, never_synchronises,
        allocates_nothing_after_warm_up, leaves_training_bit_identical,
    ]  # fmt: skip
    failed = 0
    for check in checks if not arguments.skip_checks else []:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"ok    {check.__name__}: {check(Peer(folder))}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL  {check.__name__}: {traceback.format_exc()}", flush=True)
                torch.cuda.set_sync_debug_mode("default")
    for size in arguments.profile:
        profile(size, arguments.steps)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
