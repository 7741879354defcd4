"""Heads: what a network's features say of one token's level, of `levels` that there are.

h (..., D) features, tokens (...) integers below levels, or PAD where there is none; V = levels. A head is a map
h -> logits (..., V), and its nats(h, tokens) are what each token costs under it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.likelihood import DiscretizedLogisticMixture
from zoo.types import PAD, scored

ROWS = 4096  # tokens whose every level is told at once


class Logits(nn.Linear):
    """A free logit for every level, without bias: the matrix may be that of the embedding.  (..., D) -> (..., V)"""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__(dim, levels, bias=False)

    def nats(self, h: Tensor, tokens: Tensor) -> Tensor:
        """-log softmax(logits)[token] in nats, 0 at PAD.  (..., D), (...) -> (...)"""
        logits = self(h)
        # half precision loses bits in sums of thousands of terms
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), ignore_index=PAD, reduction="none")
        return nats.view_as(tokens)


class Logistics(nn.Module):
    """A mixture of K logistics, each cut into a bin for every level: 3 K numbers, and neighbours are alike.

    It is zoo.nn.DiscretizedLogisticMixture of one channel, token by token; for levels that have an order, as
    grey values. At the start the means lie evenly over the range. Salimans et al. 2017; Katharopoulos et al.
    2020 tell pixels so.

    components  K
    """

    def __init__(self, dim: int, levels: int, *, components: int = 10) -> None:
        super().__init__()
        self.levels = levels
        self.mixture = DiscretizedLogisticMixture(levels, components=components)
        self.linear = nn.Linear(dim, self.mixture.features((1, 1, 1)))
        with torch.no_grad():
            logit, mean, log_scale = self.linear.bias.view(components, 3).unbind(1)
            logit.zero_()
            mean.copy_(torch.linspace(-1, 1, components + 2)[1:-1])
            log_scale.fill_(-torch.tensor(float(components)).log())

    def forward(self, h: Tensor) -> Tensor:
        """log p of every level, which are logits: (..., D) -> (..., V)"""
        levels = torch.arange(self.levels, device=h.device)
        rows = self.mixed(h).flatten(0, -2).split(ROWS)
        return torch.cat([self.log_prob(row.unsqueeze(-2), levels) for row in rows]).view(*h.shape[:-1], -1)

    def nats(self, h: Tensor, tokens: Tensor) -> Tensor:
        """-log p(token) in nats, 0 at PAD, without the other levels.  (..., D), (...) -> (...)"""
        return -self.log_prob(self.mixed(h), tokens.clamp(min=0)) * scored(tokens)

    def mixed(self, h: Tensor) -> Tensor:
        """(..., D) -> (..., 3 K), in float32 where all else is in half: 8 bits do not tell 256 means apart."""
        with torch.autocast(h.device.type, enabled=False):
            return self.linear(h.to(self.linear.weight.dtype))

    def log_prob(self, mixed: Tensor, tokens: Tensor) -> Tensor:
        """A token is an image of one pixel.  (..., 3 K), (...) -> (...)"""
        return self.mixture.log_prob(mixed[..., None, None], tokens[..., None, None, None])
