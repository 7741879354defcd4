"""How gradients pass a draw of categorical codes: relaxed, straight through, or by the score function.

log_q (B, N, K) are the log probabilities of N codes with K values; z (S, B, N, K) are S draws of them as one-hot
vectors, or what stands for one-hot vectors.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from zoo.nn.likelihood import gumbel


def one_hots(log_q: Tensor, samples: int = 1) -> Tensor:
    """Draws of codes as one-hot vectors, without gradients: (B, N, K) -> (S, B, N, K)."""
    log_q = log_q.detach().expand(samples, *log_q.shape)
    return F.one_hot((log_q + gumbel(log_q)).argmax(-1), log_q.shape[-1]).to(log_q.dtype)


class GumbelSoftmax:
    """y = softmax((log q + g) / tau), g = -log(-log U): Jang et al. 2016, eq. 2; Maddison et al. 2016.

    Biased, of little variance; as tau goes to 0, y becomes a one-hot draw from q and its gradient's variance grows.

    hard         the one-hot vector of the largest y_k, with the gradient of y (straight through)
    start, end, rate, every   tau = max(end, start e^(-rate t)), changed every so many optimizer steps t
    """

    samples = 1

    def __init__(
        self,
        *,
        hard: bool = False,
        start: float = 1.0,
        end: float = 0.5,
        rate: float = 1e-5,
        every: int = 1000,
    ) -> None:
        self.hard, self.start, self.end, self.rate, self.every = hard, start, end, rate, every
        self.tau = start

    def at(self, step: int) -> None:
        """The number of optimizer steps done."""
        self.tau = max(self.end, self.start * math.exp(-self.rate * (step // self.every * self.every)))

    def draw(self, log_q: Tensor) -> Tensor:
        """(B, N, K) -> (1, B, N, K), with gradients."""
        y = ((log_q + gumbel(log_q)) / self.tau).softmax(-1).unsqueeze(0)
        if not self.hard:
            return y
        # the value is a one-hot vector to the last bit: y - sg(y) is 0
        return F.one_hot(y.argmax(-1), y.shape[-1]).to(y.dtype) + (y - y.detach())

    def credited(self, reward: Tensor, log_q: Tensor) -> Tensor:
        """The reward (S, B) as it is: its gradient comes through the draw."""
        return reward


class ScoreFunction:
    """grad E[f] = E[(f(z_s) - b_s) grad log q(z_s)]: unbiased, Williams 1992; b_s is the mean of the other draws' f.

    The baseline is of draws of the same example, so it has nothing to learn: Kool et al. 2019. With one draw there is
    none.

    samples   S, draws per example, each of which is decoded
    """

    hard = True

    def __init__(self, *, samples: int = 2) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: an estimate takes at least one draw")
        self.samples = samples

    def at(self, step: int) -> None:
        """Nothing depends on the step."""

    def draw(self, log_q: Tensor) -> Tensor:
        """(B, N, K) -> (S, B, N, K), without gradients."""
        return one_hots(log_q, self.samples)

    def credited(self, reward: Tensor, log_q: Tensor) -> Tensor:
        """The reward f (S, B), with the gradient of its mean for q too; log_q (S, B) is that of the draws."""
        f = reward.detach()
        gain = (f - f.mean(0)) * (self.samples / (self.samples - 1)) if self.samples > 1 else f
        return reward + gain * (log_q - log_q.detach())
