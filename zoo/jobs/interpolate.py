"""Turn images of the test split into one another through a trained model's latent space, into its run's folder."""

from pathlib import Path

import torch
from torch import nn

from zoo.evaluation.interpolation import check, interpolated, sheet
from zoo.evaluation.samples import write_png
from zoo.jobs.measure import found
from zoo.runs import Run
from zoo.training.loaders import Loaders


def interpolate(
    model: nn.Module, loaders: Loaders, run: Run, name: str, *, n: int, steps: int, step: int = 0
) -> Path:
    """Draw n pairs of images, evenly spread, with `steps` pictures from one to the other; returns the picture's path.

    Each line ends in the image that the next one begins with. ValueError for data and models that this cannot be
    done with, and for more images than there are.
    """
    check(model, steps, loaders.facts)
    (split, *_) = found(loaders, ("test",))
    dataset = loaders.dataset(split)
    if n + 1 > len(dataset):
        raise ValueError(f"n={n} takes {n + 1} images, and the {split} split has {len(dataset)}")
    x = dataset[torch.arange(n + 1) * len(dataset) // (n + 1)]["x"]
    seen = x.to(next(model.parameters()).device)
    between = interpolated(model, seen[:-1], seen[1:], steps=steps)
    path = run.samples / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(sheet(x[:-1], x[1:], between.cpu(), loaders.facts["levels"]), path)
    results = run.results
    results.setdefault("samples", {})[path.name] = {
        "n": n,
        "interpolate": steps,
        "split": split,
        "step": step,
    }
    run.write_results(results)
    return path
