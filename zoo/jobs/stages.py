"""The way from noise to samples of a diffusion model, in pictures, into its run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.evaluation import draw
from zoo.evaluation.samples import grid, write_png
from zoo.runs import Run
from zoo.training.loaders import Loaders


def stages(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    n: int,
    columns: int,
    options: Mapping[str, Any],
    y: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Path:
    """Draw n samples, a line for each, with `columns` stages of a solver's steps, evenly; returns the picture's path.

    The first is the noise, the last the sample. ValueError for data and models that this cannot be done with, and for
    fewer steps than stages.
    """
    facts = loaders.facts
    if facts.get("kind") != "image":
        raise ValueError(f"along={columns} shows images, and {facts['name']} has none")
    stepping = next((part for part in model.modules() if hasattr(part, "watch")), None)
    if stepping is None or not hasattr(model, "shown"):
        raise ValueError(f"along={columns}: {type(model).__name__} has no way to its samples; model=ddpm has")
    if columns < 2:
        raise ValueError(f"along={columns}: at least 2, the noise and the sample")
    seen: list[Tensor] = []
    before, stepping.watch = stepping.watch, lambda i, t, x: seen.append(model.shown(x, t).cpu())
    try:
        x, force = draw(model, n, y=y, options=options, seed=seed)
    finally:
        stepping.watch = before
    if len(seen) < columns:
        raise ValueError(
            f"along={columns}: this solver told of {len(seen)} stages; take sample.steps={columns - 1} or more, and "
            "another solver than rk45"
        )
    seen[-1] = x.cpu()
    picked = torch.linspace(0, len(seen) - 1, columns).round().int().tolist()
    lines = torch.stack([seen[i] for i in picked], 1)
    path = run.samples / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(grid(lines.flatten(0, 1), facts["levels"], columns=columns), path)
    results = run.results
    told = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in force.items()}
    about = {"n": n, "along": columns, "seed": seed, "options": told, "step": step}
    results.setdefault("samples", {})[path.name] = about
    run.write_results(results)
    return path
