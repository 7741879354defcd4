"""Complete half-hidden images of the test split with a trained model, into its run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation.completion import check, completed, sheet
from zoo.evaluation.samples import write_png
from zoo.jobs.measure import found
from zoo.runs import Run
from zoo.training.loaders import Loaders


def complete(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    given: str,
    n: int,
    each: int,
    options: Mapping[str, Any],
    seed: int = 0,
    y: Tensor | None = None,
    step: int = 0,
) -> Path:
    """Draw original, hidden and completed images side by side, n of them evenly spread; returns the picture's path.

    given   which half is kept: top
    each    completions of each image
    y       labels (n,); None: the images' own, for a model that takes labels

    ValueError for data and models that this cannot be done with, and for more images than there are.
    """
    check(model, given, loaders.facts)
    (split, *_) = found(loaders, ("test",))
    dataset = loaders.dataset(split)
    if n > len(dataset):
        raise ValueError(f"n={n}: the {split} split has {len(dataset)} images")
    chance.at(seed, "images")
    batch = dataset[torch.arange(n) * len(dataset) // n]
    device = next(model.parameters()).device
    if y is None and getattr(model, "conditional", False):
        y = batch["y"].to(device)
    images, force = completed(model, batch["x"].to(device), each=each, y=y, options=options, seed=seed)
    path = run.samples / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(sheet(batch["x"], images.cpu(), loaders.facts["levels"]), path)
    results = run.results
    told = {"n": n, "seed": seed, "given": given, "completions": each, "split": split}
    results.setdefault("samples", {})[path.name] = {**told, "options": force, "step": step}
    run.write_results(results)
    return path
