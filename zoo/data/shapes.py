"""Drawings of known factors: one coloured shape on a soft background, made here and equal on every machine.

A factor is a whole number, so every picture is a function of seven of them. Only +, -, *, /, square root and
comparisons touch a pixel (IEEE 754 fixes their last bit); sines and cosines are rounded to 2^-20 first, and
the random numbers are the raw stream of PCG64, which NumPy never changes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.arrays import Arrays

Field = NDArray[np.float64]

SIZE = 32
COUNTS = {"train": 20_000, "val": 2_000, "test": 2_000}
ANGLES = 64
HUES = 64
FACTORS = {"shape": 8, "hue": HUES, "size": 6, "row": 11, "column": 11, "angle": ANGLES, "background": 16}


class Shapes(Arrays):
    """x (3, 32, 32) uint8 in 256 levels, y which of eight shapes it is: `NAMES[y]`. Needs no files.

    `factors` (N, 7) int64, in the order and with the numbers of values of FACTORS: shape, hue, size, row and
    column of the centre, angle (of a disc or ring it shows nothing, of others only part of a turn), hue of
    the background. All are drawn evenly and independently; the splits are 20,000, 2,000 and 2,000 examples of
    different streams.
    """

    def __init__(self, split: str) -> None:
        if split not in COUNTS:
            raise ValueError(f"split={split!r} is unknown; there are train, val and test")
        factors = draw_factors(COUNTS[split], seed=list(COUNTS).index(split))
        self.factors = torch.from_numpy(factors)
        super().__init__(render(factors), self.factors[:, 0], levels=256, classes=len(NAMES), name="shapes")


def draw_factors(count: int, seed: int) -> NDArray[np.int64]:
    """Factors (count, 7), each even over its values: the upper 32 bits of a raw number, scaled."""
    raw = np.random.PCG64(seed).random_raw(count * len(FACTORS)).reshape(count, -1)
    values = np.array(list(FACTORS.values()), np.uint64)
    return ((raw >> np.uint64(32)) * values >> np.uint64(32)).astype(np.int64)


def render(factors: NDArray[np.int64]) -> Tensor:
    """Pictures (N, 3, 32, 32) uint8 of factors (N, 7), each shape drawn by its distance function."""
    x = np.empty((len(factors), 3, SIZE, SIZE), np.uint8)
    for shape, distance in enumerate(NAMES.values()):
        (rows,) = np.nonzero(factors[:, 0] == shape)
        for part in np.array_split(rows, 1 + len(rows) // 256):  # small enough to stay in the cache
            x[part] = _draw(factors[part], distance)
    return torch.from_numpy(x)


def _draw(factors: NDArray[np.int64], distance: Callable[[Field, Field], Field]) -> NDArray[np.uint8]:
    _, hue, size, row, column, angle, background = factors.T[:, :, None, None]  # (N, 1, 1) each
    radius = 5.0 + size
    cos, sin = COSINES[angle], COSINES[(angle - ANGLES // 4) % ANGLES]
    down = np.arange(SIZE)[:, None] - (10.5 + row)
    right = np.arange(SIZE)[None, :] - (10.5 + column)
    u, v = (cos * right + sin * down) / radius, (cos * down - sin * right) / radius  # the shape's own axes
    cover = np.clip(0.5 - distance(u, v) * radius, 0.0, 1.0)[:, None]  # how much of a pixel the shape fills
    light = 1.0 - np.arange(SIZE)[:, None] / (2.5 * SIZE)  # the background darkens downwards
    ground = (255.0 - (255.0 - COLOURS[background * (HUES // 16)]) * 0.3)[:, 0, 0, :, None, None] * light
    colour = (COLOURS[hue] * 0.85 + 10.0)[:, 0, 0, :, None, None]
    return np.floor(ground + (colour - ground) * cover + 0.5).astype(np.uint8)


def _colour(hue: float) -> list[float]:
    """Red, green and blue in 0..255 of a hue in [0, 1): straight lines between the six full colours."""
    return [
        255.0 * min(max(abs((hue * 6.0 + shift) % 6.0 - 3.0) - 1.0, 0.0), 1.0) for shift in (0.0, 4.0, 2.0)
    ]


COSINES = np.array([round(math.cos(2 * math.pi * k / ANGLES) * 2**20) / 2**20 for k in range(ANGLES)])
COLOURS = np.array([_colour(k / HUES) for k in range(HUES)])


def _half_planes(u: Field, v: Field, sides: int, inner: float) -> list[Field]:
    """Distances beyond each side's line, the lines being `inner` from the centre."""
    turns = [2 * math.pi * k / sides for k in range(sides)]
    normals = [(round(math.sin(t) * 2**20) / 2**20, round(math.cos(t) * 2**20) / 2**20) for t in turns]
    return [a * u + b * v - inner for a, b in normals]


def _disc(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v) - 0.9


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.22


def _box(u: Field, v: Field, width: float, height: float) -> Field:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _square(u: Field, v: Field) -> Field:
    return _box(u, v, 0.76, 0.76)


def _triangle(u: Field, v: Field) -> Field:
    return np.maximum.reduce(_half_planes(u, v, 3, 0.54))


def _cross(u: Field, v: Field) -> Field:
    return np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95))


def _star(u: Field, v: Field) -> Field:
    """Five points: inside are the places that lie beyond at most one of a pentagon's sides."""
    return np.sort(_half_planes(u, v, 5, 0.38), axis=0)[-2]


def _moon(u: Field, v: Field) -> Field:
    return np.maximum(_disc(u, v), 0.72 - np.sqrt((u - 0.45) * (u - 0.45) + v * v))


def _heart(u: Field, v: Field) -> Field:
    """A square on its corner with a half disc on each upper side."""
    half = 0.5
    a, b = (u + v - 0.15) * 0.70710678, (u - v + 0.15) * 0.70710678
    left, right = np.sqrt(a * a + (b - half) * (b - half)), np.sqrt((a + half) * (a + half) + b * b)
    return np.minimum(_box(a, b, half, half), np.minimum(left, right) - half)


NAMES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "moon": _moon,
    "heart": _heart,
}
