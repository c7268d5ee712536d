"""Random trainings: whatever a step is told arrives as it was, once and in order, or is counted.

For some steps a training has the same habits, then others: how it gives codes, losses and rates, how its steps are
numbered, whether it pauses, writes to what it gave, or is not listened to. Needs a CUDA device, or ``on_host.py``;
``gpu_checks.py`` runs it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_peer import CUDA, Peer, array, watched
from workload import SIZES, Training

from vqwatch.wire import Codes, Step

SEEDS = range(6)
STEPS = 160
BOUNDS = {"ring_busy", "busy_peer", "send_bytes", "overwritten"}
"""Why something may be left out that is as it should be."""

Tell = Callable[[Any, int], Any]

CODES: dict[str, Tell] = {
    "as they are": lambda codes, _: codes,
    "by hook": lambda _codes, _step: None,
    "now and then": lambda codes, step: codes if step % 3 else None,
    "a list": lambda codes, _: [codes[..., layer] for layer in range(codes.shape[-1])],
    "by layer": lambda codes, _: {str(layer): codes[..., layer].contiguous() for layer in range(codes.shape[-1])},
    "narrow": lambda codes, _: codes.int(),
    "an array": lambda codes, _: codes.cpu().numpy(),
}
LOSSES: dict[str, Tell] = {
    "as they are": lambda losses, _: losses,
    "one": lambda losses, _: losses["total"],
    "mixed": lambda losses, step: {"total": losses["total"], "ours": 0.5 * step, "whole": step},
    "numbers": lambda _, step: {"a": float(step), "b": float("nan") if step % 5 == 0 else 1.0},
    "in turns": lambda losses, step: {f"of{step % 4}": losses["vq"]},
    "more and more": lambda losses, step: {f"of{index}": losses["vq"] + index for index in range(1 + step % 19)},
    "narrow": lambda losses, _: {"total": losses["total"].bfloat16(), "wide": losses["vq"].double()},
    "shaped": lambda losses, _: {"total": losses["total"].reshape(1, 1)},
    "none": lambda _losses, _step: None,
}
NORMS: dict[str, Tell] = {
    "as it is": lambda norm, _: norm,
    "a number": lambda norm, _: norm.item(),
    "wide": lambda norm, _: norm.double(),
    "none": lambda _norm, _step: None,
}
MASKS: dict[str, Tell] = {
    "as it is": lambda mask, _: mask,
    "numbers": lambda mask, _: mask.float(),
    "none": lambda _mask, _step: None,
}
RATES: dict[str, Tell] = {
    "the optimizer's": lambda _rates, _step: None,
    "a number": lambda _, step: 0.25 * step,
    "by name": lambda _, step: {"own": float(step)},
}


@dataclass(frozen=True)
class Habits:
    """How a training tells its steps for a while.

    ``stride`` is the distance of step numbers, and a ``pause`` comes after every so many steps. Codes and mask may be
    ``cut`` to another length, several forward ``passes`` may make a step, and it ``waits`` now and then.
    """

    codes: str
    losses: str
    norm: str
    mask: str
    rates: str
    stride: int
    pause: int
    cut: bool
    passes: int
    overwrites: bool
    listened_to: bool
    waits: bool


def habits(chance: random.Random) -> Habits:
    """Return habits; the usual ones are the more likely."""

    def one(ways: dict[str, Tell]) -> str:
        usual, *others = ways
        return usual if chance.random() < 0.5 else chance.choice(others)

    def seldom() -> bool:
        return chance.random() < 0.3

    return Habits(
        one(CODES), one(LOSSES), one(NORMS), one(MASKS), one(RATES), chance.choice((1, 1, 2, 7)),
        chance.choice((0, 0, 0, 1, 6)), seldom(), chance.choice((1, 1, 1, 2)), seldom(), not seldom(), seldom(),
    )  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What a step was told, copied at once."""

    losses: dict[str, float]
    norm: float | None
    rates: dict[str, float]
    codes: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None
    by_hook: bool
    overwritten: bool


def delivers_whatever_is_told(peer: Peer) -> str:
    """Some random trainings, one after the other."""
    arrived = steps = 0
    for seed in SEEDS:
        of_codes, of_steps = _train(peer, seed)
        arrived += of_codes
        steps += of_steps
    return f"codes, steps: {arrived, steps}"


def _train(peer: Peer, seed: int) -> tuple[int, int]:
    peer.messages.clear()
    chance = random.Random(seed)
    training = Training(SIZES["launch-bound"], CUDA, seed)
    every = {
        "codes": chance.choice((1, 1, 2, 5)), "clusters": chance.choice((20, 3, 0)),
        "energies": chance.choice((100, 7, 1)), "gradients": chance.choice((200, 9, 1)),
        "codebooks": chance.choice((100, 10)), "reconstruction": chance.choice((100, 10)),
    }  # fmt: skip
    watch = watched(peer, training, budget=float("inf"), every=every)
    wanted: dict[int, Told] = {}
    now, step = habits(chance), 0
    for count in range(STEPS):
        if count % 20 == 19:
            now = habits(chance)
        training.optimizer.param_groups[0]["lr"] = 1e-4 * (1 + count % 7)
        passes = [training.step() for _ in range(now.passes)]
        told, wanted[step] = _step(training, passes, now, step, chance.randrange(2, training.size.frames))
        watch.step(step, **told)
        if wanted[step].overwritten:
            for tensor in (passes[-1]["codes"], passes[-1]["losses"]["vq"].detach()):
                tensor.zero_()
        if now.pause and count % now.pause == 0:
            with watch.pause():
                training.step()
        if now.waits and count % 6 == 0:
            time.sleep(0.12)
        if now.listened_to:
            peer.take()
        step += now.stride
    peer.take()
    watch.flush(0.3)
    peer.take(200)
    found = _compare(peer, wanted, every["codes"], watch.dropped, seed)
    watch.close(0.0)
    return found


def _step(
    training: Training, passes: Sequence[dict[str, Any]], now: Habits, step: int, cut: int
) -> tuple[dict[str, Any], Told]:
    """Return what to tell of a step, and a copy of it."""
    out = passes[-1]
    codes, mask = out["codes"], out["mask"]
    if now.cut:
        codes, mask = codes[:, :cut], mask[:, :cut]
    given = CODES[now.codes](codes, step)
    mask = None if given is None else MASKS[now.mask](mask, step)
    losses, rates = LOSSES[now.losses](out["losses"], step), RATES[now.rates](None, step)
    norm = NORMS[now.norm](out["grad_norm"], step)
    heard = [codes] if given is not None else [one["codes"] for one in passes]
    named = losses if isinstance(losses, dict) else {} if losses is None else {"total": losses}
    if rates is None:
        of_rates = {"0": training.optimizer.param_groups[0]["lr"]}
    else:
        of_rates = rates if isinstance(rates, dict) else {"0": rates}
    copy = Told(
        {name: value.item() if isinstance(value, torch.Tensor) else float(value) for name, value in named.items()},
        None if norm is None else float(norm),
        of_rates,
        np.concatenate([one.movedim(-1, 0).reshape(one.shape[-1], -1).cpu().numpy() for one in heard], -1),
        None if mask is None else mask.bool().reshape(-1).cpu().numpy(),
        given is None,
        now.overwrites and step % 9 == 0,
    )
    told = {"losses": losses, "codes": given, "mask": mask, "grad_norm": norm, "lr": rates}
    if not now.cut:
        told.update(original=out["original"], reconstructed=out["reconstructed"])
    return told, copy


def _compare(peer: Peer, wanted: dict[int, Told], codes_every: int, dropped: Any, seed: int) -> tuple[int, int]:
    """Compare what arrived with the copies; return how many codes and how many steps there were."""
    steps = list({message.seq: message for message in peer.of(Step)}.values())  # some may have been sent again
    assert [message.step for message in sorted(steps, key=lambda message: message.seq)] == [*wanted], seed
    for message in steps:
        told, where = wanted[message.step], (seed, message.step)
        assert dict(message.learning_rates) == told.rates, where
        if told.overwritten:
            continue
        assert dict(message.losses).keys() == told.losses.keys(), (where, message.losses, told.losses)
        for name, value in told.losses.items():
            assert np.isclose(message.losses[name], value, 1e-6, 0.0, equal_nan=True), (where, name)
        if told.norm is not None:
            assert np.isclose(message.gradient_norm, told.norm, 1e-6, 0.0), where
    heard: dict[int, list[np.ndarray[Any, Any]]] = {}
    for message in peer.of(Codes):
        told, where = wanted[message.step], (seed, message.step)
        sent = array(message.indices, {"i16": "<i2", "i32": "<i4"}[message.indices.dtype])
        heard.setdefault(message.step, []).append(sent.reshape(len(message.layers), -1))
        assert (message.mask is None) == (told.mask is None), where
        if message.mask is not None and told.mask is not None:
            mask = array(message.mask, {"bool": "?", "f32": "<f4"}[message.mask.dtype]).astype(bool)
            assert np.array_equal(mask.reshape(-1), told.mask), where
    for step, parts in heard.items():
        assert np.array_equal(np.concatenate(parts, -1), wanted[step].codes), (seed, step)
    due = _due(wanted, codes_every)
    left_out = sum(count for reason, count in dropped.items() if reason.startswith("codes"))
    assert len(due - heard.keys()) <= left_out, (seed, sorted(due - heard.keys()), dropped)
    assert {reason.split(":")[1] for reason in dropped} <= BOUNDS, (seed, dropped)
    return len(heard), len(steps)


def _due(wanted: dict[int, Told], every: int) -> set[int]:
    """Return the steps whose codes must arrive; hooks that were away hear from the step on after the first."""
    found: set[int] = set()
    before, hooked = -1, True
    for step, told in wanted.items():
        if (before < 0 or step // every != before // every) and (hooked or not told.by_hook):
            found.add(step)
        before, hooked = step, told.by_hook
    return found
