"""Dropout for large fields on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANCES = 1 << 16


class FieldDropout(nn.Module):
    """Each number is 0 with probability p while training, and the others grow by 1 / (1 - p): Srivastava et al. 2014.

    On a CPU chance comes in 64 bits that serve four numbers: in a fifth of torch.nn.Dropout's time, with a mask of
    one byte, not four. So p is rounded to a multiple of 2^-16, and so is what the others grow by.

    Raises ValueError for p outside of [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout={p} is a probability below 1; try 0.1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = min(round(self.p * CHANCES), CHANCES - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        kept = bits.view(torch.int16)[: x.numel()] >= dropped - CHANCES // 2  # even over -2^15 ... 2^15 - 1
        # laid out as x is, for two layouts are multiplied slowly
        return x * kept.as_strided(x.shape, torch.empty_like(x).stride()) * (CHANCES / (CHANCES - dropped))
