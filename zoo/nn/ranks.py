"""Sums and choices that several processes of one training agree on; in a single process nothing is done."""

import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Whether this process trains with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(x: Tensor) -> Tensor:
    """The sum of x over all ranks, on each of them."""
    if together():
        x = x.clone()
        dist.all_reduce(x)
    return x


def averaged(x: Tensor) -> Tensor:
    """The mean of x over all ranks, on each of them."""
    return summed(x) / dist.get_world_size() if together() else x


def per_rank(count: Tensor, training: bool) -> Tensor:
    """By what a rank divides its sum over `count` tokens, at least 1, so that the mean over ranks is one over all.

    In training it is the mean count of the ranks, for gradients are averaged; in validation the rank's own.
    """
    return (averaged(count) if training else count).clamp(min=1)


def first(x: Tensor) -> Tensor:
    """Rank 0's x, on every rank."""
    if together():
        x = x.contiguous().clone()
        dist.broadcast(x, 0)
    return x
