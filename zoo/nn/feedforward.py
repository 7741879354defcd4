"""What a Transformer does to each token alone, and how its linear maps start."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, for each token alone.  (..., D) -> (..., D)

    out(activation(inner(x))), `ratio` times as wide in between: Vaswani et al. 2017, section 3.3, with the
    GELU of GPT-2.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        activation: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, int(ratio * dim), bias=bias)
        self.activation = activation()
        self.out = nn.Linear(int(ratio * dim), dim, bias=bias)
        for linear in (self.inner, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.inner(x)))


class GatedFeedForward(nn.Module):
    """Two linear maps whose inner features are multiplied by an activation of others.  (..., D) -> (..., D)

    out(activation(gate(x)) * inner(x)): with SiLU the SwiGLU, with GELU the GEGLU of Shazeer 2020. Three
    matrices instead of two, so they are 2/3 as wide: int(2/3 ratio D) inner features have the parameters of
    a FeedForward of the same ratio.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        bias: bool = False,
    ) -> None:
        super().__init__()
        width = int(2 * ratio * dim / 3)
        self.inner = nn.Linear(dim, 2 * width, bias=bias)  # the gate's half first
        self.activation = activation()
        self.out = nn.Linear(width, dim, bias=bias)
        for linear in (self.inner, self.out):
            scaled_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.inner(x).chunk(2, -1)
        return self.out(self.activation(gate) * x)


class SquaredReLU(nn.Module):
    """max(x, 0)^2, of each number: So et al. 2021 (Primer)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def no_mlp() -> None:
    """The choice of no feed-forward block: a backbone that gets None has none."""


def scaled_init(linear: nn.Linear) -> None:
    """Weights N(0, 1 / (3 fan-in)), biases 0.

    That is PyTorch's variance, and 0.0208^2 at GPT-2's width of 768, where Radford et al. 2019 have 0.02 at any
    width; a network of width 64 that starts so small needs many times the steps to learn to recall.
    """
    nn.init.normal_(linear.weight, std=(3 * linear.in_features) ** -0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
