"""A VAE whose latent is a vector of categorical codes: Jang, Gu and Poole 2016 (1611.01144), section 4.2.

x is an image of integers (B, C, H, W), z (S, B, N, K) are S draws of N one-hot vectors, q(z|x) = prod_n softmax(l_n).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.vae import ACTIVE, AT_ONCE
from zoo.models.variational import gathered, mean_weight, require_images, start_at, unit, unused
from zoo.nn.estimators import GumbelSoftmax, one_hots
from zoo.nn.likelihood import Likelihood, gumbel, likelihood_for, wide
from zoo.nn.mlp import MLP
from zoo.types import Kind, Space


class CategoricalVAE(nn.Module):
    """A model of images by N codes of K values, with a learned prior for each of them.

    -log p(x) <= -log p(x|z) + KL(q(z|x) || p(z)),  KL = sum_nk q_nk (log q_nk - log p_nk), exact and never relaxed

    The bound is of codes. What is trained by a relaxed draw is none, so in training "nats" is told for whole codes
    only; in evaluation mode every draw is whole.

    latent      N; with K = 2 these are the paper's Bernoulli units
    categories  K
    encoder     encoder((C, H, W), (N, K)) makes the logits of q
    decoder     decoder((N, K), (F, H, W)) makes the likelihood's parameters
    likelihood  likelihood(levels) makes p(x|z)
    estimator   how gradients pass the draw: zoo.nn.GumbelSoftmax, relaxed or straight through, or ScoreFunction
    init_bias   start the decoder's output bias at the mean of the data, if the likelihood can (Bernoulli)

    Unfit if the data are not images of integers. ValueError for categories < 2.
    """

    kind: ClassVar[Kind] = "lower bound"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        latent: int = 200,
        categories: int = 2,
        encoder: Callable[..., nn.Module] = MLP,
        decoder: Callable[..., nn.Module] = MLP,
        likelihood: Callable[[int], Likelihood] = likelihood_for,
        estimator: Any = None,
        init_bias: bool = True,
    ) -> None:
        super().__init__()
        require_images("A VAE of codes", shape, levels)
        if categories < 2:
            raise ValueError(f"categories={categories}: a code with one value says nothing; try 2")
        C, H, W = shape
        self.shape, self.levels = (C, H, W), levels
        self.latent = Space((latent,), categories)
        self.likelihood = likelihood(levels)
        self.encoder = encoder(self.shape, (latent, categories))
        self.decoder = decoder((latent, categories), (self.likelihood.features(self.shape), H, W))
        self.logits = nn.Parameter(torch.zeros(latent, categories))  # of the prior
        self.estimator = estimator or GumbelSoftmax()
        self.init_bias = init_bias

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the blocks of the decoder, called one after the other."""
        return list(getattr(self.decoder, "blocks", [self.decoder]))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """One draw of the codes per example, or as many as the estimator takes; y is not used."""
        log_q = self.posterior(x)
        z = self.estimator.draw(log_q) if self.training else one_hots(log_q)
        log_p = self.likelihood.log_prob(self._decoded(z), x)
        if self.training:
            log_p = self.estimator.credited(log_p, (z * log_q).sum((-2, -1)))
        kl = self._kl(log_q).sum(1).mean()
        terms = {"loss": kl - log_p.mean(), "reconstruction": -log_p.mean(), "kl": kl}
        return terms | {"nats": terms["loss"]} if self.estimator.hard or not self.training else terms

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, samples: int = 100) -> Tensor:
        """The importance-weighted bound on log p(x) in nats, by whole codes: (B,), float64, without gradients.

        log 1/K sum_k p(x, z_k) / q(z_k|x) with K = samples. y is not used.
        ValueError for samples < 1.
        """
        log_q = self.posterior(x)
        ratio = self._log_prior() - log_q
        size = math.prod((len(x), self.likelihood.features(self.shape), *self.shape[1:]))

        def weights(draws: int) -> Tensor:
            z = one_hots(log_q, draws)
            return self.likelihood.log_prob(self._decoded(z), x) + (z * ratio).sum((-2, -1))

        return mean_weight(weights, samples, together=AT_ONCE // size)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """n images of integers, (n, C, H, W); at temperature 0 of the likeliest codes. y is not used."""
        logits = self.logits.expand(n, -1, -1)
        codes = (logits + temperature * gumbel(logits)).argmax(-1)
        return self.likelihood.sample(self._decoded(self._one_hot(codes)))

    def encode(self, x: Tensor) -> Tensor:
        """The likeliest codes: (B, C, H, W) -> (B, N), integers."""
        return self.posterior(x).argmax(-1)

    def decode(self, z: Tensor) -> Tensor:
        """The most probable image: codes (B, N) -> (B, C, H, W), integers."""
        return self.likelihood.mode(self._decoded(self._one_hot(z)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after its codes: (B, C, H, W) -> (B, C, H, W), integers."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """The output's bias, at the mean of 100,000 examples."""
        if self.init_bias and hasattr(self.likelihood, "bias"):
            start_at(self.decoder, self.likelihood, gathered(batches, mean=True, images=0)[0])

    def at(self, step: int) -> None:
        """The number of optimizer steps done, on which a temperature depends."""
        self.estimator.at(step)

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch of q, q^2 (N, K) and the KL (N,), float64."""
        log_q = self.posterior(x).double()
        q, count = log_q.exp(), torch.tensor(len(x), device=x.device)
        return {"count": count, "q": q.sum(0), "square": q.square().sum(0), "kl": self._kl(log_q).sum(0)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Codes whose probabilities vary over the data by more than 0.01 together, and the KL of a code in nats."""
        q, square, kl = (sums[key] / sums["count"] for key in ("q", "square", "kl"))
        active = ((square - q.square()).sum(1) > ACTIVE).sum()
        return {"active_units": float(active), "kl_max_dim": float(kl.max()), "kl_min_dim": float(kl.min())}

    def unwell(self, told: dict[str, float]) -> list[str]:
        """What is bad about the numbers of `summarize`, each in a sentence with a cure; [] if all is well."""
        return unused(told["active_units"], self.latent.shape[0])

    def posterior(self, x: Tensor) -> Tensor:
        """log q of each value of each code: (B, C, H, W) -> (B, N, K)."""
        return wide(self.encoder(unit(x, self.levels, self.logits))).log_softmax(-1)

    def _kl(self, log_q: Tensor) -> Tensor:
        """KL(q || p) of each code: (B, N, K) -> (B, N)."""
        return (log_q.exp() * (log_q - self._log_prior())).sum(-1)

    def _log_prior(self) -> Tensor:
        return wide(self.logits).log_softmax(-1)

    def _one_hot(self, codes: Tensor) -> Tensor:
        return F.one_hot(codes.long(), self.latent.levels)

    def _decoded(self, z: Tensor) -> Tensor:
        """z (..., N, K) -> the likelihood's parameters (..., F, H, W)."""
        rows = z.flatten(0, -3).to(self.logits.dtype)
        return self.decoder(rows).unflatten(0, z.shape[:-2])
