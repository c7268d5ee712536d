"""Checks of the numbers of steps that are copied together: learning rates, norms of layers and of gradients.

They need a CUDA device, or ``on_host.py``; ``gpu_checks.py`` runs them.
"""

from __future__ import annotations

import functools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from gpu_peer import CUDA, Peer, watched
from workload import SIZES, Training

from vqwatch import gradients
from vqwatch.schedule import MOST_TOGETHER
from vqwatch.wire import Step


def tells_the_rates_of_each_step(peer: Peer) -> str:
    """An optimizer of two is given more groups while steps are kept, and a state that replaces them.

    Of an optimizer that has no rates the steps are told all the same.
    """
    peer.messages.clear()
    training = Training(SIZES["launch-bound"], CUDA)
    only_codes = dict.fromkeys(("clusters", "codebooks", "reconstruction", "gradients", "energies"), 0)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, device=CUDA))], lr=0.5)
    watch = watched(peer, training, (training.optimizer, other), budget=float("inf"), every=only_codes)
    more, replaced = (127, 141, 166, 180), 153
    for step in range(200):
        if step == replaced:
            state = training.optimizer.state_dict()
            state["param_groups"] = [{**group, "lr": 7.0} for group in state["param_groups"]]
            training.optimizer.load_state_dict(state)
        if step in more:
            group = {"params": [torch.nn.Parameter(torch.zeros(1, device=CUDA))], "lr": float(step)}
            training.optimizer.add_param_group(group)
        watch.step(step, **training.step())
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    told = {message.step: [*message.learning_rates.values()] for message in peer.of(Step)}
    for step in range(200):
        rates = [1e-4, *(float(at) for at in more if at <= step)]
        if step >= replaced:
            rates = [rate if rate > replaced else 7.0 for rate in rates]
        assert told[step] == [*rates, 0.5], (step, told[step])
    assert len(told) == 200
    assert (watch.dropped, watch._ordinary.keeper.most) == ({}, MOST_TOGETHER), watch.dropped
    watch.close(0.0)
    peer.messages.clear()
    watch = watched(peer, training, SimpleNamespace(param_groups=[{"params": []}]), every=only_codes)
    for step in range(20):
        watch.step(step, **training.step())
        peer.take()
    watch.flush(0.2)
    peer.take(200)
    without = [message.step for message in peer.of(Step) if not message.learning_rates]
    assert (without, watch.dropped) == ([*range(20)], {}), (without, watch.dropped)
    watch.close(0.0)
    return f"{len(told)} steps"


def tells_norms_of_layers_and_gradients(peer: Peer) -> str:
    """Norms that few of the steps copied together have: those of the layers, and of the gradients part after part.

    Each is what it was at its step, whether a norm of all gradients was given or not.
    """
    most, counts = gradients.PART_PARAMETERS, []
    gradients.PART_PARAMETERS = 8  # type: ignore[misc]
    try:
        for given in (True, False):
            peer.messages.clear()
            training = Training(SIZES["launch-bound"], CUDA)
            left: dict[int, float] = {}
            for index, layer in enumerate(training.model.layers):
                layer.register_forward_hook(functools.partial(_note_energy, left, index))
            every = {"energies": 7, "gradients": 20, "codebooks": 0, "reconstruction": 0}
            watch = watched(peer, training, budget=float("inf"), every=every)
            wanted, of_layers = {}, {}
            for step in range(150):
                out = training.step()
                of_layers[step] = dict(left)
                named = [(name, parameter.grad) for name, parameter in training.model.named_parameters()]
                norms = [0.0 if grad is None else grad.norm().item() for _, grad in named]
                modules = gradients.module_names([name for name, _ in named])
                wanted[step] = gradients.by_module(norms, modules)
                watch.step(step, **(out if given else {**out, "grad_norm": None}))
                peer.take()
            watch.flush(0.2)
            peer.take(200)
            told = [(message.step, message.gradient_norms) for message in peer.of(Step) if message.gradient_norms]
            for step, by_module in told:
                for name, norm in by_module.items():
                    assert abs(norm - wanted[step][name]) <= 1e-4 * wanted[step][name] + 1e-9, (step, name)
            energies = {message.step: message.residual_energy for message in peer.of(Step) if message.residual_energy}
            assert len(energies) >= 20, (sorted(energies), watch.dropped)
            for step, of_step in energies.items():
                for name, energy in of_step.items():
                    expected = of_layers[step][int(name)]
                    assert abs(energy - expected) <= 1e-3 * expected, (step, name, energy, expected)
            assert sum(len(by_module) for _, by_module in told) >= 7 * len(wanted[0]), (told, watch.dropped)
            assert (len(told) > 10) == given, told
            assert watch._plan._costs["gradients"] > 0.0, "told to the schedule, which stretches by it"
            assert watch.dropped == {}, watch.dropped
            counts += [len(told), len(energies)]
            watch.close(0.0)
    finally:
        gradients.PART_PARAMETERS = most  # type: ignore[misc]
    return f"steps with gradients, with energies: {counts}"


def tells_gradients_of_each_module_in_turn(peer: Peer) -> str:
    """Gradients are due again before all parts of them were taken: no module waits for ever."""
    most = gradients.PART_PARAMETERS
    gradients.PART_PARAMETERS = 8  # type: ignore[misc]
    try:
        peer.messages.clear()
        training = Training(SIZES["launch-bound"], CUDA)
        every = {"gradients": 1, "energies": 0, "codebooks": 0, "reconstruction": 0}
        watch = watched(peer, training, budget=float("inf"), every=every)
        parts = watch._collector.gradient_parts(whole=False)
        for step in range(120):
            watch.step(step, **training.step())
            peer.take()
        watch.flush(0.2)
        peer.take(200)
        told = Counter(name for message in peer.of(Step) for name in message.gradient_norms)
        assert set(told) == set(gradients.module_names([name for name, _ in training.model.named_parameters()])), told
        assert parts > 1, parts
        assert min(told.values()) >= 0.8 * 120 / parts, told
        watch.close(0.0)
    finally:
        gradients.PART_PARAMETERS = most  # type: ignore[misc]
    return f"parts: {parts}, how often at least: {min(told.values())}"


def _note_energy(
    left: dict[int, float], index: int, _layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: Any
) -> None:
    """Note the mean squared norm of what a quantizer leaves over."""
    left[index] = (inputs[0] - output[0]).detach().square().sum(-1).mean().item()
