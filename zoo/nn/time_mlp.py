"""A multilayer perceptron that knows the time: velocities of toys."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.nn.conditions import Condition
from zoo.nn.time_embedding import told


class TimeMLP(nn.Module):
    """Linear maps of x, t and what is told, with an activation between them.  x (B, *shape), t (B,), c -> (B, *shape)

    t enters as the one number that it is: fields of toys change slowly with it, and sinusoids would make an ODE's
    solver take small steps. Tong et al. 2023 have the SELU, whose slope jumps at 0; SiLU's does not.

    shape       of an example
    context     width of a condition's vector, None for none
    width, depth    of the hidden layers, and their number
    blocks      the hidden layers, for gradient checkpointing; `output` is the last linear map
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int | None,
        *,
        width: int = 128,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.shape, self.context = tuple(shape), context
        size = math.prod(shape)
        widths = [size + 1 + (context or 0)] + [width] * depth
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), activation()) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], size)

    def forward(self, x: Tensor, t: Tensor, c: Condition | None = None) -> Tensor:
        parts = [x.flatten(1), t.unsqueeze(1).type_as(x)]
        if (vector := told(c, self.context is not None)) is not None:
            parts.append(vector)
        h = torch.cat(parts, 1)
        for block in self.blocks:
            h = block(h)
        return self.output(h).unflatten(1, self.shape)
