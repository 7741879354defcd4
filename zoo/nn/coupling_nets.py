"""Convolutional networks that couplings read their parameters from; the dense one is zoo.nn.MLP.

Each is made as network(enter, leave), for images (C, H, W) of the same sides, and has `output`, its last layer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.scalings import ActNorm, along


class ZeroConv(nn.Module):
    """A 3 x 3 convolution that starts at zero, with a gain e^(3 g) by channel: Glow's last layer.

    The gain lets a layer that starts at zero grow faster. By itself it is Glow's network of a prior.
    """

    def __init__(self, enter: Sequence[int], leave: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(enter[0], leave[0], 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(leave[0]))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * along((3 * self.gain).exp(), x)


class NormedConv(nn.Module):
    """A convolution, then ActNorm, in one: (W * x + b) e^s = (W e^s) * x + b e^s. Sides stay what they are."""

    def __init__(self, enter: int, leave: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(enter, leave, kernel, padding=kernel // 2, bias=False)
        self.norm = ActNorm(leave)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.norm.log_scale.exp()
        weight = self.conv.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, self.norm.shift * scale, padding=self.conv.padding)

    def initialize(self, x: Tensor) -> Tensor:
        """The norm is measured on what the convolution gives."""
        return self.norm.initialize(self.conv(x))


class GlowNet(nn.Module):
    """Glow's network: 3 x 3 and 1 x 1 convolution, each with ActNorm and ReLU, then ZeroConv.

    Its two norms are measured in initialize, as those of the flow. Kingma and Dhariwal 2018, section 4.

    hidden   channels between the convolutions: 512 in the paper
    """

    def __init__(self, enter: Sequence[int], leave: Sequence[int], *, hidden: int = 512) -> None:
        super().__init__()
        self.layers = nn.ModuleList([NormedConv(enter[0], hidden, 3), NormedConv(hidden, hidden, 1)])
        self.output = ZeroConv((hidden, *enter[1:]), leave)
        for layer in self.layers:
            nn.init.normal_(layer.conv.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.output(x)

    def initialize(self, x: Tensor) -> Tensor:
        """Each norm is measured on what comes to it."""
        for layer in self.layers:
            x = F.relu(layer.initialize(x))
        return self.output(x)


class ResidualNet(nn.Module):
    """A residual network of 3 x 3 convolutions, RealNVP's: a convolution, `depth` residual blocks, a 1 x 1.

    A block is norm, ReLU, convolution, twice. The norm is over all of one example's channels and pixels; theirs is
    over the batch, with weights normalised too, which would make an image's likelihood depend on its neighbours.

    hidden   channels: 64 on CIFAR-10 in the paper
    depth    residual blocks: 8 on CIFAR-10
    """

    def __init__(
        self, enter: Sequence[int], leave: Sequence[int], *, hidden: int = 64, depth: int = 8
    ) -> None:
        super().__init__()
        self.input = nn.Conv2d(enter[0], hidden, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(*_normed(hidden), *_normed(hidden)) for _ in range(depth))
        self.norm = nn.GroupNorm(1, hidden)
        self.output = nn.Conv2d(hidden, leave[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = x + block(x)
        return self.output(F.relu(self.norm(x)))


def _normed(hidden: int) -> list[nn.Module]:
    return [nn.GroupNorm(1, hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1)]
