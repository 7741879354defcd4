"""From one image to another on a straight line between what a model encodes them to.

a and b are images as the dataset gives them (n, C, H, W); the model is a Codec whose latents are real numbers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.evaluation.samples import grid
from zoo.types import Codec, can


def check(model: Any, steps: int, facts: Mapping[str, Any]) -> None:
    """Raise ValueError where a model has no line to go along, or such data no pictures of it."""
    if steps < 2:
        raise ValueError(f"interpolate={steps}: it takes two pictures at least, the first and the last")
    if facts.get("kind") != "image" or len(facts["shape"]) != 3:
        raise ValueError(f"interpolate={steps} asks for images, and {facts['name']} has none")
    if not can(model, Codec) or model.latent.levels is not None:
        raise ValueError(
            f"interpolate={steps}: {type(model).__name__} has no latents that are real numbers; a flow or a VAE has, "
            "as model=glow or model=vae"
        )


@torch.inference_mode()
def interpolated(model: Codec, a: Tensor, b: Tensor, *, steps: int = 9) -> Tensor:
    """Pictures on the way from a to b: (n, steps, C, H, W), decode(z_a + t (z_b - z_a)) with t from 0 to 1.

    The first and the last are what the model makes of a and b: of a flow a and b themselves, of a VAE less.
    """
    start, stop = model.encode(a), model.encode(b)
    line = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return torch.stack([model.decode(torch.lerp(start, stop, t)) for t in line], 1)


def sheet(a: Tensor, b: Tensor, between: Tensor, levels: int | None) -> Tensor:
    """A line for each pair: a, the pictures between, b.  -> uint8 (3, h, w)"""
    images = torch.cat([a[:, None], between.to(a), b[:, None]], 1)
    return grid(images.flatten(0, 1), levels, columns=images.shape[1])
