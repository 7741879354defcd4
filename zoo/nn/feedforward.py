"""What a Transformer does to each token alone, and how its linear maps start."""

from collections.abc import Callable

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
            gpt2_init(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.inner(x)))


def gpt2_init(linear: nn.Linear) -> None:
    """Weights N(0, 0.02^2), biases 0: Radford et al. 2019."""
    nn.init.normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
