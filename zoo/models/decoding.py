"""How a token is drawn from logits: at a temperature, among the most probable ones. logits are (B, V)."""

import math

import torch
from torch import Tensor


class Decoding:
    """A rule by which tokens are drawn: among k tokens, then among the fewest that have probability p together.

    logits (B, V) -> tokens (B,). Fan et al. 2018 (top k), Holtzman et al. 2020 (top p, the nucleus).

    temperature     logits are divided by it; 0 takes the most probable token

    Raises ValueError for a temperature below 0, top_k below 1 or top_p outside of (0, 1].
    """

    def __init__(
        self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> None:
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature={temperature}, top_k={top_k}, top_p={top_p} leave nothing to draw from; "
                "temperature is at least 0, top_k at least 1, top_p in (0, 1]"
            )
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = self.restricted(logits.float() / self.temperature)
        return torch.multinomial(logits.softmax(-1), 1).squeeze(1)

    def restricted(self, logits: Tensor) -> Tensor:
        """Logits with -inf at what may not be drawn."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            p, order = logits.softmax(-1).sort(-1, descending=True)
            before = p.cumsum(-1) - p  # the first token stays, whatever its probability
            out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(out, -math.inf)
        return logits
