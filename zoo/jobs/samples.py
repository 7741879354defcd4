"""Samples of a run, drawn into its folder, and what they are asked to be: a prompt, a label, a caption."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.evaluation import draw, save, told
from zoo.jobs import points
from zoo.runs import Run
from zoo.training.loaders import Loaders
from zoo.types import Sampler, can


def sample(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    n: int,
    options: Mapping[str, Any],
    seed: int = 0,
    y: Tensor | None = None,
    loggers: Sequence[Any] = (),
    step: int = 0,
) -> Path | None:
    """Draw n samples into the run's folder, as a picture or as text, points as both; returns the path, the picture's.

    None where the model cannot sample, or n is 0.
    """
    if n == 0 or not can(model, Sampler):
        return None
    x, force = draw(model, n, y=y, options=options, seed=seed)
    split = next(split for split in ("train", "val", "test") if loaders.has(split))
    path, shown = save(x, loaders.facts, run.samples / name, getattr(loaders.dataset(split), "decode", None))
    drawn = [path]
    if points.plane(loaders.facts):
        beside = path.with_name(f"{name}.png")
        drawn += filter(None, [points.picture(model, x, loaders.dataset(split), beside, y=y, seed=seed)])
    results = run.results
    for file in drawn:
        about = {"n": n, "seed": seed, "options": told(model, force), "step": step}
        about |= {} if y is None else {"y": y.tolist()}
        results.setdefault("samples", {})[file.name] = about
    run.write_results(results)
    for logger in loggers:
        if hasattr(logger, "samples"):
            logger.samples(step, shown[None] if isinstance(shown, Tensor) else shown)
    return drawn[-1]


def prompt(loaders: Loaders, text: str, n: int) -> Tensor:
    """A text's tokens, (n, P): what n samples begin with. ValueError for data that are no text."""
    encode = getattr(loaders.dataset("train"), "encode", None)
    if encode is None:
        raise ValueError(f"prompt={text!r}: {loaders.facts['name']} is no text")
    return encode(text).expand(n, -1)


def labels(model: nn.Module, loaders: Loaders, y: int | None, n: int) -> Tensor | None:
    """One label for n samples, (n,). ValueError where the model takes none, or the data have no such class."""
    if y is None:
        return None
    classes = loaders.facts.get("classes")
    if not getattr(model, "conditional", False):
        raise ValueError(f"y={y}: this {type(model).__name__} was not trained with labels (conditional=true)")
    if hasattr(loaders.dataset("train"), "told"):
        raise ValueError(f"y={y}: {loaders.facts['name']} has captions, not labels; give caption='...'")
    if not classes or not 0 <= y < classes:
        raise ValueError(f"y={y}: {loaders.facts['name']} has the classes 0 to {(classes or 0) - 1}")
    return torch.full((n,), y, device=next(model.parameters()).device)


def caption(model: nn.Module, loaders: Loaders, text: str, n: int) -> Tensor:
    """A caption's tokens for n samples, (n, L). ValueError where the model or the data have no captions."""
    tell = getattr(loaders.dataset("train"), "told", None)
    if tell is None or not getattr(model, "conditional", False):
        raise ValueError(
            f"caption={text!r}: this {type(model).__name__} was not trained with captions (condition=caption)"
        )
    return tell(text).expand(n, -1).to(next(model.parameters()).device)


def show_steps(model: nn.Module) -> None:
    """Have a model that samples step by step tell of it, where someone sits before the screen."""
    for part in model.modules():
        if hasattr(part, "watch") and sys.stderr.isatty():
            part.watch = Steps()


class Steps:
    """Draws the step that a sampler is at, a few times a second."""

    def __init__(self) -> None:
        self.drawn = 0.0

    def __call__(self, i: int, t: Any, x: Any) -> None:
        if (now := time.monotonic()) - self.drawn > 0.2:
            self.drawn = now
            print(f"\rsampling  step {i}, {len(x)} at once ", end="\r", file=sys.stderr, flush=True)
