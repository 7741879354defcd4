"""Images of the test split beside what is left of them after a codec, into its run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation.samples import grid, write_png
from zoo.jobs.measure import found
from zoo.runs import Run
from zoo.training.loaders import Loaders
from zoo.types import Codec, can

GIVEN = "reconstruction"
COLUMNS = 16  # of a picture


def shows(model: nn.Module, facts: Mapping[str, Any]) -> bool:
    """Whether a model codes images of integers, and so has reconstructions to show."""
    return can(model, Codec) and facts.get("kind") == "image" and bool(facts.get("levels"))


@torch.inference_mode()
def reconstruct(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    n: int,
    seed: int = 0,
    loggers: Sequence[Any] = (),
    step: int = 0,
) -> Path:
    """Draw n images, or all there are, in lines, and under each line decode(encode(x)); returns the picture's path.

    ValueError for data and models without.
    """
    facts = loaders.facts
    if not shows(model, facts):
        raise ValueError(
            f"given={GIVEN}: {type(model).__name__} does not code images of {facts['name']}; model=vqvae does"
        )
    (split, *_) = found(loaders, ("test",))
    dataset = loaders.dataset(split)
    n = min(n, len(dataset))
    x = dataset[torch.arange(n) * len(dataset) // n]["x"]
    chance.at(seed, GIVEN)
    back = model.decode(model.encode(x.to(next(model.parameters()).device))).to(x)
    picture = grid(paired(x, back), facts["levels"], columns=min(n, COLUMNS))
    path = run.samples / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(picture, path)
    results = run.results
    results.setdefault("samples", {})[path.name] = {"n": n, "given": GIVEN, "split": split, "step": step}
    run.write_results(results)
    for logger in loggers:
        if hasattr(logger, "samples"):
            logger.samples(step, picture[None])
    return path


def paired(x: Tensor, back: Tensor, columns: int = COLUMNS) -> Tensor:
    """Images and reconstructions (n, C, H, W), in lines of each by turns: (2 n, C, H, W)."""
    lines = [part for pair in zip(x.split(columns), back.split(columns)) for part in pair]
    if len(x) > columns and (short := -len(x) % columns):  # the last lines are filled up, with black
        blank = x.new_zeros(short, *x.shape[1:])
        lines[-2:] = [torch.cat([line, blank]) for line in lines[-2:]]
    return torch.cat(lines)
