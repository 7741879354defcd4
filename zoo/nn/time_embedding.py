"""What time it is, as a vector, and what is to be made, added to it.

t (B,) is of order one: 0 ... 1, or any other measure of the noise, as ln(sigma) / 4.
"""

import math

import torch
from torch import Tensor, nn

from zoo.nn.conditions import Condition
from zoo.nn.position import wide


class TimeEmbedding(nn.Module):
    """Features of the time and of a condition's vector, their sum.  t (B,), c -> (B, D)

    outer(silu(inner(sinusoids(t)))) + join(c.vector)

    features    how many sinusoids
    context     width of the condition's vector; None for a network that is told nothing

    Raises ValueError for a network with a context that is told nothing, and the other way round.
    """

    def __init__(self, dim: int, *, features: int = 256, context: int | None = None) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(
                f"features={features} is odd, and a cosine comes with a sine; try {features + 1}"
            )
        self.features = features
        self.inner = nn.Linear(features, dim)
        self.activation = nn.SiLU()
        self.outer = nn.Linear(dim, dim)
        self.join = None if context is None else nn.Linear(context, dim)

    def forward(self, t: Tensor, c: Condition | None) -> Tensor:
        waves = sinusoids(t, self.features).to(self.inner.weight.dtype)
        h = self.outer(self.activation(self.inner(waves)))
        vector = told(c, self.join is not None)
        return h if vector is None or self.join is None else h + self.join(vector)


def told(c: Condition | None, context: bool) -> Tensor | None:
    """The vector of a condition, if the network has a context.

    Raises ValueError where one of the two is missing.
    """
    vector = None if c is None else c.vector
    if (vector is not None) != context:
        raise ValueError(
            "a network with a context needs a condition that has a vector"
            if context
            else "a network that was built with context=None cannot be told a condition"
        )
    return vector


def sinusoids(t: Tensor, features: int) -> Tensor:
    """[cos(w t), sin(w t)], w = 1000 * 10000^(-i / (features / 2)), in float32 at least.  (B,) -> (B, features)

    Ho et al. 2020 have t = 0 ... 1000; with t in [0, 1] itself all waves but the fastest would be constant.
    As in Peebles & Xie 2022; Ho et al. have the sines first, and a last w of 1 / 10 exactly.
    """
    i = torch.arange(features // 2, device=t.device, dtype=wide(t))
    angle = t.to(wide(t)).unsqueeze(1) * (1000 * torch.exp(-math.log(10000) * i / (features // 2)))
    return torch.cat([angle.cos(), angle.sin()], 1)
