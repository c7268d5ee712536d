"""Faults of the network and its optimizer: losses, gradients, learning rate, encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from faults.site import Site


@contextmanager
def nan_loss(site: Site) -> Iterator[None]:
    """The reconstruction and with it the loss are NaN.

    A log of zero, an overflow in half precision, a division by an empty mask. The loop skips the update when the
    gradient is not finite, so that training goes on where it was once the cause is gone.
    """
    handle = site.part("decoder_out").register_forward_hook(lambda _m, _i, output: output * torch.nan)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _scaled_gradients(site: Site, factor: float) -> Iterator[None]:
    handles = [parameter.register_hook(lambda gradient: gradient * factor) for parameter in site.model.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def exploding_gradients(site: Site) -> Iterator[None]:
    """Gradients are a thousand times too large.

    A loss scale that nobody divides out again, or a sum where a mean was meant. Clipping hides it from the loss:
    every step is cut to the same length and the optimizer no longer sees which ones mattered.
    """
    with _scaled_gradients(site, 1024.0):
        yield


@contextmanager
def vanishing_gradients(site: Site) -> Iterator[None]:
    """Gradients are as good as zero.

    A detach too many, saturated activations, or a straight-through estimator that does not pass anything. The loss
    stands still, and so does everything else: utilization and SNR look as they did.
    """
    with _scaled_gradients(site, 1e-12):
        yield


@contextmanager
def lr_x100(site: Site) -> Iterator[None]:
    """The learning rate is a hundred times too high.

    A schedule in steps that was given epochs, or a restart without its warm-up. The encoder leaves the codes behind,
    everything collapses; the weights are ruined, so that the end of the fault loads the checkpoint from before.
    """
    with site.checkpoint_restored_after():
        for group in site.optimizer.param_groups:
            group["lr"] *= 100.0
        yield


@contextmanager
def point_embeddings(site: Site) -> Iterator[None]:
    """The encoder's output shrinks to a point, and the codebooks follow it there.

    The cheapest way to a small commitment loss is an encoder that says nothing. Replacement of dead codes then deals
    all codes onto the point: utilization looks perfect, the embeddings' variance is zero, the decoder has no input.
    """
    handle = site.part("encoder_out").register_forward_hook(lambda _m, _i, output: output * 1e-4)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def decoupled(site: Site) -> Iterator[None]:
    """The decoder gets the codes of another document.

    A shuffled index, a batch dimension mixed up with time, a stale cache. Codebooks are healthy and the vq loss falls;
    only the reconstruction knows.
    """
    handle = site.part("decoder_in").register_forward_pre_hook(lambda _m, inputs: (inputs[0].roll(1, 0),))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scrambled(site: Site) -> Iterator[None]:
    """The decoder's frames come in the wrong order in time.

    A reshape where a transpose was meant, or positions that are off. Means and powers are right, and so are the
    spectra; frame by frame it is somebody else's.
    """
    masks: list[Tensor] = []

    def shuffle(_module: object, _inputs: object, output: Tensor) -> Tensor:
        keys = torch.rand(masks[-1].shape) + 2.0 * ~masks[-1]
        order = keys.argsort(1)[..., None].expand_as(output)
        return output.gather(1, order)

    def remember(_module: object, inputs: tuple[Any, ...]) -> None:
        masks[:] = [inputs[1]]

    with ExitStack() as stack:
        for handle in (
            site.model.register_forward_pre_hook(remember),
            site.part("decoder_out").register_forward_hook(shuffle),
        ):
            stack.callback(handle.remove)
        yield


@contextmanager
def low_pass(site: Site) -> Iterator[None]:
    """The decoder smooths over nine frames: what changes fast is gone.

    An upsampling layer with too long a kernel, or a loss that forgives blur. Slow parts are reconstructed well, so
    that a mean error looks tolerable; the spectrum shows what is missing.
    """

    def smooth(_module: object, _inputs: object, output: Tensor) -> Tensor:
        in_time = output.transpose(1, 2)
        return functional.avg_pool1d(in_time, 9, stride=1, padding=4, count_include_pad=False).transpose(1, 2)

    handle = site.part("decoder_out").register_forward_hook(smooth)
    try:
        yield
    finally:
        handle.remove()
