"""Masks: which part of x a coupling keeps and which it moves. `swap` exchanges the two.

x is (B, D) or (B, C, H, W), its channels at dimension 1.
"""

from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Mask(Protocol):
    """Takes x apart and puts it together again: join(*split(x)) is x."""

    def sizes(self, shape: Shape) -> tuple[Shape, Shape]:
        """The shapes of the two parts of an x of this shape, without the batch: kept, moved."""
        ...

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> kept, moved."""
        ...

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """kept, moved -> x."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum of what stands where something moves: (B, *moved) -> (B,)."""
        ...


class Half:
    """The first half of the channels is kept, the second moved: RealNVP's channel mask, Glow's."""

    def __init__(self, *, swap: bool = False) -> None:
        self.swap = swap

    def sizes(self, shape: Shape) -> tuple[Shape, Shape]:
        first = (shape[0] + 1) // 2
        sizes = (first, *shape[1:]), (shape[0] - first, *shape[1:])
        return sizes[::-1] if self.swap else sizes

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, 1)
        return (second, first) if self.swap else (first, second)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.swap else [kept, moved], 1)

    def total(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1)


class OddEven:
    """Channels 0, 2, 4 ... are kept, 1, 3, 5 ... moved: NICE, where a channel is a pixel."""

    def __init__(self, *, swap: bool = False) -> None:
        self.swap = swap

    def sizes(self, shape: Shape) -> tuple[Shape, Shape]:
        return Half(swap=self.swap).sizes(shape)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        even, odd = x[:, 0::2], x[:, 1::2]
        return (odd, even) if self.swap else (even, odd)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        even, odd = (moved, kept) if self.swap else (kept, moved)
        x = even.new_empty(len(even), even.shape[1] + odd.shape[1], *even.shape[2:])
        x[:, 0::2], x[:, 1::2] = even, odd
        return x

    def total(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1)


class Checkerboard:
    """The black fields of a checkerboard are kept, the white ones moved; the upper left pixel is black.

    Both parts have the shape of x (B, C, H, W), with zeros where the other one stands.
    """

    def __init__(self, *, swap: bool = False) -> None:
        self.swap = swap

    def sizes(self, shape: Shape) -> tuple[Shape, Shape]:
        return shape, shape

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept(x)
        return x * kept, x * ~kept

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.where(self._kept(kept), kept, moved)

    def total(self, values: Tensor) -> Tensor:
        return (values * ~self._kept(values)).flatten(1).sum(1)

    def _kept(self, x: Tensor) -> Tensor:
        """(H, W) of booleans."""
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
        return (rows[:, None] + columns) % 2 == int(self.swap)


class Given:
    """The first channels are a condition, kept as they are; another mask divides those that follow.

    So a bijection of (condition, x) whose couplings are all masked like this is one of x, given the condition.

    channels   of the condition
    mask       of the rest
    """

    def __init__(self, channels: int, mask: Mask) -> None:
        self.channels, self.mask = channels, mask

    def sizes(self, shape: Shape) -> tuple[Shape, Shape]:
        kept, moved = self.mask.sizes((shape[0] - self.channels, *shape[1:]))
        return (self.channels + kept[0], *kept[1:]), moved

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self.mask.split(x[:, self.channels :])
        return torch.cat([x[:, : self.channels], kept], 1), moved

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        condition, rest = kept[:, : self.channels], kept[:, self.channels :]
        return torch.cat([condition, self.mask.join(rest, moved)], 1)

    def total(self, values: Tensor) -> Tensor:
        return self.mask.total(values)
