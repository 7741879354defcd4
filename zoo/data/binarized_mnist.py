"""MNIST of black and white pixels: three kinds that must never be mixed (see BinarizedMNIST)."""

import hashlib
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data.arrays import Arrays, Bernoulli, bernoulli
from zoo.data.files import by_hand, download, find, unpack, verify
from zoo.data.mnist import grey

URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
SUMS = {  # of the published text files
    "train": "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}

Binarization = Literal["static", "dynamic", "threshold"]


class BinarizedMNIST(Arrays):
    """MNIST in black and white: x (1, 28, 28) uint8 in {0, 1}, no labels. Three kinds, never to be mixed:

    static     drawn once and published: 50,000 / 10,000 / 10,000 images (Salakhutdinov & Murray 2008,
               Larochelle & Murray 2011), from binarized_mnist.npz (rows of packed bits) or the .amat files
               in ROOT/binarized_mnist
    dynamic    training images drawn anew each time one is seen, P(1) = grey / 255 (Burda et al. 2015);
               "val" and "test" drawn once and for all; the authors' code draws them anew too, which moves
               the mean by 0.05 to 0.1 nats
    threshold  1 where grey > 127; its nats are far lower and compare with no published number, so it warns

    `protocol` says which. Raises what MNIST raises, and ValueError for a holdout that the static split
    doesn't have.
    """

    def __init__(
        self, split: str, *, root: str | Path, binarization: Binarization = "static", holdout: int = 10_000
    ) -> None:
        protocol = {"binarization": binarization}
        if binarization == "static":
            if holdout != 10_000:
                raise ValueError(
                    f"holdout={holdout} cannot be: the static binarization is published with holdout=10000"
                )
            x, name = _static(split, Path(root))
            super().__init__(x, levels=2, protocol=protocol, name=name)
            return
        if binarization not in ("dynamic", "threshold"):
            raise ValueError(f"binarization={binarization!r} is unknown; choose static, dynamic or threshold")
        x, _, name = grey(split, Path(root), holdout)
        if binarization == "threshold":
            warnings.warn(
                "binarization=threshold: likelihoods compare with no published number", stacklevel=2
            )
            super().__init__((x > 127).to(torch.uint8), levels=2, protocol=protocol, name=name)
        elif split == "train":
            super().__init__(x, augment=Bernoulli(), protocol=protocol, name=name)
        else:
            generator = torch.Generator().manual_seed({"val": 1, "test": 2}[split])
            super().__init__(bernoulli(x, generator), levels=2, protocol=protocol, name=name)


def _static(split: str, root: Path) -> tuple[Tensor, str]:
    """The published binary images of a split (N, 1, 28, 28) and their file, whatever form it has."""
    if split not in ("train", "val", "test"):
        raise ValueError(f"split={split!r} is unknown; there are train, val and test")
    key = "valid" if split == "val" else split
    folder, name = root / "binarized_mnist", f"binarized_mnist_{key}.amat"
    path = folder / "binarized_mnist.npz"
    if path.is_file():
        x = _packed(path, key)
        found = hashlib.sha256(amat(x)).hexdigest()
        if f"sha256:{found}" != SUMS[key]:
            raise ValueError(
                f"{path} holds another {key} split than the published one: as text its sha256 is {found}"
            )
    else:
        path = find(folder, name)
        if path is None:
            needs = by_hand(f"binarized_mnist.npz or {name}", folder)
            path = download([URL + name], folder / name, SUMS[key], needs=needs)
        content = unpack(path)
        verify(content, path, [SUMS[key]])
        x = np.frombuffer(content, np.uint8).reshape(-1, 2 * 784)[:, ::2] - ord("0")
    return torch.from_numpy(x).view(-1, 1, 28, 28), str(path)


def _packed(path: Path, key: str) -> np.ndarray:
    """Rows of 784 bits from an .npz file of packed bytes; ValueError, naming it, if they cannot be read."""
    try:
        with np.load(path) as file:
            return np.unpackbits(file[key], axis=1)
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); delete it and get it again") from None


def amat(x: np.ndarray) -> bytes:
    """Binary rows (N, 784) in the published text form: digits with spaces between, one row per line."""
    text = np.full((len(x), 2 * x.shape[1]), ord(" "), np.uint8)
    text[:, ::2] = x + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()
