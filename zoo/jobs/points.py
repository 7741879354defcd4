"""Points that a run makes, beside real ones: how near they are, and how straight the ways to them."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation import draw
from zoo.evaluation.points import MOST, w2_squared
from zoo.training.loaders import Loaders

METRICS = ("w2_squared", "straightness")


def check(model: nn.Module, metrics: set[str], loaders: Loaders) -> None:
    """Raise ValueError for one of METRICS that cannot be had of this model and data."""
    shape, levels = loaders.facts["shape"], loaders.facts.get("levels")
    if "w2_squared" in metrics and (levels is not None or math.prod(shape) > MOST):
        raise ValueError(
            f"metrics=w2_squared is of real numbers in up to {MOST} dimensions, not {loaders.facts.get('name')}"
        )
    if "straightness" in metrics and not hasattr(model, "straightness"):
        raise ValueError(
            f"metrics=straightness: {type(model).__name__} has no path; model=rectified_flow has"
        )


def measured(
    model: nn.Module, loaders: Loaders, asked: Mapping[str, Any], *, split: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Of METRICS those that are asked for, over `samples` of samples, or as many as the split has points.

    w2_squared    the squared 2-Wasserstein distance to as many points of the split, evenly spread over it
    straightness  the mean over time and samples of |(x_1 - x_0) - v|^2, by 100 steps of Euler
    """
    dataset = loaders.dataset(split)
    n = min(asked["samples"], len(dataset))
    common = {"unit": "", "kind": "estimate", "split": split, "count": n}
    own, numbers = getattr(model, "protocol", {}), []
    if "w2_squared" in asked["metrics"]:
        started = time.perf_counter()
        x = dataset[torch.arange(n) * len(dataset) // n]["x"]
        y, force = draw(model, n, options=asked["sample"], seed=seed)
        value = w2_squared(x.to(y.device), y)
        options = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in force.items()}
        spent = getattr(model, "evaluations", None)
        told = {"method": "samples", "samples": n, **options, **({"nfe": spent} if spent else {}), **own}
        seconds = round(time.perf_counter() - started, 3)
        numbers.append({**common, "name": "w2_squared", "value": value, "protocol": told, "seconds": seconds})
    if "straightness" in asked["metrics"]:
        chance.at(seed, "straightness")
        with torch.inference_mode():
            bends = model.straightness(n).double()
        error = float(bends.std()) / math.sqrt(n)
        told = {"method": "samples", "samples": n, "solver": "euler", "steps": 100, **own}
        value = float(bends.mean())
        numbers.append({**common, "name": "straightness", "value": value, "stderr": error, "protocol": told})
    return numbers
