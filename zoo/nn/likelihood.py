"""Likelihoods of images of integers: log p(x | parameters), samples and the most probable image.

x is an image of integers in [0, levels), (..., C, H, W); what a network says of it are the parameters,
(..., F, H, W) with F = features((C, H, W)). Leading dimensions broadcast: one image under many parameters.
Log-probabilities are in nats, summed over C, H and W, in float32 or better whatever the network computes in.
A likelihood is made by who knows the data, as `Categorical(levels)`: in a YAML it has `_partial_: true`.
"""

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Likelihood(Protocol):
    """What a decoder's output means. One that can start at the data's mean has `bias(mean)`, as Bernoulli."""

    def features(self, shape: tuple[int, ...]) -> int:
        """The channels of parameters that an image of shape (C, H, W) needs."""
        ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """parameters (..., F, H, W), x (..., C, H, W) -> log p(x) in nats, (...)."""
        ...

    def sample(self, parameters: Tensor, *, temperature: float = 1.0) -> Tensor:
        """parameters (..., F, H, W) -> a draw, (..., C, H, W) of integers.

        temperature   divides logits and multiplies scales; 0 takes the mode
        """
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """parameters (..., F, H, W) -> the most probable image, (..., C, H, W) of integers."""
        ...


def likelihood_for(levels: int) -> Likelihood:
    """The usual likelihood: Bernoulli at 2 levels, categorical below 16, else a mixture of 10 logistics.

    With few levels a free probability for each costs little; with many it helps that neighbours are alike.
    """
    if levels == 2:
        return Bernoulli(levels)
    return Categorical(levels) if levels < 16 else DiscretizedLogisticMixture(levels)


class Bernoulli:
    """Each element is 1 with probability sigmoid(logit), independently.

    log p(x) = sum log sigmoid((2x - 1) logit).

    ValueError unless levels is 2: grey values as soft targets are not a likelihood.
    """

    def __init__(self, levels: int) -> None:
        if levels != 2:
            raise ValueError(
                f"A Bernoulli is for 2 levels, not {levels}: take zoo.nn.Categorical, or binarize the data."
            )

    def features(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = wide(parameters)
        return BernoulliSum.apply(logits, x.to(logits.dtype))

    def sample(self, parameters: Tensor, *, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return self.mode(parameters)
        return torch.bernoulli((wide(parameters) / temperature).sigmoid()).to(torch.uint8)

    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).to(torch.uint8)

    def bias(self, mean: Tensor) -> Tensor:
        """The logits of a mean, which is clipped to [0.001, 0.999] as by Burda et al. 2015."""
        return mean.clamp(0.001, 0.999).logit()


class BernoulliSum(torch.autograd.Function):
    """-sum softplus((1 - 2x) logit) over C, H and W, with gradient x - sigmoid(logit).

    A third less time than autograd's way, as two of its four copies of the logits are not made: under 50 draws of a
    latent this likelihood is half of what is not a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        wrong = logits * (1 - 2 * x)
        # above the threshold softplus is the identity: at 40 to the last bit of a double
        return -F.softplus(wrong, 1.0, 40.0, out=wrong).sum((-3, -2, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        grad, slope = -grad[..., None, None, None], logits.sigmoid()
        if grad.dim() == slope.dim() and grad.shape[:-3] == slope.shape[:-3]:
            return slope.sub_(x).mul_(grad), None
        return ((slope - x) * grad).sum_to_size(logits.shape), None


class Categorical:
    """Each element has a free probability for every level, independently of the other elements.

    log p(x) = sum log softmax(logits)[x]; the F = levels * C features are (levels, C), channels last.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def features(self, shape: tuple[int, ...]) -> int:
        return self.levels * shape[0]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = self._logits(parameters)  # (..., levels, C, H, W)
        lead = torch.broadcast_shapes(logits.shape[:-4], x.shape[:-3])
        logits = logits.expand(*lead, *logits.shape[-4:]).reshape(-1, *logits.shape[-4:])
        x = x.expand(*lead, *x.shape[-3:]).reshape(-1, *x.shape[-3:])
        return -F.cross_entropy(logits, x.long(), reduction="none").sum((-3, -2, -1)).reshape(lead)

    def sample(self, parameters: Tensor, *, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return self.mode(parameters)
        logits = self._logits(parameters) / temperature
        return whole((logits + gumbel(logits)).argmax(-4), self.levels)

    def mode(self, parameters: Tensor) -> Tensor:
        return whole(self._logits(parameters).argmax(-4), self.levels)

    def _logits(self, parameters: Tensor) -> Tensor:
        return wide(parameters).unflatten(-3, (self.levels, -1))


class DiscretizedLogisticMixture:
    """A pixel is drawn from one of K logistics, each cut into as many bins as there are levels.

    With v = 2x / (levels - 1) - 1 in [-1, 1], h = 1 / (levels - 1) half a bin and the logistic's cdf F:
    p(x) = sum_k pi_k prod_c [F_kc(v_c + h) - F_kc(v_c - h)], the first bin open below, the last one above.
    A channel's mean depends on the channels before it: mu_kc + sum_{b < c} tanh(a_kcb) v_b.

    F = K (1 + 2 C + C (C - 1) / 2) features, 30 in grey and 100 in colour at K = 10: per component the logit
    of pi, C means, C log scales, then the coefficients a in the order (c, b) = (1, 0), (2, 0), (2, 1).

    PixelCNN++, Salimans et al. 2017. We differ in three things: any number of channels and levels (the floor
    of the log scale, -7 at 256 levels, moves with the bin); the mass of a bin is exact at any scale, where
    they take the density for it below 1e-5; samples condition on rounded channels, to follow p exactly.
    """

    def __init__(self, levels: int, *, components: int = 10) -> None:
        self.levels = levels
        self.components = components
        self.floor = math.log(255 / (levels - 1)) - 7.0

    def features(self, shape: tuple[int, ...]) -> int:
        C = shape[0]
        return self.components * (1 + 2 * C + C * (C - 1) // 2)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        C = x.shape[-3]
        logits, mean, log_scale, coefficients = self._split(parameters, C)
        v = self._scaled(x, logits.dtype).unsqueeze(-4)  # (..., 1, C, H, W)
        centre = torch.cat(
            [v[..., c : c + 1, :, :] - self._mean(c, v, mean, coefficients) for c in range(C)], -3
        )  # (..., K, C, H, W)
        rate = (-log_scale).exp()
        bin_ = 1 / (self.levels - 1)
        # F(a) - F(b) = F(a) F(-b) (1 - e^(b - a)): nothing cancels, so the tails are as exact as the middle
        above = F.logsigmoid((centre + bin_) * rate)
        below = F.logsigmoid((bin_ - centre) * rate)
        width = torch.log(-torch.expm1(-2 * bin_ * rate))
        lowest, highest = (x == 0).unsqueeze(-4), (x == self.levels - 1).unsqueeze(-4)
        mass = torch.where(lowest, above, torch.where(highest, below, above + below + width))
        return (logits.log_softmax(-3) + mass.sum(-3)).logsumexp(-3).sum((-2, -1))

    def sample(self, parameters: Tensor, *, temperature: float = 1.0) -> Tensor:
        return self._draw(parameters, temperature)

    def mode(self, parameters: Tensor) -> Tensor:
        """The centre of the heaviest component, channel after channel: close to the most probable image."""
        return self._draw(parameters, 0.0)

    def _draw(self, parameters: Tensor, temperature: float) -> Tensor:
        C = self._channels(parameters)
        logits, mean, log_scale, coefficients = self._split(parameters, C)
        if temperature:
            logits, log_scale = logits / temperature, log_scale + math.log(temperature)
            logits = logits + gumbel(logits)
        best = logits.argmax(-3, keepdim=True).unsqueeze(-3)
        mean, log_scale, coefficients = (
            torch.take_along_dim(part, best, -4) for part in (mean, log_scale, coefficients)
        )  # (..., 1, C, H, W)
        v = torch.zeros_like(mean)
        for c in range(C):
            value = self._mean(c, v, mean, coefficients)
            if temperature:
                u = torch.rand_like(value).clamp(1e-7, 1 - 1e-7)
                value = value + log_scale[..., c : c + 1, :, :].exp() * u.logit()
            v[..., c : c + 1, :, :] = self._scaled(self._level(value), v.dtype)
        return whole(self._level(v.squeeze(-4)), self.levels)

    def _split(self, parameters: Tensor, C: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., F, H, W) -> logits (..., K, H, W), means, log scales and coefficients (..., K, _, H, W)."""
        parts = wide(parameters).unflatten(-3, (self.components, -1))
        logits, mean, log_scale, coefficients = parts.split([1, C, C, C * (C - 1) // 2], -3)
        # the ceiling is a scale of 500 times the range of the data: flat, and a bin's width is still a number
        return logits.squeeze(-3), mean, log_scale.clamp(self.floor, 7.0), coefficients.tanh()

    def _mean(self, c: int, v: Tensor, mean: Tensor, coefficients: Tensor) -> Tensor:
        """The mean of channel c, given the channels before it: (..., K, 1, H, W)."""
        result, first = mean[..., c : c + 1, :, :], c * (c - 1) // 2
        for b in range(c):
            result = result + coefficients[..., first + b : first + b + 1, :, :] * v[..., b : b + 1, :, :]
        return result

    def _channels(self, parameters: Tensor) -> int:
        each = parameters.shape[-3] // self.components
        return next(C for C in range(1, each) if each == 1 + 2 * C + C * (C - 1) // 2)

    def _scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) * (2 / (self.levels - 1)) - 1

    def _level(self, v: Tensor) -> Tensor:
        return ((v + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)


def wide(x: Tensor) -> Tensor:
    """x in float32 if it came in half precision: sums over thousands of pixels need the bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def whole(x: Tensor, levels: int) -> Tensor:
    """x as integers, in the type that images of so many levels have."""
    return x.to(torch.uint8 if levels <= 256 else torch.int64)


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise: logits + gumbel has its maximum at i with probability softmax(logits)_i."""
    # by the class's own name: torch.compile would not see that zoo.chance has put another method there
    return -torch.Tensor.exponential_(torch.empty_like(like)).log()
