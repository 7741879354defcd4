"""Invertible mixing of channels: the 1 x 1 convolution of Glow, Kingma and Dhariwal 2018.

x is (B, C, ...). z = W x at every pixel, log|det| = H W log|det W|. It is computed in the precision of W whatever
autocast says: what is inverted must be what was applied.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from zoo.nn.scalings import ActNorm


class Dense(nn.Module):
    """A free matrix that starts as a random rotation; () -> W (C, C) and log|det W|."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(rotation(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.weight, torch.linalg.slogdet(self.weight).logabsdet


class LU(nn.Module):
    """W = P L (U + diag(sign e^s)), with log|det W| = sum(s) at no cost: Glow, eq. 10.

    L has ones on its diagonal, U zeros; P and the signs stay what they are in a random rotation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        P, L, U = torch.linalg.lu(rotation(channels))
        diagonal = U.diagonal()
        self.register_buffer("permutation", P)
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(L.tril(-1))
        self.upper = nn.Parameter(U.triu(1))
        self.log_scale = nn.Parameter(diagonal.abs().log())

    def forward(self) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(self.log_scale).diag()
        L = self.lower.tril(-1) + one
        U = self.upper.triu(1) + (self.sign * self.log_scale.exp()).diag()
        return self.permutation @ L @ U, self.log_scale.sum()


class Invertible1x1(nn.Module):
    """z = W x, the same at every pixel.

    matrix   makes W: zoo.nn.Dense, or zoo.nn.LU, whose determinant is free
    """

    def __init__(self, channels: int, *, matrix: Callable[[int], nn.Module] = Dense) -> None:
        super().__init__()
        self.matrix = matrix(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            weight, log_det = self.matrix()
            return mix(weight, x), (prod(x.shape[2:]) * log_det).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return mix(torch.linalg.inv(self.matrix()[0]), z)


class NormedInvertible1x1(nn.Module):
    """ActNorm, then Invertible1x1, in one product: W (x + b) e^s = (W e^s) x + (W e^s) b. So is its inverse.

    A pass over the activations and their memory are saved: half of what a step of Glow spends outside of its
    network. Equal to Chain(norm, mixing).
    """

    def __init__(self, channels: int, *, matrix: Callable[[int], nn.Module] = Dense) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mixing = Invertible1x1(channels, matrix=matrix)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            weight, log_det = self.mixing.matrix()
            weight = weight * self.norm.log_scale.exp()
            log_det = prod(x.shape[2:]) * (log_det + self.norm.log_scale.sum())
            return mix(weight, x, weight @ self.norm.shift), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            weight = (-self.norm.log_scale).exp()[:, None] * torch.linalg.inv(self.mixing.matrix()[0])
            return mix(weight, z, -self.norm.shift)

    def initialize(self, x: Tensor) -> Tensor:
        """The norm is measured on x."""
        return self.mixing(self.norm.initialize(x))[0]


def mix(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight (C, C) times x (B, C, ...), at every pixel."""
    if x.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight[:, :, None, None], bias)


def rotation(n: int) -> Tensor:
    """A random orthogonal matrix (n, n)."""
    return torch.linalg.qr(torch.randn(n, n))[0]
