"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the files of the python version.

The files are pickles that hold one image per row: 1024 red, 1024 green, 1024 blue values. They lie in
ROOT/cifar-10-batches-py (or ROOT/cifar-100-python), plain, as .gz or as .xz, or still in the published
.tar.gz in ROOT.
"""

import gzip
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zoo.data.arrays import Arrays, hold_out
from zoo.data.files import by_hand, download, find, unpack, verify

_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # as NumPy 2 calls it
}


class CIFAR10(Arrays):
    """Small photographs of ten kinds of things: x (3, 32, 32) uint8 in 256 levels, y the kind.

    split "train" is the 50,000 training images without the last `holdout`, which are "val"; "test" is the
    test batch. augment is applied to training batches only, and is part of `protocol` of every split, since
    likelihoods with and without it don't compare. A known copy of the test batch lacks 20 images; `protocol`
    then says how many there are.

    LookupError for "val" if holdout=0. FileNotFoundError if the files are missing and cannot be downloaded;
    ValueError if one is not a known one.
    """

    folder: ClassVar = "cifar-10-batches-py"
    url: ClassVar = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    archive: ClassVar = "md5:c58f30108f718f92721af3b95e74349a"
    files: ClassVar = {  # the published one; then a copy without file names and with 9,980 test images
        "data_batch_1": ("md5:c99cafc152244af753f735de768cd75f", "md5:f841d79aba56996540be9cd2c75730d0"),
        "data_batch_2": ("md5:d4bba439e000b95fd0a9bffe97cbabec", "md5:e29fd0543e0eea3cdb7bd1b88616e94b"),
        "data_batch_3": ("md5:54ebc095f3ab1f0389bbae665268c751", "md5:3b2d4e218053aac4061b265e1943988f"),
        "data_batch_4": ("md5:634d18415352ddfa80567beed471001a", "md5:c58ca0928ec99ed079fa47505add899e"),
        "data_batch_5": ("md5:482c414d41f54cd18b22e5b47cb7c3cb", "md5:e5876c2ef48be1fbcc5deac3325e5662"),
        "test_batch": ("md5:40351d587109b95175f43aff81a1287e", "md5:3d822df0720fb7207c045fe4f1c8e9ad"),
    }
    totals: ClassVar = (50_000, 10_000)  # of training images, evenly over their files, and of test images
    label_key: ClassVar = b"labels"
    classes: ClassVar = 10

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        holdout: int = 5_000,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        *train, test = self.files
        if split == "test":
            names, part = [test], slice(None)
        else:
            part, rows = hold_out(split, self.totals[0], holdout), self.totals[0] // len(train)
            first = part.start // rows
            names = train[first : -(-part.stop // rows)]  # only the files that hold some of the split
            part = slice(part.start - first * rows, part.stop - first * rows)
        paths = self._paths(Path(root), names)
        with ThreadPoolExecutor() as pool:
            batches = list(pool.map(lambda name: self._read(paths[name], self.files[name]), names))
        x, y = (torch.cat(parts)[part] for parts in zip(*batches, strict=True))
        protocol: dict[str, Any] = {} if augment is None else {"augment": repr(augment)}
        if split == "test" and len(x) != self.totals[1]:
            protocol["examples"] = f"{len(x)} of {self.totals[1]} test images"
        augment = augment if split == "train" else None
        super().__init__(x, y, levels=256, augment=augment, protocol=protocol)

    def _paths(self, root: Path, names: list[str]) -> dict[str, Path]:
        """Where each file lies; what is missing is taken out of the archive, downloaded if it must be."""
        folder = root / self.folder
        paths = {name: find(folder, name) for name in names}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            archive = root / self.url.rpartition("/")[2]
            if not archive.is_file():
                needs = by_hand(f"{archive.name} into {root}, or {', '.join(missing)}", folder)
                download([self.url], archive, self.archive, needs=needs)
            _extract(archive, folder, missing)
            paths |= {name: folder / name for name in missing}
        return paths

    def _read(self, path: Path, sums: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 32, 32) and labels (N,) of a file; ValueError, naming it, if anything is wrong."""
        content = unpack(path)
        try:
            batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            x, y = np.asarray(batch[b"data"]), np.asarray(batch[self.label_key])
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(f"{path} cannot be read ({error}); delete it and get it again") from None
        if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072:
            raise ValueError(f"{path} holds images of {x.dtype} {x.shape}, not uint8 (N, 3072)")
        if len(x) != len(y):
            raise ValueError(f"{path} holds {len(x)} images but {len(y)} labels; each image needs one")
        if y.min() < 0 or y.max() >= self.classes:
            raise ValueError(
                f"{path} holds labels from {y.min()} to {y.max()}, but there are {self.classes} classes"
            )
        verify(content, path, sums)
        return torch.from_numpy(x).view(-1, 3, 32, 32), torch.from_numpy(y)


class CIFAR100(CIFAR10):
    """As CIFAR10, of a hundred kinds of things: y is the fine label."""

    folder: ClassVar = "cifar-100-python"
    url: ClassVar = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    archive: ClassVar = "md5:eb9058c3a382ffc7106e4002c42a8d85"
    files: ClassVar = {
        "train": ("md5:16019d7e3df5f24257cddd939b257f8d",),
        "test": ("md5:f0ef6b0ae62326f3e7ffdfab6717acfc",),
    }
    label_key: ClassVar = b"fine_labels"
    classes: ClassVar = 100


class _Unpickler(pickle.Unpickler):
    """Makes arrays and plain containers and refuses every other name: a pickle may otherwise run anything."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _extract(archive: Path, folder: Path, names: list[str]) -> None:
    """Take files out of the archive, each put in place only when it is whole."""
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.extractfile(f"{folder.name}/{name}")
                folder.mkdir(parents=True, exist_ok=True)
                partial = folder / f"{name}.{os.getpid()}.part"
                try:
                    partial.write_bytes(member.read())
                    os.replace(partial, folder / name)
                finally:
                    partial.unlink(missing_ok=True)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError, AttributeError) as error:
        raise ValueError(f"{archive} is cut short or damaged ({error}); delete it and get it again") from None
