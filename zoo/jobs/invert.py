"""Images of the test split, the noise that gives them, and what this noise gives: DDIM there and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.evaluation import options_in_force
from zoo.evaluation.samples import grid, write_png
from zoo.jobs.measure import found
from zoo.runs import Run
from zoo.training.loaders import Loaders

GIVEN = "inversion"


@torch.inference_mode()
def invert(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    n: int,
    options: Mapping[str, Any],
    y: Tensor | None = None,
    step: int = 0,
) -> tuple[Path, float]:
    """Draw n lines, evenly spread: image, noise, image again; returns the picture's path and the error.

    The error is the mean absolute difference of the two images, in levels.

    options   of the model's encode and decode: steps, guidance
    y         labels (n,); None: the images' own, for a model that takes labels

    ValueError for data and models that this cannot be done with, and for more images than there are.
    """
    facts = loaders.facts
    if facts.get("kind") != "image" or not facts.get("levels"):
        raise ValueError(f"given={GIVEN} asks for images of integers, and {facts['name']} has none")
    if not hasattr(model, "field"):
        raise ValueError(
            f"given={GIVEN}: {type(model).__name__} has no noise that gives an image; model=ddpm has"
        )
    force = options_in_force(model.encode, options, "sample")
    (split, *_) = found(loaders, ("test",))
    dataset = loaders.dataset(split)
    if n > len(dataset):
        raise ValueError(f"n={n}: the {split} split has {len(dataset)} images")
    batch = dataset[torch.arange(n) * len(dataset) // n]
    device = next(model.parameters()).device
    x = batch["x"].to(device)
    if y is None and getattr(model, "conditional", False):
        y = batch["y"].to(device)
    z = model.encode(x, y, **force)
    back = model.decode(z, y, **force)
    real = model.interval.real
    lines = torch.stack(
        [real(x, z.dtype), z / 2, real(back, z.dtype)], 1
    )  # noise of 2 deviations is black or white
    path = run.samples / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(grid(lines.flatten(0, 1), None, columns=3), path)
    error = float((back.double() - x.double()).abs().mean())
    results = run.results
    told = {"n": n, "given": GIVEN, "split": split, "options": force, "step": step, "error": error}
    results.setdefault("samples", {})[path.name] = told
    run.write_results(results)
    return path, error
