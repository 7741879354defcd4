"""The variational auto-encoder: Kingma and Welling 2013, Auto-Encoding Variational Bayes (1312.6114).

x is an image of integers (B, C, H, W), z a latent vector (B, D), p(z) = N(0, 1), q(z|x) = N(mu, e^lv) with a
diagonal covariance, K the number of draws of z. The encoder sees x / (levels - 1), which lies in [0, 1].
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.nn.likelihood import Likelihood, likelihood_for, wide
from zoo.nn.mlp import MLP
from zoo.types import Kind, Space, Unfit

ENOUGH = 100_000  # examples that the mean of the data is measured from: all of MNIST
AT_ONCE = (
    2**22
)  # parameters of p(x|z) that log_prob has in memory at a time: how many draws are decoded together
ACTIVE = 0.01  # Burda et al. 2015: a unit is active if its posterior mean varies by more over the data


class VAE(nn.Module):
    """A latent-variable model of images, whose encoder and decoder are any two networks.

    -log p(x) <= -log p(x|z) + KL(q(z|x) || p(z)),  z = mu + e^(lv/2) eps,  KL = 1/2 sum(mu^2 + e^lv - 1 - lv)
    loss       = -log p(x|z) + beta sum_d max(free_bits, mean over the batch of KL_d)

    latent      D, the size of z
    encoder     encoder((C, H, W), (2 D,)) makes the network (B, C, H, W) -> (B, 2 D), which is mu, then lv
    decoder     decoder((D,), (F, H, W)) makes the network (B, D) -> (B, F, H, W), the likelihood's parameters
    likelihood  likelihood(levels) makes p(x|z); None takes the usual one for so many levels
    beta        weight of the KL: Higgins et al. 2017
    free_bits   nats that each dimension of z may carry unpunished: Kingma et al. 2016, a dimension is a group
    init_bias   start the decoder's `output.bias` at the mean of the data, if the likelihood can (Bernoulli):
                Burda et al. 2015; a bias shared by the pixels of a channel starts at the channel's mean

    Unfit if the data are not images of integers.
    """

    kind: ClassVar[Kind] = "lower bound"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        latent: int = 40,
        encoder: Callable[..., nn.Module] = MLP,
        decoder: Callable[..., nn.Module] = MLP,
        likelihood: Callable[[int], Likelihood] | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        init_bias: bool = True,
    ) -> None:
        super().__init__()
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"A VAE models images of integers (C, H, W), not shape={list(shape)} with levels={levels}.",
                _fits,
            )
        C, H, W = shape
        self.shape, self.levels = (C, H, W), levels
        self.latent = Space((latent,))
        self.likelihood = (likelihood or likelihood_for)(levels)
        self.encoder = encoder(self.shape, (2 * latent,))
        self.decoder = decoder((latent,), (self.likelihood.features(self.shape), H, W))
        self.beta, self.free_bits, self.init_bias = beta, free_bits, init_bias

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the blocks of the decoder, called one after the other."""
        return list(getattr(self.decoder, "blocks", [self.decoder]))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """One draw of z per example; "nats" bounds -log p(x) whatever beta and free_bits; y is not used."""
        mu, lv = self.posterior(x)
        z = mu + (0.5 * lv).exp() * torch.randn_like(mu)
        reconstruction = -self.likelihood.log_prob(self._decoded(z), x).mean()
        by_dim = _kl(mu, lv).mean(0)
        kl = by_dim.sum()
        punished = by_dim.clamp(min=self.free_bits).sum() if self.free_bits else kl  # a KL is never negative
        loss = reconstruction + self.beta * punished
        return {"loss": loss, "nats": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, samples: int = 100) -> Tensor:
        """The importance-weighted bound on log p(x) in nats, (B,), float64, without gradients.

        log 1/K sum_k p(x, z_k) / q(z_k|x) with K = samples: Burda et al. 2015, eq. 8. Its mean grows with K
        towards log p(x), and is the ELBO at K = 1. Draws are decoded some at a time, which does not change
        them, so that memory does not grow with K. y is not used.
        ValueError for samples < 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples}: the bound takes at least one draw")
        mu, lv = self.posterior(x)
        size = math.prod((len(x), self.likelihood.features(self.shape), *self.shape[1:]))
        together = max(1, AT_ONCE // size)
        weights = []
        for start in range(0, samples, together):
            noise = torch.stack([torch.randn_like(mu) for _ in range(start, min(start + together, samples))])
            weights.append(self._log_weights(x, mu, lv, noise).double())
        return torch.cat(weights).logsumexp(0) - math.log(samples)

    def log_weights(self, x: Tensor, samples: int = 1) -> Tensor:
        """log p(x, z_k) / q(z_k|x) of K draws from the posterior, with gradients: (K, B), nats."""
        mu, lv = self.posterior(x)
        return self._log_weights(x, mu, lv, torch.randn(samples, *mu.shape, dtype=mu.dtype, device=mu.device))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """n images of integers, (n, C, H, W); temperature is the standard deviation of z. y is not used."""
        like = next(self.parameters())
        z = temperature * torch.randn(n, *self.latent.shape, dtype=like.dtype, device=like.device)
        return self.likelihood.sample(self._decoded(z))

    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean: (B, C, H, W) -> (B, D)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The most probable image: (B, D) -> (B, C, H, W), integers."""
        return self.likelihood.mode(self._decoded(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after the latent: (B, C, H, W) -> (B, C, H, W), integers."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """If init_bias, set the decoder's output bias from the mean of the first 100,000 examples."""
        bias_of = getattr(self.likelihood, "bias", None)
        if not self.init_bias or bias_of is None:
            return
        total, count = 0, 0
        for batch in batches:
            total, count = total + batch["x"].double().sum(0), count + len(batch["x"])
            if count >= ENOUGH:
                break
        mean, bias = total / count, self.decoder.output.bias
        bias.copy_(bias_of(mean if bias.numel() == mean.numel() else mean.mean((1, 2))).flatten())

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch of mu, mu^2 and the KL, by dimension: (D,) each, float64."""
        mu, lv = (part.double() for part in self.posterior(x))
        count = torch.tensor(len(x), device=x.device)
        return {"count": count, "mu": mu.sum(0), "square": mu.square().sum(0), "kl": _kl(mu, lv).sum(0)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Units whose mean varies over the data by more than 0.01, and the KL of a dimension of z in nats."""
        mu, square, kl = (sums[key] / sums["count"] for key in ("mu", "square", "kl"))
        active = (square - mu.square() > ACTIVE).sum()
        return {"active_units": float(active), "kl_max_dim": float(kl.max()), "kl_min_dim": float(kl.min())}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and lv of q(z|x): (B, C, H, W) -> (B, D), (B, D)."""
        scaled = x.to(next(self.parameters()).dtype)
        if self.levels > 2:
            scaled = scaled / (self.levels - 1)
        mu, lv = wide(self.encoder(scaled)).chunk(2, -1)
        return mu, lv.clamp(-30.0, 20.0)

    def _log_weights(self, x: Tensor, mu: Tensor, lv: Tensor, noise: Tensor) -> Tensor:
        """x (B, C, H, W), noise (K, B, D) -> (K, B)."""
        z = mu + (0.5 * lv).exp() * noise
        parameters = self._decoded(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        # log p(z) - log q(z|x), in which the constants cancel
        ratio = 0.5 * (noise.square() + lv - z.square()).sum(-1)
        return self.likelihood.log_prob(parameters, x) + ratio

    def _decoded(self, z: Tensor) -> Tensor:
        """z (B, D) -> the likelihood's parameters (B, F, H, W)."""
        return self.decoder(z.to(next(self.decoder.parameters()).dtype))


def _kl(mu: Tensor, lv: Tensor) -> Tensor:
    """KL(N(mu, e^lv) || N(0, 1)) of each dimension, in nats."""
    return 0.5 * (mu.square() + lv.exp() - 1 - lv)


def _fits(space: Space) -> bool:
    return len(space.shape) == 3 and space.levels is not None
