"""What models of images by a latent share: bounds, how they begin at the data, and how they are found unwell."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.types import Space, Unfit

ENOUGH = 100_000  # examples that the mean of the data is measured from: all of MNIST
ALIVE = 0.1  # with a smaller part of its units active a latent says next to nothing


def mean_weight(draw: Callable[[int], Tensor], samples: int, *, together: int) -> Tensor:
    """log 1/K sum_k w_k from K = samples draws, (B,), float64; draw(k) gives the log weights (k, B) of k more.

    ValueError for samples < 1.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: the bound takes at least one draw")
    together = max(1, together)
    sizes = [min(together, samples - start) for start in range(0, samples, together)]
    return torch.cat([draw(size).double() for size in sizes]).logsumexp(0) - math.log(samples)


def gathered(batches: Iterable[dict[str, Tensor]], *, mean: bool, images: int) -> tuple[Tensor, Tensor]:
    """The mean of the first 100,000 examples, (C, H, W), if it is asked for, and so many images (N, C, H, W)."""
    first, total, count = [torch.empty(0)], torch.zeros(()), 0
    enough = max(images, ENOUGH if mean else 0)
    for batch in batches if enough else ():
        x = batch["x"]
        if count < images:
            first = [*(first if count else ()), x]
        total, count = total.to(x.device) + x.double().sum(0), count + len(x)
        if count >= enough:
            break
    return total / max(1, count), torch.cat(first)[:images]


def start_at(decoder: nn.Module, likelihood: Any, mean: Tensor) -> None:
    """Set the bias of decoder.output where the likelihood's is for data of this mean, (C, H, W)."""
    bias = decoder.output.bias
    value = likelihood.bias(mean if bias.numel() == mean.numel() else mean.mean((1, 2))).flatten()
    bias.copy_(
        value.repeat_interleave(bias.numel() // value.numel())
    )  # a pixel shuffle has 4 for each channel


def unit(x: Tensor, levels: int, like: Tensor) -> Tensor:
    """Integers in [0, levels) as real numbers in [0, 1], in the type of `like`."""
    scaled = x.to(like.dtype)
    return scaled / (levels - 1) if levels > 2 else scaled


def unused(active: float, units: int) -> list[str]:
    """A sentence where fewer than a tenth of a latent's units are active."""
    if active >= ALIVE * units:
        return []
    return [
        f"active_units={active:g} of {units}: the decoder leaves the latent unused; try a smaller beta, free_bits, a "
        "weaker decoder or a smaller latent"
    ]


def require_images(who: str, shape: Sequence[int], levels: int | None) -> None:
    """Unfit if the data are not images of integers."""
    if not _fits(Space(tuple(shape), levels)):
        raise Unfit(
            f"{who} models images of integers (C, H, W), not shape={list(shape)} with levels={levels}.", _fits
        )


def _fits(space: Space) -> bool:
    return len(space.shape) == 3 and space.levels is not None
