"""Checks of the steps that are kept, copied together and sent as one: what arrives of them, and what is left out.

They need a CUDA device, or ``on_host.py``; ``gpu_checks.py`` runs them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_peer import CUDA, Peer, array, watched
from workload import SIZES, Training

import vqwatch
from vqwatch.schedule import MOST_TOGETHER
from vqwatch.wire import MAX_STEPS, Codebooks, Codes, Reconstruction, Step


def delivers_ordinary_steps(peer: Peer) -> str:
    """With codes at every step and seldom, by hooks and by argument: all equal to copies taken at the step."""
    counts = []
    for by_hook, every in ((False, 1), (True, 1), (False, 20), (True, 20)):
        watch, wanted = _ordinary(peer, by_hook=by_hook, codes_every=every)
        counts += [*_compare(peer, wanted), watch._ordinary.keeper.most]
        assert counts[-3:-1] == [-(-120 // every), 120], (counts, watch.dropped)
        assert watch._quantizers.listening == by_hook, "hooks are away where nothing is wanted of them"
        watch.close(0.0)
    return f"codes, steps, steps copied together: {counts}"


def delivers_codes_now_and_then(peer: Peer) -> str:
    """Steps of which some come with codes and some without, and no model whose hooks would tell them."""
    peer.messages.clear()
    training = Training(SIZES["launch-bound"], CUDA)
    watch = vqwatch.attach(None, training.optimizer, endpoint=peer.endpoint, run="gpu", budget=float("inf"))
    peer.take(1000)
    wanted, apart = [], []
    for step in range(120):
        if step == 90:
            ordinary = watch._ordinary
            ordinary._copy_separately = _noting(ordinary._copy_separately, apart)
        out = training.step()
        wanted.append(
            [out["codes"].clone(), out["mask"].clone(), out["losses"]["vq"].clone(), out["grad_norm"].clone()]
        )
        watch.step(step, **{**out, "codes": out["codes"] if step < 60 or step % 3 == 1 else None})
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    counts = _compare(peer, wanted)
    assert counts == (80, 120), (counts, watch.dropped)
    assert apart == [], "steps are copied together, whichever of them have codes"
    watch.close(0.0)
    return f"codes, steps: {counts}"


def _noting(call: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """Return the same, which notes what it was called with."""

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return call(*arguments)

    return noted


def delivers_steps_many_at_a_time(peer: Peer) -> str:
    """More steps than a message can tell are kept, as calls were busy with other things: all of them arrive."""
    seen = []

    def want_more(watch: vqwatch.Emitter, _step: int, _out: dict[str, Any]) -> None:
        if watch._ordinary is not None and watch._ordinary.keeper.most >= MOST_TOGETHER:
            watch._ordinary.keeper.most = MAX_STEPS + 3
            watch._ordinary._patience_seconds = 60.0
            seen.append(len(watch._ordinary.keeper.held))

    watch, wanted = _ordinary(peer, by_hook=False, first=want_more)
    assert (_compare(peer, wanted), watch.dropped) == ((120, 120), {}), watch.dropped
    assert max(seen) > MAX_STEPS, seen
    watch.close(0.0)
    return f"kept at once: {max(seen)}"


def delivers_steps_few_at_a_time(peer: Peer) -> str:
    """Codes so large that few steps are copied together: all of them arrive, however few."""
    from vqwatch import ordinary

    most, counts = ordinary.TOGETHER_BYTES, []
    try:
        for together in (2, 3, 5, 7):
            size = SIZES["launch-bound"]
            nbytes = sum(
                -(-count // 256) * 256 for count in (size.batch * size.frames, 2 * 8 * size.batch * size.frames)
            )
            ordinary.TOGETHER_BYTES = together * nbytes  # type: ignore[misc]
            watch, wanted = _ordinary(peer, by_hook=False)
            counts.append(watch._ordinary.keeper.most)
            assert (_compare(peer, wanted), watch.dropped) == ((120, 120), {}), (counts, watch.dropped)
            watch.close(0.0)
    finally:
        ordinary.TOGETHER_BYTES = most  # type: ignore[misc]
    return f"steps copied together: {counts}"


def tells_a_sample_after_its_step(peer: Peer) -> str:
    """A sample is due as long as a batch is half copied, of a step that is not in it: that step is told first.

    Nor does that hold up the batch.
    """

    def want(watch: vqwatch.Emitter, _step: int, _out: dict[str, Any]) -> None:
        half = watch._ordinary is not None and watch._ordinary._begun is not None
        watch._plan.every["reconstruction"] = 1 if half else 1 << 20
        watch._plan.next_special = 0

    watch, wanted = _ordinary(peer, by_hook=False, first=want)
    counts = _compare(peer, wanted)
    assert counts == (120, 120), (counts, watch.dropped)
    told = {message.step: at for at, message in enumerate(peer.messages) if isinstance(message, Step)}
    samples = [(at, message.step) for at, message in enumerate(peer.messages) if isinstance(message, Reconstruction)]
    assert len(samples) > 2, samples
    assert all(at > told[step] for at, step in samples), (samples, told)
    watch.close(0.0)
    return "each"


def delivers_by_way_of_device_memory(peer: Peer) -> str:
    """What is too large for the device to write to the host itself: staged there first, it is all the same."""
    from vqwatch import staging

    most = staging.MAPPED_BYTES
    staging.MAPPED_BYTES = 0  # type: ignore[misc]
    try:
        watch, wanted = _ordinary(peer, by_hook=False)
        assert (_compare(peer, wanted), watch.dropped) == ((120, 120), {}), watch.dropped
        assert watch.staged_bytes >= watch.pinned_bytes > 0
        books = [message.step for message in peer.of(Codebooks) if ("0", "codebook") in message.tensors]
        samples = [message.step for message in peer.of(Reconstruction)]
        assert (books, samples) == ([0, 55, 110], [0, 50]), (books, samples)
        watch.close(0.0)
    finally:
        staging.MAPPED_BYTES = most  # type: ignore[misc]
    return f"codebooks, samples: {len(books)} {len(samples)}"


def delivers_large_ones_often(peer: Peer) -> str:
    """Codebooks and samples so often that there are not slots for all that many steps would hold: none is left out."""
    training = Training(SIZES["launch-bound"], CUDA)
    every = {"codebooks": 4, "reconstruction": 4}
    watch = watched(peer, training, budget=float("inf"), every=every)
    for step in range(120):
        watch.step(step, **training.step())
        if step % 4 == 3:
            torch.cuda.synchronize()
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    assert watch.dropped == {}, watch.dropped
    books = [message.step for message in peer.of(Codebooks) if ("0", "codebook") in message.tensors]
    samples = [message.step for message in peer.of(Reconstruction)]
    assert (len(books), len(samples)) == (30, 31), (books, samples)
    assert watch._ordinary.keeper.most == MOST_TOGETHER
    watch.close(0.0)
    return f"codebooks, samples: {len(books)} {len(samples)}"


def delivers_steps_of_any_length(peer: Peer) -> str:
    """Steps of three lengths in turns, then each of another: equal to copies, whatever lies beside them."""

    def cut(_watch: Any, step: int, out: dict[str, Any]) -> None:
        frames = out["mask"].shape[1]
        end = frames - (step % 3 if step < 60 else step % (frames // 2 + 1))
        out.update(codes=out["codes"][:, :end].contiguous(), mask=out["mask"][:, :end].contiguous())

    watch, wanted = _ordinary(peer, by_hook=False, first=cut)
    counts = _compare(peer, wanted)
    assert counts == (120, 120), (counts, watch.dropped)
    watch.close(0.0)
    return f"codes, steps: {counts}"


def keeps_its_pace_around_pauses(peer: Peer) -> str:
    """A training that pauses every few steps, for twice as long as they take: its pace is that of its steps."""
    peer.messages.clear()
    training = Training(SIZES["launch-bound"], CUDA)
    watch = watched(peer, training, every={"codebooks": 0, "reconstruction": 0})
    took, started = [], time.monotonic()
    for block in range(16):
        for step in range(5 * block, 5 * block + 5):
            watch.step(step, **training.step())
            peer.take()
        with watch.pause():
            took.append((time.monotonic() - started) / 5)
            time.sleep(10 * took[-1])
            started = time.monotonic()
    paces, most = (watch._plan.step_seconds, max(took[2:])), watch._ordinary.keeper.most
    assert 0.0 < paces[0] <= paces[1], paces
    assert most == MOST_TOGETHER, most
    watch.flush(0.2)
    peer.take(200)
    assert {message.step for message in peer.of(Step)} == set(range(80)), watch.dropped
    watch.close(0.0)
    return f"{most} steps together"


def refuses_codes_that_are_none(peer: Peer) -> str:
    """Codes that are no integers at one step in fifteen, of the same shape as the others: these only are left out."""

    def blur(_watch: Any, step: int, out: dict[str, Any]) -> None:
        if step >= 60 and step % 15 == 4:
            out["codes"] = out["codes"].float()

    watch, wanted = _ordinary(peer, by_hook=False, first=blur)
    counts = _compare(peer, wanted)
    assert (counts, watch.dropped) == ((116, 120), {"codes:dtype": 4}), (counts, watch.dropped)
    watch.close(0.0)
    return f"codes, steps: {counts}"


def leaves_out_what_was_written_to(peer: Peer) -> str:
    """A training that writes to what it gave: nothing wrong is sent, a few steps are counted, then nothing is lost."""

    def overwrite(_watch: Any, out: dict[str, Any]) -> None:
        for tensor in (out["codes"], out["losses"]["vq"].detach(), out["grad_norm"]):
            tensor.zero_()

    counts = []
    for by_hook in (False, True):
        watch, wanted = _ordinary(peer, by_hook=by_hook, then=overwrite)
        codes, steps = _compare(peer, wanted)
        lost = watch.dropped.get("codes:overwritten", 0)
        counts += [codes, lost]
        assert (codes + lost, steps) == (120, 120), (counts, watch.dropped)
        assert lost <= MOST_TOGETHER, counts
        watch.close(0.0)
    return f"codes that arrived, left out: {counts}"


def leaves_out_what_was_written_to_late(peer: Peer) -> str:
    """Codes of a batch that was looked at, or half copied, when they are written to or their memory is used again.

    They alone are missing, and counted.
    """
    counts = []
    for half, reused, by_hook in itertools.product((False, True), (False, True), (False, True)):
        lost: list[int] = []

        def chosen(watch: vqwatch.Emitter, lost: list[int] = lost, half: bool = half) -> Any:
            ordinary = watch._ordinary
            if ordinary is None or lost:
                return None
            if half:
                held = [] if ordinary._begun is None else ordinary._begun.held
            else:
                held = [] if ordinary._looked is None else ordinary.keeper.held
            if len(held) < MOST_TOGETHER or held[0].step < 20:
                return None
            lost.append(held[4].step)
            return held[4]

        def overwrite(watch: vqwatch.Emitter, _out: dict[str, Any], chosen: Any = chosen) -> None:
            held = chosen(watch)
            if held is not None:
                held.arrays[0].zero_()

        def use_again(watch: vqwatch.Emitter, _step: int, out: dict[str, Any], chosen: Any = chosen) -> None:
            held = chosen(watch)
            if held is not None:
                held.codes.data.copy_(out["codes"])  # as a replayed graph does: without a new version
                out["codes"] = held.codes.detach()

        if reused and by_hook:
            continue
        changes: dict[str, Any] = {"first": use_again} if reused else {"then": overwrite}
        watch, wanted = _ordinary(peer, by_hook=by_hook, **changes)
        assert (_compare(peer, wanted), watch.dropped) == ((119, 120), {"codes:overwritten": 1}), watch.dropped
        counts.append(set(range(120)) - {message.step for message in peer.of(Codes)} == set(lost))
        assert counts[-1], (lost, sorted({message.step for message in peer.of(Codes)}))
        watch.close(0.0)
    return f"only those missing: {counts}"


def goes_on_after_an_error(peer: Peer) -> str:
    """An error of our own between two calls that copy a batch: that one is lost, and nothing else, nor a slot."""
    counts = []
    for half in (False, True):
        failed: list[int] = []

        def fail(watch: vqwatch.Emitter, step: int, half: bool = half, failed: list[int] = failed) -> None:
            def broken(*_: Any) -> None:
                failed.append(step)
                raise RuntimeError("on purpose")

            ordinary = watch._ordinary
            if ordinary is None or failed:
                return
            if half and ordinary._begun is not None:
                ordinary._finish = broken  # type: ignore[method-assign]
            if not half and ordinary._looked is not None:
                ordinary._begin = broken  # type: ignore[method-assign]

        training = Training(SIZES["launch-bound"], CUDA)
        peer.messages.clear()
        watch = watched(peer, training, budget=float("inf"))
        for step in range(200):
            out = training.step()
            fail(watch, step)
            watch.step(step, **out)
            peer.take()
        watch.flush(0.2)
        peer.take(200)
        told = {message.step for message in peer.of(Step)}
        assert (watch.dropped, len(failed)) == ({"step:RuntimeError": 1}, 1), watch.dropped
        assert len(set(range(200)) - told) <= MOST_TOGETHER + 3, sorted(set(range(200)) - told)
        assert set(range(failed[0] + 1, 200)) <= told
        staging = watch._capture.staging
        assert staging is not None
        assert [slot.users for slot in staging._small] == [0] * len(staging._small)
        counts.append(200 - len(told))
        watch.close(0.0)
    return f"steps lost: {counts}"


def _ordinary(
    peer: Peer,
    by_hook: bool,
    codes_every: int = 1,
    first: Callable[[vqwatch.Emitter, int, dict[str, Any]], None] = lambda *_: None,
    then: Callable[[vqwatch.Emitter, dict[str, Any]], None] = lambda *_: None,
) -> tuple[vqwatch.Emitter, list[Any]]:
    peer.messages.clear()
    training = Training(SIZES["launch-bound"], CUDA)
    watch = watched(peer, training, budget=float("inf"), every={"codes": codes_every, "codebooks": 55})
    wanted = []
    for step in range(120):
        out = training.step()
        first(watch, step, out)
        told = (
            out["codes"],
            out["mask"],
            out["losses"]["vq"],
            out["grad_norm"],
            training.model.layers[3].ema_cluster_size,
        )
        wanted.append([tensor.clone() for tensor in told])
        watch.step(step, **{**out, "codes": None if by_hook else out["codes"]})
        then(watch, out)
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    return watch, wanted


def _compare(peer: Peer, wanted: list[Any]) -> tuple[int, int]:
    """Compare what arrived with copies; return how many codes and how many steps there were."""
    for message in peer.of(Codes):
        codes, mask, *_ = wanted[message.step]
        sent = array(message.indices, {"i16": "<i2", "i32": "<i4"}[message.indices.dtype])
        assert np.array_equal(sent, codes.movedim(-1, 0).cpu().numpy().reshape(sent.shape)), message.step
        if message.mask is not None:
            assert np.array_equal(array(message.mask, "?"), mask.cpu().numpy()), message.step
    for message in peer.of(Step):
        vq = message.losses.get("vq")
        assert vq is None or vq == wanted[message.step][2].item(), message.step
        assert message.gradient_norm in (None, wanted[message.step][3].item()), message.step
        assert message.learning_rates == {"0": 1e-4}
    for message in peer.of(Codebooks):
        sizes = array(message.tensors["3", "cluster_size"], "<f4").reshape(-1)
        assert np.array_equal(sizes, wanted[message.step][4].cpu().numpy()), message.step
    steps = [message.step for message in peer.of(Step)]
    assert steps == list(range(len(wanted))), steps
    return len(peer.of(Codes)), len(steps)
