"""The neural autoregressive distribution estimator: Larochelle and Murray 2011.

x_t is the t-th of the T elements of an image in the order in which they are read, as a number in [0, 1]; H is the
number of hidden units.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.models.fully_visible import FullyVisible
from zoo.models.pixels import scaled
from zoo.models.tokens import sequence
from zoo.nn.likelihood import Likelihood


class NADE(FullyVisible):
    """Each element by a hidden layer of its own, all of which share their weights.

    a_1 = c,  a_{t+1} = a_t + W_t x_t,  h_t = sigmoid(a_t),  p(x_t = 1 | x_<t) = sigmoid(b_t + V_t h_t): O(T H) for
    all of x, where each a_t is a running sum. Eqs. 9 to 12. With more than two levels, V_t h_t + b_t are the
    parameters of another likelihood of one element.

    hidden        H
    random_order  read in a fixed random order, as in the paper, not by row, column and channel
    seed          of that order
    likelihood    as zoo.models.fully_visible has it, which also says what data are Unfit
    """

    order: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        hidden: int = 500,
        random_order: bool = True,
        seed: int = 0,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__(shape, levels, likelihood=likelihood)
        if random_order:
            self.protocol["order"] = f"random, seed {seed}"
        T = math.prod(shape)
        order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order if random_order else torch.arange(T))
        self.hidden = Hidden(T, hidden, self.likelihood.features((1, 1, 1)))

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [self.hidden]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What is said of each element: (B, C, H, W) -> (B, F, T, 1)."""
        return self.hidden(scaled(sequence(x)[:, self.order], self.levels, self.hidden.W.dtype)).unsqueeze(-1)

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each element from the running sum of those before it; y is not used."""
        a = self.hidden.c.expand(len(tokens), -1)
        for t in range(tokens.shape[1]):
            if t >= P:
                here = self.hidden.told(a, t)[:, :, None, None]
                tokens[:, t] = self.likelihood.sample(here, temperature=temperature).flatten()
            a = a + scaled(tokens[:, t : t + 1], self.levels, a.dtype) * self.hidden.W[t]

    def elements(self, x: Tensor) -> Tensor:
        """The elements in the model's order: (B, C, H, W) -> (B, 1, T, 1)."""
        return sequence(x)[:, None, self.order, None]

    def image(self, tokens: Tensor) -> Tensor:
        """Elements in the model's order as data: (n, T) -> (n, C, H, W)."""
        return super().image(torch.empty_like(tokens).index_copy_(1, self.order, tokens))


class Hidden(nn.Module):
    """The hidden layers and what they say, for all elements at once.  (B, T) -> (B, F, T)

    On a CPU one element after the other (Running), all else at once (`together`).
    """

    def __init__(self, length: int, hidden: int, features: int) -> None:
        super().__init__()
        near, far = length**-0.5, hidden**-0.5
        self.W = nn.Parameter(torch.empty(length, hidden).uniform_(-near, near))
        self.c = nn.Parameter(torch.zeros(hidden))
        self.V = nn.Parameter(torch.empty(features, length, hidden).uniform_(-far, far))
        self.b = nn.Parameter(torch.zeros(features, length))

    def forward(self, x: Tensor) -> Tensor:
        said = Running.apply(x, self.W, self.c, self.V) if x.device.type == "cpu" else self.together(x)
        return said + self.b

    def together(self, x: Tensor) -> Tensor:
        """V_t h_t of all elements from one running sum, the obvious way, which holds T H numbers for each example:
        a batch of 100 binarized digits with 500 units is 157 MB.  (B, T) -> (B, F, T)"""
        added = x.T[:-1, :, None] * self.W[:-1, None]  # (T - 1, B, H)
        h = torch.cat([self.c.expand(1, len(x), -1), added]).cumsum(0).sigmoid()
        return torch.bmm(h, self.V.permute(1, 2, 0)).permute(1, 2, 0)

    def told(self, a: Tensor, t: int) -> Tensor:
        """What is said of the t-th element alone, from its a_t (B, H): (B, F)."""
        return a.sigmoid() @ self.V[:, t].T + self.b[:, t]


class Running(torch.autograd.Function):
    """V_t h_t, with only one a_t in memory, so that it stays in a processor's cache; ten times faster there.

    Backwards a_t = a_{t+1} - W_t x_t is found again, and
        dx_t = W_t da,  dW_t = sum over examples of x_t da,  dV_t = sum of g_t h_t,  da += (g_t V_t) h_t (1 - h_t)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, c: Tensor, V: Tensor) -> Tensor:
        said = x.new_empty(len(x), len(V), x.shape[1])
        a = c.repeat(len(x), 1)
        with torch.autocast("cpu", enabled=False):
            for t in range(x.shape[1]):
                said[:, :, t] = a.sigmoid() @ V[:, t].T
                a.addr_(x[:, t], W[t])
        ctx.save_for_backward(x, W, V, a)
        return said

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        x, W, V, last = ctx.saved_tensors
        a, da, dW, dV = last.clone(), torch.zeros_like(last), torch.empty_like(W), torch.empty_like(V)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        g = g.to(a.dtype)
        with torch.autocast("cpu", enabled=False):
            for t in reversed(range(x.shape[1])):
                dW[t] = x[:, t] @ da
                if dx is not None:
                    dx[:, t] = da @ W[t]
                a.addr_(x[:, t], W[t], alpha=-1)
                h = a.sigmoid()
                dV[:, t] = g[:, :, t].T @ h
                da += (g[:, :, t] @ V[:, t]).mul_(h).mul_(1 - h)
        return dx, dW, da.sum(0), dV
