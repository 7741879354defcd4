"""MNIST (LeCun, Cortes, Burges 1998), in 256 levels of grey.

The files are the four original idx files, in ROOT/MNIST/raw, plain or as .gz (the layout of torchvision).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.data.arrays import Arrays, hold_out
from zoo.data.files import by_hand, download, find, unpack, verify

URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
FILES = {  # the sum of the .gz file, which is what a download is, and the sum of its content
    "train-images-idx3-ubyte": (
        "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "md5:6bbc9ace898e44ae57da46a324031adb",
    ),
    "train-labels-idx1-ubyte": (
        "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "md5:a25bea736e30d166cdddb491f175f624",
    ),
    "t10k-images-idx3-ubyte": (
        "md5:9fb629c4189551a2d022fa330f9573f3",
        "md5:2646ac647ad5339dbf082846283269ea",
    ),
    "t10k-labels-idx1-ubyte": (
        "md5:ec29112dd5afa0611ce80d1b7f02629c",
        "md5:27ae3e4e09519cfbb04c329615203637",
    ),
}


class MNIST(Arrays):
    """Handwritten digits: x (1, 28, 28) uint8 in 256 levels, y the digit.

    split "train" is the 60,000 training images without the last `holdout`, which are "val"; "test" the
    10,000. LookupError for "val" if holdout=0. FileNotFoundError if the files are missing and cannot be
    downloaded; ValueError if one is not the published one.
    """

    def __init__(self, split: str, *, root: str | Path, holdout: int = 10_000) -> None:
        x, y, name = grey(split, Path(root), holdout)
        super().__init__(x, y, levels=256, classes=10, name=name)


def grey(split: str, root: Path, holdout: int) -> tuple[Tensor, Tensor, str]:
    """Images (N, 1, 28, 28), labels (N,) and the file that an error names."""
    kind = "t10k" if split == "test" else "train"
    x, path = _idx(root, f"{kind}-images-idx3-ubyte")
    y, label_path = _idx(root, f"{kind}-labels-idx1-ubyte")
    if len(x) != len(y):
        raise ValueError(
            f"{label_path} holds {len(y)} labels for the {len(x)} images of {path}; they belong together"
        )
    if split != "test":
        part = hold_out(split, len(x), holdout)
        x, y = x[part], y[part]
    return x.unsqueeze(1), y, str(label_path)


def _idx(root: Path, name: str) -> tuple[Tensor, Path]:
    """One of the four files, checked, and where it lies."""
    folder = root / "MNIST" / "raw"
    packed, plain = FILES[name]
    path = find(folder, name)
    if path is None:
        urls = [f"{url}{name}.gz" for url in URLS]
        path = download(urls, folder / f"{name}.gz", packed, needs=by_hand(f"{name}.gz", folder))
    content = unpack(path)
    array = read_idx(content, path)
    verify(content, path, [plain])
    return array, path


def read_idx(content: bytes, path: Path) -> Tensor:
    """An idx file of bytes: 0, 0, 8, number of axes; one big-endian int32 per axis; then uint8 in C order.

    ValueError, naming the file, if the head is not that of such a file or promises another length.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(
            f"{path} is not an idx file of bytes: it begins with {content[:4].hex()}, not with 000008"
        )
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content, ">i4", content[3], 4).tolist()
    if len(content) - start != np.prod(shape):
        size = " x ".join(map(str, shape))
        raise ValueError(
            f"{path} is cut short or miscounted: its head says {size} bytes, {len(content) - start} follow"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
