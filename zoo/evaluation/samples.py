"""Samples of a model: drawn by a seed, kept as a picture, as text, and as numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import chance
from zoo.evaluation.likelihood import options_in_force
from zoo.types import Sampler, can


def draw(
    model: Any,
    n: int,
    *,
    y: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 256,
) -> tuple[Tensor, dict[str, Any]]:
    """n samples (n, *shape), with the options in force; raises what `drawn` raises."""
    force = options_in_force(model.sample, options or {}, "sample") if can(model, Sampler) else {}
    return torch.cat(list(drawn(model, n, y=y, options=options, seed=seed, batch=batch))), force


@torch.inference_mode()
def drawn(
    model: Any,
    n: int,
    *,
    y: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 256,
) -> Iterator[Tensor]:
    """n samples, `batch` at a time, each part keyed to the seed and its place: (batch, *shape).

    An option that is a tensor, as a prompt, has a row for each. ValueError for a model that cannot sample, an
    unknown option or n < 1.
    """
    if not can(model, Sampler):
        raise ValueError(f"{type(model).__name__} cannot sample: it has no sample(n) (zoo/types.py, Sampler)")
    if n < 1:
        raise ValueError(f"n={n}: at least one sample must be drawn")
    force = options_in_force(model.sample, options or {}, "sample")
    for start in range(0, n, batch):
        chance.at(seed, "sample", start)
        stop = min(start + batch, n)
        own = {
            name: value[start:stop] if isinstance(value, Tensor) else value for name, value in force.items()
        }
        yield model.sample(stop - start, None if y is None else y[start:stop], **own)


def told(model: Any, force: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol tells of the options of `sample` in force: those that had a say, as plain values."""
    kept = model.of_use(force) if hasattr(model, "of_use") else force
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in kept.items()}


def nfe(evaluations: Sequence[int | None]) -> dict[str, float]:
    """{"nfe": n}, a network's evaluations for each example, the mean over the parts drawn; {} if none was counted.

    evaluations   what the model says of itself after each part: an adaptive solver spends another number on each
    """
    counted = [n for n in evaluations if n]
    return {"nfe": round(sum(counted) / len(counted), 1)} if counted else {}


def save(
    x: Tensor, facts: Mapping[str, Any], path: Path, decode: Callable[[Tensor], str] | None = None
) -> tuple[Path, list[str] | Tensor]:
    """Write samples as a PNG grid (images) or as text; returns the file, and the texts or the grid for loggers.

    x       (n, C, H, W) integers below facts["levels"], or (n, T) tokens, or real numbers
    path    without its ending
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if facts.get("kind") == "image":
        picture, path = grid(x, facts["levels"]), path.with_name(f"{path.name}.png")
        write_png(picture, path)
        return path, picture
    texts = [decode(row) if decode else " ".join(str(v) for v in row.flatten().tolist()) for row in x.cpu()]
    path = path.with_name(f"{path.name}.txt")  # a name may have dots: temperature=0.7
    path.write_text("\n\n----\n\n".join(texts) + "\n", encoding="utf-8")
    return path, texts


def grid(x: Tensor, levels: int | None, gap: int = 2, *, columns: int | None = None) -> Tensor:
    """Images side by side, as near to a square as their number allows: (n, C, H, W) -> uint8 (3, h, w).

    columns   how many in a line, if that is given
    """
    n, C, H, W = x.shape
    x = x.detach().cpu().float()
    x = x / (levels - 1) if levels else (x + 1) / 2
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.ones(3, rows * (H + gap) + gap, columns * (W + gap) + gap)
    for i, image in enumerate(x.clamp(0, 1)):
        top, left = gap + (i // columns) * (H + gap), gap + (i % columns) * (W + gap)
        sheet[:, top : top + H, left : left + W] = image if C == 3 else image[:1]
    return (sheet * 255).round().to(torch.uint8)


def write_png(picture: Tensor, path: Path, least: int = 512) -> None:
    """uint8 (3, h, w) as a PNG, each pixel enlarged so that the picture is at least `least` wide."""
    from PIL import Image

    zoom = max(1, round(least / picture.shape[-1]))
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
