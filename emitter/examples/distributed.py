"""The example on several ranks: one process each, started by ``torchrun``; alone, everything here does nothing."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch import Tensor, nn


def join() -> int:
    """Join the other ranks when started by ``torchrun``; return this process's rank, 0 when it is alone."""
    if "RANK" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def leave() -> None:
    """Take leave of the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the ranks."""
    if not dist.is_initialized():
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the tensor, summed in place over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def take_from_first_rank(tensor: Tensor) -> None:
    """Overwrite the tensor with rank 0's."""
    if dist.is_initialized():
        dist.broadcast(tensor, src=0)
