"""A short convolution over time, as Mamba and the delta rule have it before their recurrence."""

import torch
from torch import Tensor, nn


class CausalConv(nn.Module):
    """Each feature's weighted sum of its last `width` values, zeros before the first.  (B, T, D) -> (B, T, D)

    y_t = sum_i weight_i x_{t-width+1+i} + bias. Its state is the last width - 1 inputs, (B, width - 1, D).
    """

    def __init__(self, dim: int, width: int = 4, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dim).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        width, D = self.weight.shape
        T = x.shape[1]
        x = torch.cat([x.new_zeros(len(x), width - 1, D), x], 1)
        y = x.new_zeros(D) if self.bias is None else self.bias.to(x.dtype)
        for i, weight in enumerate(self.weight.to(x.dtype)):
            y = torch.addcmul(y, x[:, i : i + T], weight)
        return y

    def state(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The last inputs of a prompt x (B, T, D), of which x[b, :lengths[b]] counts."""
        back = self.weight.shape[0] - 1
        x = torch.cat([x.new_zeros(len(x), back, x.shape[2]), x], 1)
        if lengths is None:
            return x[:, x.shape[1] - back :]
        at = lengths[:, None] + torch.arange(back, device=x.device)
        return x[torch.arange(len(x), device=x.device)[:, None], at]

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output for one more token, and the next state.  x_t (B, D) -> (B, D)"""
        seen = torch.cat([state, x_t.unsqueeze(1)], 1)
        y = (seen * self.weight.to(x_t.dtype)).sum(1)
        return (y if self.bias is None else y + self.bias.to(x_t.dtype)), seen[:, 1:]
