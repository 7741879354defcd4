"""Points that a run makes, beside real ones: how near they are, how straight the ways to them, how all of it looks."""

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation import drawn, nfe, options_in_force, told
from zoo.evaluation.points import MOST, w2_squared
from zoo.nn.solvers import along
from zoo.runs.plot import COLOURS, GREY
from zoo.training.loaders import Loaders

METRICS = ("w2_squared", "straightness")
REAL, WAYS = 2000, 40  # points of a split and ways from the source in a picture
SIDE, DOTS = 3.2, 160  # inches of a picture, dots of an inch
FAR = 1.6  # how far a picture reaches from the middle of the data, in parts of their own reach


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
        force = options_in_force(model.sample, asked["sample"], "sample")
        parts, spent = [], []
        for part in drawn(model, n, options=asked["sample"], seed=seed):
            parts.append(part)
            spent.append(getattr(model, "evaluations", None))
        y = torch.cat(parts)
        value = w2_squared(x.to(y.device), y)
        how = {"method": "samples", "samples": n, **told(model, force), **nfe(spent), **own}
        seconds = round(time.perf_counter() - started, 3)
        numbers.append({**common, "name": "w2_squared", "value": value, "protocol": how, "seconds": seconds})
    if "straightness" in asked["metrics"]:
        chance.at(seed, "straightness")
        with torch.inference_mode():
            bends = model.straightness(n).double()
        error = float(bends.std()) / math.sqrt(n)
        how = {"method": "samples", "samples": n, "solver": "euler", "steps": 100, **own}
        value = float(bends.mean())
        numbers.append({**common, "name": "straightness", "value": value, "stderr": error, "protocol": how})
    return numbers


def plane(facts: Mapping[str, Any]) -> bool:
    """Whether data are points that can be drawn: real numbers, two of them."""
    return facts.get("levels") is None and tuple(facts["shape"]) == (2,)


def picture(
    model: nn.Module, x: Tensor, dataset: Any, path: Path, *, y: Tensor | None = None, seed: int = 0
) -> Path | None:
    """Draw samples x (n, 2) over points of a dataset, and the ways that a flow takes from its source; returns the path.

    The ways are those of the model's field, from noise of their own in many small steps, whatever the samples were
    solved by. What is far beyond the data is counted, not seen. None, and a sentence, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        print(
            f"{path.name} is not drawn: matplotlib is not installed; uv sync --extra plot brings it",
            file=sys.stderr,
        )
        return None
    n = min(REAL, len(dataset))
    real, x = dataset[torch.arange(n) * len(dataset) // n]["x"].cpu(), x.cpu()
    canvas = Canvas(figsize=(SIDE, SIDE))
    axes: Any = canvas.add_axes((0.01, 0.1, 0.98, 0.89))
    middle = (real.amin(0) + real.amax(0)) / 2
    reach = FAR * float((real - middle).abs().max())
    if hasattr(model, "field"):
        chance.at(seed, "ways")
        with torch.inference_mode():
            y = model.asked(WAYS, None if y is None else y[:1].expand(WAYS, *y.shape[1:]))
            _, ways = along(model.field(y), model.noise(WAYS))
        axes.plot(*ways.cpu().unbind(-1), color=COLOURS[1], linewidth=0.6, alpha=0.6)
        axes.plot([], [], color=COLOURS[1], linewidth=0.6, label="ways")
    axes.scatter(*real.T, s=3, color=GREY, alpha=0.25, linewidths=0, label="data")
    beyond = len(x) - int(((x - middle).abs() <= reach).all(-1).sum())
    name = f"samples ({beyond} beyond)" if beyond else "samples"
    axes.scatter(*x.T, s=9, color=COLOURS[0], alpha=0.9, linewidths=0, label=name)
    axes.set_xlim(float(middle[0]) - reach, float(middle[0]) + reach)
    axes.set_ylim(float(middle[1]) - reach, float(middle[1]) + reach)
    axes.set_axis_off()
    canvas.legend(loc="lower center", ncols=3, frameon=False, fontsize=9, markerscale=2)
    canvas.savefig(path, dpi=DOTS)
    return path
