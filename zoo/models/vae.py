"""The variational auto-encoder: Kingma and Welling 2013, Auto-Encoding Variational Bayes (1312.6114).

Trained by several weighted draws it is the IWAE: Burda, Grosse and Salakhutdinov 2015 (1509.00519).

x is an image of integers (B, C, H, W), z a latent vector (B, D), q(z|x) = N(mu, e^lv) with a diagonal covariance, K
the number of draws of z. The encoder sees x / (levels - 1), which lies in [0, 1].
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.models.variational import gathered, mean_weight, require_images, start_at, unit, unused
from zoo.nn.bounds import ImportanceWeighted
from zoo.nn.likelihood import Likelihood, likelihood_for
from zoo.nn.mlp import MLP
from zoo.nn.priors import StandardNormal
from zoo.nn.stochastic_layer import parts
from zoo.types import Kind, Space

AT_ONCE = (
    2**22
)  # parameters of p(x|z) that log_prob has in memory at a time: how many draws are decoded together
ACTIVE = 0.01  # Burda et al. 2015: a unit is active if its posterior mean varies by more over the data


class VAE(nn.Module):
    """A latent-variable model of images, whose encoder and decoder are any two networks.

    -log p(x) <= -log p(x|z) + KL(q(z|x) || p(z)),  z = mu + e^(lv/2) eps
    loss       = -log p(x|z) + beta sum_d max(free_bits, mean over the batch of KL_d), a mean over K draws
    or, by a bound of several draws,  -log 1/K sum_k w_k,  w = p(x|z) p(z) / q(z|x)

    latent      D, the size of z
    encoder     encoder((C, H, W), (2 D,)) makes the network (B, C, H, W) -> (B, 2 D), which is mu, then lv
    decoder     decoder((D,), (F, H, W)) makes the network (B, D) -> (B, F, H, W), the likelihood's parameters
    prior       prior(D, (C, H, W)): zoo.nn.StandardNormal, GaussianMixture, VampPrior, or a StochasticLayer above.
                The KL is in closed form where the prior has one, else that of the same draws
    likelihood  likelihood(levels) makes p(x|z)
    samples     K, draws of z per example in training
    bound       None: the mean of their ELBOs; zoo.nn.ImportanceWeighted or DoublyReparameterized: the IWAE
    beta        weight of the KL: Higgins et al. 2017
    free_bits   nats that each dimension of z may carry unpunished: Kingma et al. 2016, a dimension is a group; the
                batch is what one device sees at once
    init_bias   start the decoder's output bias at the mean of the data, if the likelihood can (Bernoulli):
                Burda et al. 2015; a bias shared by the pixels of a channel starts at the channel's mean

    Unfit if the data are not images of integers. ValueError for samples < 1, for a beta or free bits with a bound of
    weighted draws, which has no KL, and for free bits with a prior that tells no KL by dimension.
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
        prior: Callable[..., nn.Module] = StandardNormal,
        likelihood: Callable[[int], Likelihood] = likelihood_for,
        samples: int = 1,
        bound: ImportanceWeighted | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        init_bias: bool = True,
    ) -> None:
        super().__init__()
        require_images("A VAE", shape, levels)
        if samples < 1:
            raise ValueError(f"samples={samples}: a bound takes at least one draw")
        if bound is not None and (beta != 1 or free_bits):
            raise ValueError(
                f"beta={beta} and free_bits={free_bits} weigh a KL, and bound={type(bound).__name__} has none; "
                "take bound=null, or beta=1 and free_bits=0"
            )
        C, H, W = shape
        self.shape, self.levels = (C, H, W), levels
        self.latent = Space((latent,))
        self.likelihood = likelihood(levels)
        self.encoder = encoder(self.shape, (2 * latent,))
        self.decoder = decoder((latent,), (self.likelihood.features(self.shape), H, W))
        self.prior = prior(latent, self.shape)
        self.samples, self.bound = samples, bound
        self.beta, self.free_bits, self.init_bias = beta, free_bits, init_bias
        self.closed = hasattr(self.prior, "kl")
        if free_bits and not self.closed:
            raise ValueError(
                f"free_bits={free_bits} are of the KL of a dimension, which {type(self.prior).__name__} has not in "
                "closed form; take free_bits=0 or prior=normal"
            )

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the blocks of the decoder, called one after the other."""
        return list(getattr(self.decoder, "blocks", [self.decoder]))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """K draws of z per example; y is not used.

        "nats" bounds -log p(x) whatever beta and free_bits: reconstruction + kl, and with weighted draws less.
        """
        if self.bound is not None:
            z, log_p, log_prior, log_q = self._drawn(x, *self.posterior(x), self.samples, self.bound.holds)
            nats = -self.bound(log_p + log_prior - log_q, z).mean()
            return {
                "loss": nats,
                "nats": nats,
                "reconstruction": -log_p.mean(),
                "kl": (log_q - log_prior).mean(),
            }
        mu, lv = self.posterior(x)
        if self.closed:
            z = _moved(mu, lv, torch.randn(self.samples, *mu.shape, dtype=mu.dtype, device=mu.device))
            reconstruction = -self.likelihood.log_prob(self._decoded(z), x).mean()
            by_dim = self.prior.kl(mu, lv).mean(0)
            kl = by_dim.sum()
            # a KL is never negative
            punished = by_dim.clamp(min=self.free_bits).sum() if self.free_bits else kl
        else:
            _, log_p, log_prior, log_q = self._drawn(x, mu, lv, self.samples)
            reconstruction = -log_p.mean()
            punished = kl = (log_q - log_prior).mean()
        loss = reconstruction + self.beta * punished
        return {"loss": loss, "nats": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, samples: int = 100) -> Tensor:
        """The importance-weighted bound on log p(x) in nats, (B,), float64, without gradients.

        log 1/K sum_k p(x, z_k) / q(z_k|x) with K = samples: Burda et al. 2015, eq. 8. Its mean grows with K
        towards log p(x), and is the ELBO at K = 1. Draws are decoded some at a time, so that memory does not grow
        with K. y is not used.
        ValueError for samples < 1.
        """
        mu, lv = self.posterior(x)
        size = math.prod((len(x), self.likelihood.features(self.shape), *self.shape[1:]))

        def weights(draws: int) -> Tensor:
            _, log_p, log_prior, log_q = self._drawn(x, mu, lv, draws)
            return log_p + log_prior - log_q

        return mean_weight(weights, samples, together=AT_ONCE // size)

    def log_weights(self, x: Tensor, samples: int = 1) -> Tensor:
        """log p(x, z_k) / q(z_k|x) of K draws from the posterior, with gradients: (K, B), nats."""
        _, log_p, log_prior, log_q = self._drawn(x, *self.posterior(x), samples)
        return log_p + log_prior - log_q

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """n images of integers, (n, C, H, W); temperature scales the noise of the prior. y is not used."""
        like = next(self.parameters())
        like = torch.empty(n, *self.latent.shape, dtype=like.dtype, device=like.device)
        return self.likelihood.sample(
            self._decoded(self.prior.sample(like, self._q, temperature=temperature))
        )

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
        """What begins at the data: the output's bias, at the mean of 100,000 examples, and a prior's pseudo-inputs."""
        biased, wants = self.init_bias and hasattr(self.likelihood, "bias"), getattr(self.prior, "wants", 0)
        mean, images = gathered(batches, mean=biased, images=wants)
        if biased:
            start_at(self.decoder, self.likelihood, mean)
        if wants:
            self.prior.prepare(unit(images, self.levels, next(self.parameters())))

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch of mu and mu^2 (D,), for each layer of latents, and of the KL, by dimension (D,) or, if
        that is unknown, whole; float64."""
        mu, lv = self.posterior(x)
        sums = {"count": torch.tensor(len(x), device=x.device)}
        for layer, mean in enumerate([mu, *getattr(self.prior, "means", _none_above)(mu)], 1):
            mean = mean.double()
            sums |= {f"mu_{layer}": mean.sum(0), f"square_{layer}": mean.square().sum(0)}
        if self.closed:
            return sums | {"kl": self.prior.kl(mu.double(), lv.double()).sum(0)}
        _, _, log_prior, log_q = self._drawn(x, mu, lv, 1)
        return sums | {"kl": (log_q - log_prior).double().sum()}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Units whose mean varies over the data by more than 0.01, and the KL in nats, by dimension or whole.

        Of a second layer of latents: active_units_2.
        """
        means = {name: total / sums["count"] for name, total in sums.items()}
        told, kl = {}, means["kl"]
        for layer in range(1, (len(sums) - 2) // 2 + 1):
            variance = means[f"square_{layer}"] - means[f"mu_{layer}"].square()
            told[f"active_units_{layer}" if layer > 1 else "active_units"] = float((variance > ACTIVE).sum())
        if not self.closed:
            return told | {"kl_estimate": float(kl)}
        return told | {"kl_max_dim": float(kl.max()), "kl_min_dim": float(kl.min())}

    def unwell(self, told: dict[str, float]) -> list[str]:
        """What is bad about the numbers of `summarize`, each in a sentence with a cure; [] if all is well."""
        return unused(told["active_units"], self.latent.shape[0])

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and lv of q(z|x): (B, C, H, W) -> (B, D), (B, D)."""
        return self._q(unit(x, self.levels, next(self.parameters())))

    def _q(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """mu and lv for images in [0, 1]."""
        return parts(self.encoder(scaled))

    def _drawn(
        self, x: Tensor, mu: Tensor, lv: Tensor, samples: int, hold: bool = False
    ) -> tuple[Tensor, ...]:
        """K draws z (K, B, D), and log p(x|z), log p(z) and log q(z|x): (K, B) each; `hold` keeps mu, lv in log q."""
        noise = torch.stack([torch.randn_like(mu) for _ in range(samples)])
        z = _moved(mu, lv, noise)
        if hold:
            mu, lv = mu.detach(), lv.detach()
            noise = (z - mu) * (-0.5 * lv).exp()
        log_q = -0.5 * (noise.square() + lv + math.log(2 * math.pi)).sum(-1)
        return z, self.likelihood.log_prob(self._decoded(z), x), self.prior.log_prob(z, self._q), log_q

    def _decoded(self, z: Tensor) -> Tensor:
        """z (..., D) -> the likelihood's parameters (..., F, H, W)."""
        rows = z.flatten(0, -2).to(next(self.decoder.parameters()).dtype)
        return self.decoder(rows).unflatten(0, z.shape[:-1])


def _moved(mu: Tensor, lv: Tensor, noise: Tensor) -> Tensor:
    return mu + (0.5 * lv).exp() * noise


def _none_above(mu: Tensor) -> list[Tensor]:
    return []
