"""The KL autoencoder, first stage of latent diffusion: Rombach et al. 2021 (2112.10752), section 3.1 and appendix G.

x is an image of integers (B, C, H, W), z a field of real vectors (B, D, H', W'), q(z|x) = N(mu, e^lv) with a diagonal
covariance, p(z) = N(0, 1). It looks alike and real by zoo.models.VQGAN, whose `autoencoder` it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn import fidelity
from zoo.nn.autoencoder import FieldDecoder, FieldEncoder
from zoo.nn.distortion import Absolute, scaled
from zoo.nn.likelihood import wide
from zoo.types import Space, Unfit


class KLAutoencoder(nn.Module):
    """Images to fields of real vectors that are held, very softly, to a normal law, and back.

    loss = distortion(decoder(z), x) + kl_weight KL(q(z|x) || p(z)) / (C H W),  z = mu + e^(lv/2) eps

    The distortion is a mean over the elements of an image, where the paper's is a sum: so the KL, a sum over those
    of z, is divided by as many, and its weight is the paper's.

    dim          D, the size of the vectors
    encoder      encoder((C, H, W), 2 D) makes the network (B, C, H, W) -> (B, 2 D, H', W'), which is mu, then lv
    decoder      decoder(D, (F, H, W)) makes the network back, to the distortion's F channels
    distortion   distortion(levels): zoo.nn.Absolute or Squared errors of pixels
    kl_weight    of the KL: so little that z is not normal, but of a bounded size

    Unfit if the data are not images of integers.
    """

    explicit = False

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        dim: int = 4,
        encoder: Callable[..., nn.Module] = FieldEncoder,
        decoder: Callable[..., nn.Module] = FieldDecoder,
        distortion: Callable[[int], Any] = Absolute,
        kl_weight: float = 1e-6,
    ) -> None:
        super().__init__()
        if levels is None or len(shape) != 3:
            raise Unfit(
                f"A KL autoencoder codes images of integers (C, H, W), not shape={list(shape)} with levels={levels}.",
                lambda space: len(space.shape) == 3 and space.levels is not None,
            )
        C, H, W = shape
        self.shape, self.levels, self.kl_weight = (C, H, W), levels, kl_weight
        self.distortion = distortion(levels)
        if hasattr(self.distortion, "log_prob"):
            raise ValueError(
                "a KL autoencoder's decoder makes pictures, and a likelihood has none; take distortion=zoo.nn.Absolute"
            )
        self.encoder = encoder(self.shape, 2 * dim)
        self.decoder = decoder(dim, (self.distortion.features(self.shape), H, W))
        with torch.no_grad():
            _, _, h, w = self.encoder(torch.zeros(2, C, H, W)).shape  # GroupNorm takes no single number
        self.latent = Space((dim, h, w))

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the blocks of the decoder, called one after the other."""
        return list(getattr(self.decoder, "blocks", [self.decoder]))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The distortion, the KL with its weight, and their sum; y is not used."""
        picture, _, terms = self.through(x)
        reconstruction = self.reconstruction(picture, x)
        return {"loss": sum(terms.values(), reconstruction), "reconstruction": reconstruction, **terms}

    def through(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The decoder's picture (B, F, H, W) of a draw of z, that z, and the KL's term; in evaluation z is mu."""
        mu, lv = self.posterior(x)
        z = mu + (0.5 * lv).exp() * torch.randn_like(mu) if self.training else mu
        term = self.kl_weight * divergence(mu, lv).mean() / x[0].numel()
        return self.decoder(self._own(z)), z, {"kl": term}

    def reconstruction(self, picture: Tensor, x: Tensor) -> Tensor:
        """The distortion of images (B, C, H, W) by a decoder's picture: a mean over all elements."""
        return self.distortion.distance(picture, x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and lv of q(z|x): (B, C, H, W) -> (B, D, H', W') twice."""
        mu, lv = wide(self.encoder(self.scaled(x))).chunk(2, 1)
        return mu, lv.clamp(-30.0, 20.0)

    @torch.no_grad()
    def encode(self, x: Tensor, *, draw: bool = False) -> Tensor:
        """The posterior's mode, or a draw of it: (B, C, H, W) -> (B, D, H', W')."""
        mu, lv = self.posterior(x)
        return mu + (0.5 * lv).exp() * torch.randn_like(mu) if draw else mu

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent: (B, D, H', W') -> (B, C, H, W), integers."""
        return self.distortion.mode(self.decoder(self._own(z)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after its latent: (B, C, H, W) -> (B, C, H, W), integers."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch of what tells images from their reconstructions, and of the latents' KL and size."""
        mu, lv = self.posterior(x)
        return {
            **fidelity.sums(x, self.decode(mu), self.levels),
            "nats": divergence(mu, lv).double().sum(),
            "latent": mu.double().mean((1, 2, 3)).sum(),
            "latent_square": mu.double().square().mean((1, 2, 3)).sum(),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Errors of the reconstructions (zoo.nn.fidelity), the KL in nats per example, the deviation of mu."""
        mean, square, kl = (
            float(sums[name]) / float(sums["count"]) for name in ("latent", "latent_square", "nats")
        )
        return {**fidelity.means(sums), "kl": kl, "latent_deviation": max(square - mean**2, 0.0) ** 0.5}

    def scaled(self, x: Tensor) -> Tensor:
        """x as the encoder sees it, in [-1, 1]."""
        return scaled(x, self.levels).to(next(self.parameters()).dtype)

    def _own(self, z: Tensor) -> Tensor:
        """z in the decoder's type of numbers."""
        return z.to(next(self.decoder.parameters()).dtype)


def divergence(mu: Tensor, lv: Tensor) -> Tensor:
    """KL(N(mu, e^lv) || N(0, 1)) in nats, the sum over a latent: (B, ...) twice -> (B,)."""
    return 0.5 * (mu.square() + lv.exp() - 1 - lv).flatten(1).sum(1)
