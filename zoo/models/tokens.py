"""Data as a sequence of tokens, and back: images are read by row, column and channel.

x (B, *shape) is data, integers; tokens (B, T), T the number of elements of one example.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from zoo.nn.likelihood import whole


def sequence(x: Tensor) -> Tensor:
    """x as tokens.  (B, *shape) -> (B, T)"""
    return (x.movedim(1, -1) if x.ndim == 4 else x).flatten(1).long()


def arranged(tokens: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Tokens as data again, images as bytes if their levels are.  (B, T) -> (B, *shape)"""
    if len(shape) != 3:
        return tokens.unflatten(1, tuple(shape))
    C, H, W = shape
    return whole(tokens.unflatten(1, (H, W, C)).movedim(-1, 1), levels)


def grid(shape: Sequence[int]) -> tuple[int, ...]:
    """How the tokens of one example lie: (T,), or the rows of an image and the columns times channels."""
    return (shape[1], shape[2] * shape[0]) if len(shape) == 3 else (math.prod(shape),)
