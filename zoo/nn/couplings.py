"""Couplings: one part of x is kept, the other is moved by an amount that a network reads off the first.

A coupling is a mask (which part), a network (what it reads) and a transform (how it moves):
z_kept = x_kept, z_moved = f(x_moved; network(x_kept)). The network itself need not be invertible.
Dinh et al. 2014 (additive) and 2016 (affine), Durkan et al. 2019 (splines).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.likelihood import wide
from zoo.nn.masks import Half, Mask
from zoo.nn.mlp import MLP
from zoo.nn.scalings import along
from zoo.nn.splines import rational_quadratic


class Transform(Protocol):
    """How the moved part moves; made as `transform(moved_shape)`.

    features    parameters that it needs for each number
    """

    features: int

    def __call__(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, ...), parameters (B, features C, ...) -> z, and log dz/dx of each number, both like x."""
        ...

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        """z (B, C, ...) -> x."""
        ...


class Coupling(nn.Module):
    """A bijection of (B, *shape) that keeps one part and moves the other; it starts as the identity, or near it.

    mask        which part: zoo.nn.Half, OddEven, Checkerboard
    network     network(kept_shape, parameters_shape) makes the network; its last layer, `output` (or all of it),
                is set to zero. One that is measured has initialize(x)
    transform   transform(moved_shape): zoo.nn.Additive, Affine, Spline
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        mask: Mask | None = None,
        network: Callable[..., nn.Module] = MLP,
        transform: Callable[..., Transform] | None = None,
    ) -> None:
        super().__init__()
        self.mask = mask or Half()
        kept, moved = self.mask.sizes(tuple(shape))
        self.transform = (transform or Affine)(moved)
        self.network = network(kept, (self.transform.features * moved[0], *moved[1:]))
        for parameter in getattr(self.network, "output", self.network).parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self.mask.split(x)
        moved, log_slope = self.transform(moved, wide(self.network(kept)))
        return self.mask.join(kept, moved), self.mask.total(log_slope)

    def inverse(self, z: Tensor) -> Tensor:
        kept, moved = self.mask.split(z)
        return self.mask.join(kept, self.transform.inverse(moved, wide(self.network(kept))))

    def initialize(self, x: Tensor) -> Tensor:
        """A network that has something to measure measures the kept part of x."""
        if hasattr(self.network, "initialize"):
            self.network.initialize(self.mask.split(x)[0])
        return self(x)[0]

    def again(self, z: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """From z back to x and forth to z with gradients, by one call of the network, not two.

        Returns the two parts of x, of which gradients can be asked, and what forward(x) returns.
        """
        kept, moved = (part.detach() for part in self.mask.split(z))
        kept.requires_grad_()
        parameters = wide(self.network(kept))
        with torch.no_grad():
            moved = self.transform.inverse(moved, parameters)
        moved.requires_grad_()
        out, log_slope = self.transform(moved, parameters)
        return (kept, moved), (self.mask.join(kept, out), self.mask.total(log_slope))


class Additive(nn.Module):
    """z = x + t: volume is preserved, log|det| = 0. Dinh et al. 2014."""

    features = 1

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters, x.new_zeros(()).expand_as(x)

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        return z - parameters


class Affine(nn.Module):
    """z = x e^s + t, log|det| = sum(s); the first half of the parameters is s, the second t. Dinh et al. 2016.

    log_scale   log_scale(channels) makes what turns the network's number into s: zoo.nn.TanhScale,
                SigmoidScale, or FreeScale
    """

    features = 2

    def __init__(self, shape: Sequence[int], *, log_scale: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.log_scale = (log_scale or TanhScale)(shape[0])

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._split(parameters)
        return x * s.exp() + t, s

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        s, t = self._split(parameters)
        return (z - t) * (-s).exp()

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, t = parameters.chunk(2, 1)
        return self.log_scale(raw), t


class Spline(nn.Module):
    """A monotone rational-quadratic spline on [-bound, bound], the identity outside of it. Durkan et al. 2019.

    bins    pieces of the spline: each has a width, a height, and a slope at the knot to the next one
    """

    def __init__(self, shape: Sequence[int], *, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__()
        self.bins, self.bound, self.features = bins, bound, 3 * bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, *self._split(parameters), bound=self.bound)

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        return rational_quadratic(z, *self._split(parameters), bound=self.bound, inverse=True)[0]

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        parts = parameters.unflatten(1, (self.features, -1)).movedim(1, -1)  # (B, C, ..., features)
        return parts.split([self.bins, self.bins, self.bins - 1], -1)


class TanhScale(nn.Module):
    """s = gain tanh(raw), with a learned gain by channel: RealNVP, whose code has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, raw: Tensor) -> Tensor:
        return along(self.gain, raw) * raw.tanh()


class SigmoidScale(nn.Module):
    """s = log sigmoid(raw + 2): Glow's code, where its paper has s = raw. A scale is never above 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, raw: Tensor) -> Tensor:
        return F.logsigmoid(raw + 2)


class FreeScale(nn.Module):
    """s = raw: as a prior's log-deviation, which has no bounds."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, raw: Tensor) -> Tensor:
        return raw
