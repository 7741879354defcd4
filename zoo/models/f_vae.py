"""The f-VAE, a VAE whose distributions are flows: Su and Wu 2018, Improve VAEs with Conditional Flows (1809.05861).

x is an image of integers (B, C, H, W), v = x + u the same in real numbers (u from a dequantization), h = v brought
into [-1, 1), z a latent vector (B, D), e and n standard Gaussian noise of the size of z and of an image.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.models.flow import FIRST
from zoo.models.vae import ACTIVE
from zoo.nn.bases import Gaussian
from zoo.nn.bijections import Chain
from zoo.nn.couplings import Affine, Coupling
from zoo.nn.dequantization import SMALL, UniformDequantization, real
from zoo.nn.likelihood import whole, wide
from zoo.nn.masks import Checkerboard, Given, Half
from zoo.nn.mixing import NormedInvertible1x1
from zoo.nn.mlp import MLP
from zoo.nn.preprocessing import Rescale
from zoo.types import Kind, Space, Unfit


class FVAE(nn.Module):
    """A VAE with a flow as its prior, one in its posterior, and one as its decoder's noise.

    prior       F(z) = n                          p(z)   = N(F(z)) |det dF/dz|
    posterior   z = mu + e^(lv/2) T(e; c)         q(z|x) = N(e) / |det dz/de|, with (mu, lv, c) = E(h)
    noise       h = G(z) + sigma R^-1(n; G(z))    p(h|z) = N(n) |det dn/dh|
    loss        -log P(x) <= log q(u|x) + log q(z|x) - log p(z) - log p(h|z) - log|det dh/dv|, one draw of u and e

    The paper's are F, the diagonal posterior E(x) + sigma_1 e and the noise sigma e, with a free sigma for each
    number of an image that starts at the size of the residual. What it calls the conditional flow of the posterior
    is F again: with F(z) as the latent, F(E(x) + sigma_1 e) is its posterior and G(F^-1(.)) its decoder. T and R are
    ours; so is that lv depends on x, that z is a vector, that F mixes it by free matrices, not permutations, and that
    G does not end in tanh. With prior = posterior = noise = 0 it is a Gaussian VAE. It has no published likelihood.

    latent      D, the size of z
    encoder     encoder((C, H, W), (3 D,)), of which the last D are c; (2 D,) without a flow in the posterior
    decoder     decoder((D,), (C, H, W)) makes G
    prior       steps of F: ActNorm, a matrix and a coupling each
    posterior   couplings of T, which see c
    noise       couplings of R on checkerboards, which see G(z)
    coupling    how the moved half moves: zoo.nn.Affine, Additive, Spline
    network     of the couplings of z
    noise_network   of the couplings of images
    dequantization  dequantization(shape, levels): zoo.nn.UniformDequantization, VariationalDequantization

    Unfit for anything but images of integers. ValueError for a flow of z where latent < 2: one number has no halves.
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
        prior: int = 8,
        posterior: int = 4,
        noise: int = 4,
        coupling: Callable[..., nn.Module] = Affine,
        network: Callable[..., nn.Module] = MLP,
        noise_network: Callable[..., nn.Module] = SMALL,
        dequantization: Callable[..., nn.Module] = UniformDequantization,
    ) -> None:
        super().__init__()
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"An f-VAE models images of integers (C, H, W), not shape={list(shape)} with levels={levels}.",
                _fits,
            )
        if latent < 2 and prior + posterior:
            raise ValueError(
                f"latent={latent} has no two halves for a coupling; try latent=2, or prior=0 with posterior=0"
            )
        C, H, W = shape
        D = latent
        self.shape, self.levels = (C, H, W), levels
        self.latent = Space((D,))
        self.dequantization = dequantization(self.shape, levels)
        self.protocol = {"dequantization": self.dequantization.name}
        self.rescale = Rescale(levels, -1.0, 1.0)
        self.encoder = encoder(self.shape, (3 * D if posterior else 2 * D,))
        self.decoder = decoder((D,), self.shape)
        self.log_sigma = nn.Parameter(torch.zeros(self.shape))
        self.base = Gaussian()

        def couplings(shape: tuple[int, ...], masks: list, network: Callable[..., nn.Module]) -> Chain:
            return Chain(*(Coupling(shape, mask=m, network=network, transform=coupling) for m in masks))

        self.prior = Chain(
            *(Chain(NormedInvertible1x1(D), *couplings((D,), [Half()], network).layers) for _ in range(prior))
        )
        given = [Given(D, Half(swap=i % 2 == 1)) for i in range(posterior)]
        self.posterior = couplings((2 * D,), given, network)
        given = [Given(C, Checkerboard(swap=i % 2 == 1)) for i in range(noise)]
        self.noise = couplings((2 * C, H, W), given, noise_network)

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Blocks that are called one after the other: the decoder's, and those of each flow."""
        flows = [list(flow.layers) for flow in (self.posterior, self.prior, self.noise)]
        return [run for run in (*flows, list(getattr(self.decoder, "blocks", [self.decoder]))) if run]

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return [block for run in self.runs for block in run]

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """One draw of u and z per example: nats, and its parts; the kl is an estimate. y is not used."""
        reconstruction, kl, log_q = (part.mean() for part in self._terms(x))
        nats = reconstruction + kl + log_q
        return {
            "loss": nats,
            "nats": nats,
            "reconstruction": reconstruction,
            "kl": kl,
            "dequantization": log_q,
        }

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, samples: int = 1) -> Tensor:
        """The importance-weighted bound on log P(x) in nats, (B,), float64, without gradients.

        log 1/K sum_k p(x + u_k, z_k) / (q(u_k|x) q(z_k|x)) with K = samples draws of u and z together. Its mean grows
        with K towards log P(x), and is the bound that is trained at K = 1. y is not used.
        ValueError for samples < 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples}: the bound takes at least one draw")
        weights = [-sum(self._terms(x)).double() for _ in range(samples)]
        return torch.stack(weights).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, temperature: float = 1.0, noise: float = 1.0
    ) -> Tensor:
        """n images of integers, (n, C, H, W). y is not used.

        temperature  scales the Gaussian that the prior makes z of
        noise        scales the decoder's; at 0 images are G(z), which is what the paper shows
        """
        like = next(self.parameters())
        n_z = torch.randn(n, *self.latent.shape, dtype=like.dtype, device=like.device)
        n_h = torch.randn(n, *self.shape, dtype=like.dtype, device=like.device)
        mean = self._decoded(self.prior.inverse(temperature * n_z))
        residual = self.noise.inverse(torch.cat([mean, noise * n_h], 1))[:, self.shape[0] :]
        return self._whole(mean + self.log_sigma.exp() * residual)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The posterior at e = 0, of the middle of the bins: (B, C, H, W) -> (B, D)."""
        mu, lv, c = self._encoded(self._real(x) + 0.5)
        return self._posterior(mu, lv, c, torch.zeros_like(mu))[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The image without its noise, G(z): (B, D) -> (B, C, H, W), integers."""
        return self._whole(self._decoded(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after the latent: (B, C, H, W) -> (B, C, H, W), integers."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Measure the prior's norms on z, and sigma on the residual, of the first 512 examples."""
        first: list[Tensor] = []
        for batch in batches:
            first.append(batch["x"])
            if sum(map(len, first)) >= FIRST:
                break
        v, _ = self.dequantization(self._real(torch.cat(first)))
        mu, lv, c = self._encoded(v)
        z, _ = self._posterior(mu, lv, c, torch.randn_like(mu))
        self.prior.initialize(z)
        residual = self.rescale(v)[0] - self._decoded(z)
        self.log_sigma.copy_(0.5 * residual.square().mean(0).log())

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch: z at e = 0 and its square (D,), the kl, and the error of F^-1(F(z)), float64."""
        z = self.encode(x)
        back = self.prior.inverse(self.prior(z)[0])
        return {
            "count": torch.tensor(len(x), device=x.device),
            "mu": z.double().sum(0),
            "square": z.double().square().sum(0),
            "kl": self._terms(x)[1].double().sum(),
            "inverse_error": (back - z).abs().amax(1).double().sum(),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Units that vary over the data by more than 0.01, the KL in nats, the mean error of undoing the prior."""
        mu, square, kl, error = (sums[key] / sums["count"] for key in ("mu", "square", "kl", "inverse_error"))
        active = (square - mu.square() > ACTIVE).sum()
        return {"active_units": float(active), "kl_estimate": float(kl), "inverse_error": float(error)}

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-log p(v|z), log q(z|x) - log p(z) and log q(u|x) of one draw: (B,) each, whose sum bounds -log P(x)."""
        v, log_q = self.dequantization(self._real(x))
        mu, lv, c = self._encoded(v)
        e = torch.randn_like(mu)
        z, log_det = self._posterior(mu, lv, c, e)
        n, more = self.prior(z)
        kl = self.base.log_prob(e) - log_det - self.base.log_prob(n) - more
        h, log_det = self.rescale(v)
        mean = self._decoded(z)
        residual = (h - mean) * (-self.log_sigma).exp()
        n, more = self.noise(torch.cat([mean, residual], 1))
        log_p = self.base.log_prob(n[:, self.shape[0] :].flatten(1)) + more - self.log_sigma.sum() + log_det
        return -log_p, kl, log_q

    def _encoded(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu, lv (B, D) and c (B, D), or (B, 0) where nothing sees it."""
        D = self.latent.shape[0]
        mu, lv, c = wide(self.encoder(self.rescale(v)[0])).tensor_split([D, 2 * D], 1)
        return mu, lv.clamp(-30.0, 20.0), c

    def _posterior(self, mu: Tensor, lv: Tensor, c: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """z and log|det dz/de|."""
        t, log_det = self.posterior(torch.cat([c, e], 1))
        return mu + (0.5 * lv).exp() * t[:, c.shape[1] :], log_det + 0.5 * lv.sum(1)

    def _decoded(self, z: Tensor) -> Tensor:
        """G(z), (B, C, H, W)."""
        return wide(self.decoder(z))

    def _real(self, x: Tensor) -> Tensor:
        return real(x, self.log_sigma.dtype)

    def _whole(self, h: Tensor) -> Tensor:
        return whole(self.rescale.inverse(h).floor().clamp(0, self.levels - 1), self.levels)


def _fits(space: Space) -> bool:
    return len(space.shape) == 3 and space.levels is not None
