"""Sequences of whole numbers, held in few bytes; images as such sequences, pixel by pixel, for classification.

x (T,) tokens; y a label, or a sequence as x is: targets, PAD where there are none, or what x follows from.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.arrays import Arrays
from zoo.data.cifar import CIFAR10
from zoo.data.mnist import MNIST

SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32)


class Sequences(Arrays):
    """Arrays of sequences, kept in the smallest type that holds them and given as int64.

    x (N, T); y (N,) labels, (N, S) a sequence, or None; both are checked by whoever made them.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None, *, protocol: dict[str, Any] | None = None) -> None:
        super().__init__(small(x), protocol=protocol)
        if y is not None:
            self.y = y.long() if y.ndim == 1 else small(y)  # labels as everywhere

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        return {name: value.long() for name, value in super().__getitem__(indices).items()}


def small(x: Tensor) -> Tensor:
    """The same numbers in the smallest type that holds them all; PAD is kept."""
    low, high = (int(v) for v in torch.aminmax(x)) if len(x) else (0, 0)
    for kind in SMALL:
        if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max:
            return x.to(kind).contiguous()
    return x.contiguous()


class SequentialMNIST(Sequences):
    """MNIST read pixel by pixel, by row: x (784,) in 256 levels, y the digit (Le, Jaitly, Hinton 2015).

    Splits and errors are those of zoo.data.MNIST.
    """

    def __init__(self, split: str, *, root: str | Path, holdout: int = 10_000) -> None:
        data = MNIST(split, root=root, holdout=holdout)
        super().__init__(unrolled(data.x), data.y, protocol={"order": "row"})


class SequentialCIFAR10(Sequences):
    """CIFAR-10 read number by number, by row, column and channel: x (3072,) in 256 levels, y the kind of thing.

    colour False reads one grey value per pixel, x (1024,), as the "Image" task of Long Range Arena does (Tay et
    al. 2020): grey = 0.299 red + 0.587 green + 0.114 blue, rounded. `protocol` tells it. Papers on state spaces
    read 1024 steps of three colours at once, which are no tokens. Splits and errors are those of
    zoo.data.CIFAR10, without augmentation.
    """

    def __init__(self, split: str, *, root: str | Path, holdout: int = 5_000, colour: bool = True) -> None:
        data = CIFAR10(split, root=root, holdout=holdout)
        x = data.x if colour else grey(data.x)
        order = {"order": "row, column, channel"} if colour else {"order": "row", "colour": "grey"}
        super().__init__(unrolled(x), data.y, protocol={**data.protocol, **order})


def unrolled(x: Tensor) -> Tensor:
    """Images as sequences, by row, column and channel.  (N, C, H, W) -> (N, H W C)"""
    return x.movedim(1, -1).flatten(1)


def grey(x: Tensor) -> Tensor:
    """The brightness of coloured pixels, in whole numbers only.  uint8 (N, 3, H, W) -> uint8 (N, 1, H, W)"""
    red, green, blue = x.int().split(1, 1)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)
