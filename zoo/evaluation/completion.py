"""Images of which a half is hidden, and what a model makes of it that reads them row by row.

x is images of integers (n, C, H, W); a model that completes them has `prompt` among the options of its sample, and
says in its protocol that it reads by row, column and channel.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo import chance
from zoo.evaluation.likelihood import options_in_force
from zoo.evaluation.samples import grid
from zoo.types import Sampler, can

READS = "row, column, channel"
GIVEN = ("top",)


def check(model: Any, given: str, facts: Mapping[str, Any]) -> None:
    """Raise ValueError where a model cannot go on from the given half of such data."""
    name = type(model).__name__
    if given not in GIVEN:
        raise ValueError(f"given={given}: the half that can be given is {', '.join(GIVEN)}")
    if facts.get("kind") != "image" or not facts.get("levels") or len(facts["shape"]) != 3:
        raise ValueError(f"given={given} asks for images of integers, and {facts['name']} has none")
    if not can(model, Sampler) or "prompt" not in inspect.signature(model.sample).parameters:
        raise ValueError(
            f"given={given}: {name} cannot go on from a part of an image; an autoregressive model can, as "
            "model=pixelcnn or model=transformer"
        )
    order = getattr(model, "protocol", {}).get("order")
    if order != READS:
        raise ValueError(
            f"given={given}: {name} reads an image in another order ({order}), in which its upper half does not "
            f"come first; it takes one that reads by {READS}"
        )


@torch.inference_mode()
def completed(
    model: Any,
    x: Tensor,
    *,
    each: int,
    y: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 256,
) -> tuple[Tensor, dict[str, Any]]:
    """Images whose upper half is that of x, each completed several times: (n, each, C, H, W); and the options in force.

    The upper half are the first H // 2 rows. Drawn `batch` at a time, each keyed to the seed and its place.
    ValueError for each < 1 and an unknown option.
    """
    if each < 1:
        raise ValueError(f"completions={each}: there is at least one of each image")
    force = options_in_force(model.sample, options or {}, "sample")
    half = x[:, :, : x.shape[2] // 2].movedim(1, -1).flatten(1).long()  # by row, column and channel
    drawn = []
    for i in range(each):
        for start in range(0, len(x), batch):
            chance.at(seed, "completion", i, start)
            here = half[start : start + batch]
            label = None if y is None else y[start : start + batch]
            drawn.append(model.sample(len(here), label, **{**force, "prompt": here}))
    force.pop("prompt")
    return torch.cat(drawn).unflatten(0, (each, -1)).transpose(0, 1), force


def sheet(x: Tensor, completions: Tensor, levels: int) -> Tensor:
    """A line for each image: it, its upper half over grey, its completions.  -> uint8 (3, h, w)"""
    each = completions.shape[1]
    images = torch.cat([x[:, None], x[:, None], completions.to(x)], 1).float() * (2 / (levels - 1)) - 1
    images[:, 1, :, x.shape[2] // 2 :] = 0.0
    return grid(images.flatten(0, 1), None, columns=each + 2)
