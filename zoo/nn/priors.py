"""Priors of a VAE's latent: what z is before an image is seen.

z (..., D). log p(z) is in nats, (...). A prior is made as prior(D, (C, H, W)). Every method is given the encoder,
images (N, C, H, W) in [0, 1] -> mu, lv (N, D), which only a VampPrior asks. A prior with `kl` has the KL of
N(mu, e^lv) in closed form, by dimension; for others it is estimated.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.nn.likelihood import wide
from zoo.nn.quantizers import straight_through

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
AT_ONCE = 2**23  # numbers of (z - mu) that a mixture has in memory at a time


class StandardNormal(nn.Module):
    """N(0, 1) in every dimension."""

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()

    def kl(self, mu: Tensor, lv: Tensor) -> Tensor:
        """KL(N(mu, e^lv) || N(0, 1)) = 1/2 (mu^2 + e^lv - 1 - lv) of each dimension: (..., D)."""
        return 0.5 * (mu.square() + lv.exp() - 1 - lv)

    def log_prob(self, z: Tensor, encoder: Encoder) -> Tensor:
        """-1/2 sum(z^2 + log 2 pi); the encoder is not asked."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, like: Tensor, encoder: Encoder, *, temperature: float = 1.0) -> Tensor:
        """Draws of the shape, type and device of like (n, D); temperature is their standard deviation."""
        return temperature * torch.randn_like(like)


class GaussianMixture(nn.Module):
    """M Gaussians with learned weights, means and variances: p(z) = sum_m pi_m N(z; mu_m, e^lv_m).

    components   M
    """

    def __init__(self, dim: int, shape: Sequence[int], *, components: int = 100) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, dim))
        self.lv = nn.Parameter(torch.zeros(components, dim))

    def log_prob(self, z: Tensor, encoder: Encoder) -> Tensor:
        """log p(z); the encoder is not asked."""
        return log_mixture(z, self.logits.log_softmax(0), self.mean, self.lv)

    def sample(self, like: Tensor, encoder: Encoder, *, temperature: float = 1.0) -> Tensor:
        """Draws of the shape, type and device of like (n, D); at temperature 0 they are means."""
        m = self.logits.softmax(0).multinomial(len(like), replacement=True)
        return normal(self.mean[m], self.lv[m], temperature).to(like)


class VampPrior(nn.Module):
    """The posteriors of M images that are learned: p(z) = 1/M sum_m q(z|u_m), Tomczak and Welling 2017, eq. 9.

    The pseudo-inputs u lie in [0, 1], by clamping, whose gradient goes straight through: they begin as training
    images, one of the authors' two choices, and so most of their pixels at 0 or 1, where a clamp may have none.

    components   M
    """

    def __init__(self, dim: int, shape: Sequence[int], *, components: int = 500) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.rand(components, *shape))

    @property
    def wants(self) -> int:
        """How many images `prepare` asks for."""
        return len(self.inputs)

    def prepare(self, images: Tensor) -> None:
        """The pseudo-inputs begin as these images (N, C, H, W) in [0, 1]; of too few, each is taken several times."""
        index = torch.arange(len(self.inputs), device=images.device) % len(images)
        self.inputs.copy_(images[index])

    def images(self) -> Tensor:
        """u, (M, C, H, W)."""
        return straight_through(self.inputs, self.inputs.detach().clamp(0, 1))

    def log_prob(self, z: Tensor, encoder: Encoder) -> Tensor:
        """log p(z)."""
        mu, lv = encoder(self.images())
        return log_mixture(z, mu.new_full((len(mu),), -math.log(len(mu))), mu, lv)

    def sample(self, like: Tensor, encoder: Encoder, *, temperature: float = 1.0) -> Tensor:
        """Draws of the shape, type and device of like (n, D); at temperature 0 they are posterior means."""
        m = torch.randint(len(self.inputs), (len(like),), device=like.device)
        return normal(*encoder(self.images()[m]), temperature).to(like)


def log_normal(z: Tensor, mu: Tensor, lv: Tensor) -> Tensor:
    """log N(z; mu, e^lv) with a diagonal covariance: (..., D) -> (...)."""
    return -0.5 * ((z - mu).square() * (-lv).exp() + lv + math.log(2 * math.pi)).sum(-1)


def normal(mu: Tensor, lv: Tensor, temperature: float = 1.0) -> Tensor:
    """A draw from N(mu, temperature^2 e^lv)."""
    return mu + temperature * (0.5 * lv).exp() * torch.randn_like(mu)


def log_mixture(z: Tensor, log_pi: Tensor, mu: Tensor, lv: Tensor) -> Tensor:
    """log sum_m pi_m N(z; mu_m, e^lv_m): z (..., D), log_pi (M,), mu and lv (M, D) -> (...)."""
    rows = wide(z).flatten(0, -2)
    together = max(1, AT_ONCE // mu.numel())
    parts = [(log_pi + log_normal(some.unsqueeze(1), mu, lv)).logsumexp(1) for some in rows.split(together)]
    return torch.cat(parts).view(z.shape[:-1])
