"""A linear map between features that have degrees: what each of them may know.

A feature of degree d knows the elements of rank d and below, a strict one only those below. Ranks and degrees count
from 0. There may be several sets of degrees, and so several masks, for the same weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Module):
    """y = activation(bias + (weight * mask) x), mask[o, i] = degree_o >= degree_i, or > if strict.

    (B, I), m -> (B, O), with the m-th mask. Germain et al. 2015, eqs. 8 to 13.

    enter, leave  degrees of what comes in (M, I) and goes out (M, O), for M masks
    strict        whether a feature knows only lower degrees, not its own
    features      how many outputs there are for each degree of `leave`: O becomes (features, O), flattened
    """

    enter: Tensor
    leave: Tensor

    def __init__(
        self,
        enter: Tensor,
        leave: Tensor,
        *,
        strict: bool = False,
        features: int = 1,
        bias: bool = True,
        activation: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        leave = leave.repeat(1, features)
        self.register_buffer("enter", enter)
        self.register_buffer("leave", leave)
        self.strict = strict
        bound = enter.shape[1] ** -0.5
        self.weight = nn.Parameter(torch.empty(leave.shape[1], enter.shape[1]).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(leave.shape[1]).uniform_(-bound, bound)) if bias else None
        self.activation = activation()

    def forward(self, x: Tensor, m: int = 0) -> Tensor:
        return self.activation(F.linear(x, self.weight * self.mask(m), self.bias))

    def mask(self, m: int) -> Tensor:
        """Which weights there are in the m-th mask: (O, I), booleans."""
        enter, leave = self.enter[m], self.leave[m].unsqueeze(1)
        return leave > enter if self.strict else leave >= enter

    def rows(self, x: Tensor, which: Tensor | slice) -> Tensor:
        """Only some outputs, of an x in which whatever they may not know is 0: (B, I) -> (B, those)."""
        bias = None if self.bias is None else self.bias[which]
        return self.activation(F.linear(x, self.weight[which], bias))
