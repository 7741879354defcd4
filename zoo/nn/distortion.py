"""How far a decoder's picture is from an image of integers, where it is no likelihood (zoo.nn.likelihood).

x is an image of integers in [0, levels), (B, C, H, W); a picture (B, C, H, W) has real numbers, black at -1 and
white at 1. A distortion is made by who knows the data, as `Squared(levels)`.
"""

import torch.nn.functional as F
from torch import Tensor

from zoo.nn.likelihood import whole, wide


class Squared:
    """The mean squared error of pixels, in the scale of [-1, 1]."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def features(self, shape: tuple[int, ...]) -> int:
        """The channels of a picture of an image of shape (C, H, W)."""
        return shape[0]

    def distance(self, picture: Tensor, x: Tensor) -> Tensor:
        """The mean over all elements."""
        picture = wide(picture)
        return F.mse_loss(picture, scaled(x, self.levels).to(picture))

    def mode(self, picture: Tensor) -> Tensor:
        """The nearest image of integers."""
        return whole(
            ((wide(picture) + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1), self.levels
        )


class Absolute(Squared):
    """The mean absolute error of pixels: less of a blur."""

    def distance(self, picture: Tensor, x: Tensor) -> Tensor:
        """The mean over all elements."""
        picture = wide(picture)
        return F.l1_loss(picture, scaled(x, self.levels).to(picture))


def scaled(x: Tensor, levels: int) -> Tensor:
    """Integers in [0, levels) as real numbers in [-1, 1]."""
    return x.float() * (2 / (levels - 1)) - 1
