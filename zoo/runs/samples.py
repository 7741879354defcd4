"""The samples of runs, side by side: a picture or a text for each row of a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.runs.rows import Row

PICTURE, TEXT = ".png", ".txt"
ORDER = ("final", "evaluated")  # which file is shown of several; else the first by name
ACROSS = 4  # pictures side by side


class Sample(NamedTuple):
    """A file of the run with a row's first seed that has one, and what its results say of how it was drawn."""

    name: str
    path: Path
    how: str


def samples(rows: Sequence[Row]) -> list[Sample]:
    """One for each row whose runs have any."""
    found = []
    for row in rows:
        for run in sorted(row.runs, key=lambda run: str(run.config.get("seed"))):  # rows show the same seed
            folder = run.folder / "samples"
            paths = [path for path in sorted(folder.glob("*")) if path.suffix in (PICTURE, TEXT)]
            paths.sort(key=lambda path: ORDER.index(path.stem) if path.stem in ORDER else len(ORDER))
            if paths:
                seed = f"seed {run.config.get('seed', 'unknown')}"
                found.append(Sample(" ".join(row.labels), paths[0], f"{run.folder.name}, {seed}"))
                break
    return found


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write the rows' pictures side by side into <out>.png; returns its path.

    Raises ValueError where no run has a picture, ImportError, in a sentence, without matplotlib.
    """
    shown = [sample for sample in samples(rows) if sample.path.suffix == PICTURE]
    if not shown:
        raise ValueError(
            "no run has a picture among its samples; scripts/sample.py run=runs/<one> draws some, and "
            "--format html shows texts too"
        )
    try:
        from matplotlib.figure import Figure as Canvas
        from matplotlib.image import imread
    except ImportError:
        raise ImportError(
            "pictures need matplotlib, which is not installed; uv sync --extra plot brings it"
        ) from None
    pictures = [imread(sample.path) for sample in shown]
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    canvas = Canvas(figsize=(3.2 * across, 3.5 * down))
    for i, (sample, picture) in enumerate(zip(shown, pictures, strict=True)):
        axes: Any = canvas.add_subplot(down, across, i + 1)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(sample.name, fontsize=10)
        axes.set_xlabel(sample.how, fontsize=6.5, color="#666666")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    canvas.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(PICTURE)
    canvas.savefig(path, dpi=200)
    return [path]
