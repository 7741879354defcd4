"""Codes that are drawn, by a relaxation that gradients pass: Jang et al. 2016, Maddison et al. 2016."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.likelihood import gumbel, wide
from zoo.nn.quantizers import Quantizer, field, flat


class GumbelCodes(Quantizer):
    """A linear map says how probable each code is at a place, and one is drawn.

    y = softmax((logits + g) / tau),  g = -log(-log U);  z_q = y E
    term: "kl" weight KL(q || uniform) = weight sum_k q_k log(q_k K), q = softmax(logits), mean over the places

    Without training the most probable code is taken, so that the same image has the same codes.

    hard     z_q = e_k of the largest y_k, with the gradient of y (straight through); else y as it is
    start, end, anneal   tau falls from start to end, evenly in its logarithm, over the first `anneal` steps
    kl       weight of the term; 5e-4 as by Esser et al. 2020
    """

    def __init__(
        self,
        dim: int,
        *,
        levels: int = 512,
        hard: bool = True,
        start: float = 1.0,
        end: float = 0.5,
        anneal: int = 10_000,
        kl: float = 5e-4,
    ) -> None:
        super().__init__()
        self.levels, self.hard, self.kl = levels, hard, kl
        self.start, self.end, self.anneal = start, end, anneal
        self.tau = start
        self.logits = nn.Linear(dim, levels)
        self.entries = nn.Parameter(torch.randn(levels, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = wide(self.logits(flat(z)))
        with torch.autocast(z.device.type, enabled=False):
            log_q = logits.log_softmax(1)
            q_log_q = log_q.exp() * log_q
            terms = {"kl": self.kl * (q_log_q.sum(1).mean() + torch.tensor(self.levels).log().to(log_q))}
            noisy = (logits + gumbel(logits)) / self.tau if self.training else logits / self.tau
            codes = noisy.argmax(1)
            y, entries = noisy.softmax(1), self.entries.to(logits.dtype)
            if self.hard or not self.training:
                # the value is an entry to the last bit: y - sg(y) is 0
                rows = F.embedding(codes, entries) + (y - y.detach()) @ entries.detach()
            else:
                rows = y @ entries
        return field(rows, z).type_as(z), codes.view(len(z), *z.shape[2:]), terms

    def decode(self, codes: Tensor) -> Tensor:
        """(B, H, W) -> (B, D, H, W)."""
        return F.embedding(codes.long(), self.entries).movedim(-1, 1)

    def at(self, step: int) -> None:
        self.tau = self.start * (self.end / self.start) ** min(1.0, step / self.anneal)
