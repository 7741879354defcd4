"""The user's own images, as .npz, .parquet or image files, held in one tensor.

ROOT is one file or a folder. A file, or a folder without train, val and test in it, is divided by fractions.

    digits.npz            x (N, ...) and maybe y (N,); or train_x, train_y, val_x, ...
    photos.parquet        columns x or image (numbers, or encoded images), y or label
    ROOT/train.npz ...    one file per split, .npz or .parquet, as above
    ROOT/train/cat/1.png  one folder per split; folders in it, in the order of their names, are the classes
    ROOT/cat/1.png        the same, all in one, or without classes: ROOT/1.png
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.arrays import Arrays

Columns = tuple[NDArray[Any], NDArray[Any] | None, bool]  # x, y, and whether a split was already chosen

SPLITS = ("train", "val", "test")
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class Own(Arrays):
    """The user's own images: x of the given shape, uint8 in [0, levels), and y where there are labels.

    root            a file or folder, as the module describes; colours last, (N, H, W, C), are put first
    shape, levels   the facts; nothing is resized or rescaled, what doesn't fit is refused with the size found
    classes         labels lie in [0, classes), and every example needs one; None: labels are not read
    val, test       fractions for data that come undivided: drawn once and for all, a function of N alone

    FileNotFoundError if there is no such place or it holds no images; LookupError for a split that isn't
    there; ValueError, naming the file, for whatever doesn't keep the facts or cannot be read.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        shape: tuple[int, ...],
        levels: int = 256,
        classes: int | None = None,
        val: float = 0.1,
        test: float = 0.1,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; there are train, val and test")
        if not 2 <= levels <= 256:
            raise ValueError(f"levels={levels} do not fit into uint8; images have 2 to 256 levels")
        if min(val, test) < 0 or val + test >= 1:
            raise ValueError(f"val={val} and test={test} leave nothing to train on; try val=0.1 test=0.1")
        root, shape = Path(root), tuple(shape)
        if not root.exists():
            raise FileNotFoundError(
                f"{root} does not exist; root= names a folder of images or a .npz or .parquet file"
            )
        place = _place(root, split)
        x, y, divided = (
            _images(place, root, shape, classes) if place.is_dir() else _table(place, split, shape)
        )
        if classes is None:
            y = None
        elif y is None:
            raise ValueError(
                f"{place} holds no labels but classes={classes}; give classes=null or add labels"
            )
        if y is not None and len(y) != len(x):
            raise ValueError(f"{place} holds {len(x)} images but {len(y)} labels; each image needs one")
        x = _fit(x, shape, levels, place)
        if place == root and not divided:
            mine = _share(len(x), split, val, test)
            x, y = x[mine], None if y is None else y[mine]
        y = None if y is None else torch.from_numpy(np.ascontiguousarray(y)).long()
        super().__init__(torch.from_numpy(x), y, levels=levels, classes=classes, name=str(place))


def _place(root: Path, split: str) -> Path:
    """The file or folder that holds a split: the root itself if it isn't divided into splits."""
    if root.is_file():
        return root
    found = {s: p for s in SPLITS for p in (root / s, root / f"{s}.npz", root / f"{s}.parquet") if p.exists()}
    if found and split not in found:
        raise LookupError(f"no {split} split: {root} has {', '.join(found)}")
    return found.get(split, root)


def _share(count: int, split: str, val: float, test: float) -> NDArray[np.int64]:
    """Which of `count` undivided examples belong to a split: a fixed shuffle, cut in three."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    cut = (round(count * (1 - val - test)), count - round(count * test))
    part = dict(zip(SPLITS, np.split(order, cut), strict=True))[split]
    if not len(part):
        raise LookupError(
            f"no {split} split: {count} examples with val={val} and test={test} leave none for it"
        )
    return np.sort(part)


def _fit(x: NDArray[Any], shape: tuple[int, ...], levels: int, place: Path) -> NDArray[np.uint8]:
    """The images as uint8 (N, *shape); ValueError if their values or sizes are others."""
    if not len(x):
        raise ValueError(f"{place} holds no images")
    if x.dtype.kind not in "uib":
        raise ValueError(f"{place} holds {x.dtype} values; images are whole numbers, 0 to {levels - 1}")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(
            f"{place} holds values from {low} to {high}, but levels={levels} allows only 0 to {levels - 1}"
        )
    size = x.shape[1:]
    if shape[0] == 1 and size == shape[1:]:
        x = x[:, None]  # grey images may leave out their one channel
    elif size != shape and size == (*shape[1:], shape[0]):
        x = np.moveaxis(x, -1, 1)  # colours last, as most programs write them
    if x.shape[1:] != shape:
        raise ValueError(
            f"{place} holds images of size {list(size)}, but shape={list(shape)}; resize them or change it"
        )
    return np.ascontiguousarray(x, dtype=np.uint8)


def _table(path: Path, split: str, shape: tuple[int, ...]) -> Columns:
    """The content of a file, which may itself be divided into splits."""
    read = {".npz": _npz, ".parquet": _parquet}.get(path.suffix)
    if read is None:
        raise ValueError(f"{path} is neither .npz nor .parquet nor a folder of images")
    try:
        columns = read(path, shape)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    divided = "train_x" in columns
    prefix = f"{split}_" if divided else ""
    if f"{prefix}x" not in columns:
        if divided:
            raise LookupError(f"no {split} split: {path} has {', '.join(columns)}")
        raise ValueError(f"{path} has {', '.join(columns)}, but images are looked for in x, image or train_x")
    y = columns.get(f"{prefix}y")
    if y is not None and (y.ndim != 1 or y.dtype.kind not in "ui"):
        raise ValueError(f"{path} holds labels of {y.dtype} {y.shape}; they are whole numbers, one per image")
    return columns[f"{prefix}x"], y, divided


def _npz(path: Path, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _parquet(path: Path, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Columns x and y; a cell of x is numbers or an encoded image, bare or as `datasets` has it."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    columns = {
        {"image": "x", "img": "x", "label": "y"}.get(n, n): table[n].to_pylist() for n in table.column_names
    }
    if "x" in columns:
        cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in columns["x"]]
        if cells and isinstance(cells[0], bytes):
            arrays = [_decode(io.BytesIO(cell), f"row {row}", shape[0]) for row, cell in enumerate(cells)]
            columns["x"] = _stack(arrays, [f"row {row}" for row in range(len(cells))], shape)
        else:
            x = np.array(cells)
            columns["x"] = x.reshape(-1, *shape) if x.ndim == 2 and x[0].size == np.prod(shape) else x
    return {name: np.asarray(column) for name, column in columns.items() if name in ("x", "y")}


def _images(folder: Path, root: Path, shape: tuple[int, ...], classes: int | None) -> Columns:
    """Image files of a folder in the order of their names; labels, if asked for, are their folders'."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no images; looked for {' '.join(sorted(IMAGES))}, also in its folders"
        )
    x = _stack([_decode(p, str(p), shape[0]) for p in paths], [str(p) for p in paths], shape)
    if classes is None:
        return x, None, False
    parts = [root] if folder == root else [root / split for split in SPLITS if (root / split).is_dir()]
    names = sorted(
        {p.name for part in parts for p in part.iterdir() if p.is_dir()}
    )  # of all splits: one meaning
    if len(names) != classes or any(p.parent == folder for p in paths):
        raise ValueError(
            f"{root} holds {len(names)} folders of images, but classes={classes}; each class needs one"
        )
    return x, np.array([names.index(p.relative_to(folder).parts[0]) for p in paths]), False


def _stack(images: list[NDArray[np.uint8]], names: list[str], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    for image, name in zip(images, names, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{name} has size {list(image.shape)}, but shape={list(shape)}; resize the images first"
            )
    return np.stack(images)


def _decode(file: Path | io.BytesIO, name: str, channels: int) -> NDArray[np.uint8]:
    """One encoded image as (C, H, W), grey for one channel, red green blue for three."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits per value (mode {image.mode})")
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is no readable image ({error})") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
