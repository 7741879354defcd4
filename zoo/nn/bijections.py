"""Bijections: maps that can be undone and that know how they stretch space. Chains of them, and maps of shape.

A bijection is a module with `forward(x) -> (z, log|det dz/dx|)`, the second (B,) in nats, and `inverse(z) -> x`.
x and z have B rows and equally many numbers in each. What it measures from data it sets in `initialize(x) -> z`,
called once, and never in forward. Chains and splits pass initialize on; who has nothing to measure has none.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    """Bijections one after the other: log-determinants add up."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z

    def initialize(self, x: Tensor) -> Tensor:
        """Each layer is measured on what the ones before it, already measured, make of x."""
        for layer in self.layers:
            x = initialized(layer, x)
        return x


class Split(nn.Module):
    """Half of the channels leaves, the other half goes on: the multi-scale architecture of Dinh et al. 2016.

    shape   (C, H, W) of what enters; C is even
    rest    what the first half goes through, to its end: (B, C/2, H, W) -> (B, C H W / 2)

    x (B, C, H, W) -> (B, C H W): what rest makes of the first half, then the second half. A learned prior of the
    half that leaves, N(mu, sigma^2) given the one that stays (Glow), is an affine coupling before the split:
    it takes (h - mu) / sigma to the standard base, and its log-determinant is the density's -log sigma.
    """

    def __init__(self, shape: Sequence[int], rest: nn.Module) -> None:
        super().__init__()
        C, H, W = shape
        self.leaving, self.rest = (C // 2, H, W), rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stays, leaves = x.chunk(2, 1)
        z, log_det = self.rest(stays)
        return torch.cat([z, leaves.flatten(1)], 1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        stays, leaves = z.split([z.shape[1] - prod(self.leaving), prod(self.leaving)], 1)
        return torch.cat([self.rest.inverse(stays), leaves.unflatten(1, self.leaving)], 1)

    def initialize(self, x: Tensor) -> Tensor:
        """The rest is measured on the half that goes on."""
        stays, leaves = x.chunk(2, 1)
        return torch.cat([initialized(self.rest, stays), leaves.flatten(1)], 1)


class Squeeze(nn.Module):
    """Each 2 x 2 square of pixels becomes one pixel: (B, C, H, W) -> (B, 4 C, H/2, W/2), even sides only.

    The corners of a square follow each other as upper left, lower right, upper right, lower left, each with all
    of its channels, so that either half of the new channels is a checkerboard of the old image.
    """

    corners = ((0, 0), (1, 1), (0, 1), (1, 0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [x[:, :, i::2, j::2] for i, j in self.corners]
        return torch.cat(parts, 1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        B, C, H, W = z.shape
        x = z.new_empty(B, C // 4, 2 * H, 2 * W)
        for (i, j), part in zip(self.corners, z.chunk(4, 1)):
            x[:, :, i::2, j::2] = part
        return x


class Flatten(nn.Module):
    """(B, *shape) -> (B, D): the same numbers in one row."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.shape)


def initialized(layer: nn.Module, x: Tensor) -> Tensor:
    """What a bijection makes of x, once it has measured it, if it measures anything."""
    return layer.initialize(x) if hasattr(layer, "initialize") else layer(x)[0]


def runs(chain: Chain) -> list[list[nn.Module]]:
    """Layers that are called one after the other, each on the last one's z: one list for each scale."""
    own = [layer for layer in chain.layers if not isinstance(layer, Split)]
    deeper = [run for layer in chain.layers if isinstance(layer, Split) for run in runs(layer.rest)]
    return [own, *deeper]


def leaves(bijection: nn.Module, scale: int = 1) -> Iterator[tuple[int, nn.Module]]:
    """The bijections that a chain comes down to, in order, each with its scale, which grows by one in a split."""
    for layer in bijection.layers if isinstance(bijection, Chain) else [bijection]:
        if isinstance(layer, Split):
            yield from leaves(layer.rest, scale + 1)
        elif isinstance(layer, Chain):
            yield from leaves(layer, scale)
        else:
            yield scale, layer
