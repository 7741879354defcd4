"""Pairs of noise and what a trained flow makes of it, for another flow to be trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo import chance
from zoo.nn.solvers import solve
from zoo.runs import Run
from zoo.training.loaders import Loaders

AT_ONCE = 256  # pairs made together
FACTS = ("kind", "shape", "levels", "classes", "unit")
OPTIONS = ("solver", "steps", "shift", "tolerance", "guidance")


def pairs(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    folder: Path,
    *,
    n: int,
    options: Mapping[str, Any],
    seed: int = 0,
    which: str = "",
) -> Path:
    """Write n pairs (x, noise), with labels where the model takes them, into a folder; returns their file.

    options     solver, steps, shift, tolerance and guidance, as zoo.models.Diffusion.sample has them
    which       what is said of the run's weights

    ValueError for a model that is no flow from noise to data, for other options, and for a solver that draws noise.
    """
    if not hasattr(model, "field"):
        raise ValueError(
            f"run={run.folder}: {type(model).__name__} makes no data of noise by an ODE; model=rectified_flow does"
        )
    if other := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"sample.{other[0]}: pairs are made by the ODE alone, with {', '.join(OPTIONS)}")
    options = {"solver": "rk45", "shift": model.shift, "guidance": 1.0, **options}
    if options["solver"] == "ddpm":
        raise ValueError("solver=ddpm draws noise at each step, to which no pair belongs; try rk45 or heun")
    steps = {name: value for name, value in options.items() if name != "guidance"}
    parts: dict[str, list[np.ndarray]] = {"x": [], "noise": [], "y": []}
    for start in range(0, n, AT_ONCE):
        chance.at(seed, "reflow", start)
        with torch.inference_mode():
            noise = model.noise(min(AT_ONCE, n - start))
            y = model.asked(len(noise), None)
            x = model.interval.data(solve(model.field(y, guidance=options["guidance"]), noise, **steps))
        for name, part in (("x", x), ("noise", noise), ("y", y)):
            if part is not None:
                parts[name].append(part.cpu().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.npz"
    np.savez(path, **{name: np.concatenate(part) for name, part in parts.items() if part})
    facts = {name: loaders.facts.get(name) for name in FACTS}
    if not parts["y"]:
        facts["classes"] = None
    made_by = {"run": (run.identity or "unknown")[:12], "weights": which, "n": n, "seed": seed, **options}
    base = run.config["dataset"]["source"]
    (folder / "facts.json").write_text(
        json.dumps({**facts, "made_by": made_by, "base": base}, indent=2) + "\n"
    )
    return path
