"""Toys: points of the plane, made here by a rule, equal on every machine.

x (2,) float32, real numbers; y (,) which part of the figure a point is of, where it has parts. Only the stream of PCG64
is drawn from, and coordinates are rounded to 2^-20, which the last bits of a cosine do not reach.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.arrays import Arrays
from zoo.data.synthetic import Chance

Points = NDArray[np.float64]


class Toy(Arrays):
    """Points of a figure, and which part of it they are of: x (N, 2), y (N,).

    draw    draw(chance, N) -> x (N, 2), y (N,) or None
    sizes   how many points each split has; no split knows another's
    """

    def __init__(
        self,
        split: str,
        *,
        name: str,
        draw: Callable[[Chance, int], tuple[Points, NDArray[np.int64] | None]],
        sizes: Mapping[str, int],
    ) -> None:
        x, y = draw(Chance(name, split), sizes[split])
        x = np.round(x * 2**20) / 2**20
        super().__init__(
            torch.from_numpy(x.astype(np.float32)), None if y is None else torch.from_numpy(y), name=name
        )


class EightGaussians(Toy):
    """Eight equal Gaussians on a circle, y which one, of covariance sqrt(0.1) I: as zoo.nn.EightGaussians."""

    def __init__(
        self, split: str, *, sizes: Mapping[str, int], radius: float = 5.0, covariance: float = 0.1**0.5
    ) -> None:
        def draw(chance: Chance, n: int) -> tuple[Points, NDArray[np.int64]]:
            y = chance.below(8, n)
            centre = radius * np.stack([np.cos(y * np.pi / 4), np.sin(y * np.pi / 4)], 1)
            return centre + covariance**0.5 * normal(chance, n), y

        super().__init__(split, name="eight gaussians", draw=draw, sizes=sizes)


class Moons(Toy):
    """Two half circles, one in the other's arms, y which one: x = 3 (moon + noise) - 1.

    Tong et al. 2023 and Cheng & Schwing 2025 take torchdyn's, whose noise is no Gaussian's: both coordinates of a
    point are moved by the same number, even on [0, noise).
    """

    def __init__(self, split: str, *, sizes: Mapping[str, int], noise: float = 0.2) -> None:
        def draw(chance: Chance, n: int) -> tuple[Points, NDArray[np.int64]]:
            y, angle = chance.below(2, n), np.pi * chance.part(n)
            outer = np.stack([np.cos(angle), np.sin(angle)], 1)
            moon = np.where(y[:, None] == 0, outer, [1.0, 0.5] - outer)
            return 3 * (moon + noise * chance.part(n, 1)) - 1, y

        super().__init__(split, name="moons", draw=draw, sizes=sizes)


class Checkerboard(Toy):
    """The black fields of a board of 4 by 4 on [-4, 4]^2, evenly filled. Lipman et al. 2022, figure 4."""

    def __init__(self, split: str, *, sizes: Mapping[str, int]) -> None:
        def draw(chance: Chance, n: int) -> tuple[Points, None]:
            row = chance.below(4, n)
            column = 2 * chance.below(2, n) + row % 2
            corner = np.stack([column, row], 1)
            return 2 * (corner + chance.part(n, 2)) - 4, None

        super().__init__(split, name="checkerboard", draw=draw, sizes=sizes)


class Spirals(Toy):
    """Two arms of a spiral, y which one, with Gaussian noise; within about 4 of the centre. Grathwohl et al. 2018."""

    def __init__(self, split: str, *, sizes: Mapping[str, int], noise: float = 0.1) -> None:
        def draw(chance: Chance, n: int) -> tuple[Points, NDArray[np.int64]]:
            y, turn = chance.below(2, n), 3 * np.pi * np.sqrt(chance.part(n))
            arm = np.stack([-np.cos(turn), np.sin(turn)], 1) * (turn / 3)[:, None]
            return np.where(y[:, None] == 0, arm, -arm) + noise * normal(chance, n), y

        super().__init__(split, name="spirals", draw=draw, sizes=sizes)


def normal(chance: Chance, n: int) -> Points:
    """Standard normal points (n, 2): Box and Muller's."""
    radius, angle = np.sqrt(-2 * np.log(chance.part(n))), 2 * np.pi * chance.part(n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
