"""The VQGAN: a VQ-VAE that is also to look alike and to look real. Esser, Rombach and Ommer 2020 (2012.09841).

Around a zoo.models.KLAutoencoder the same is the KL autoencoder of latent diffusion: Rombach et al. 2021 (2112.10752).
x is an image of integers (B, C, H, W), x^ the decoder's picture of it, D a critic.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.kl_autoencoder import KLAutoencoder
from zoo.models.vqvae import VQVAE
from zoo.nn.adversarial import Hinge, PatchCritic, held
from zoo.nn.distortion import scaled
from zoo.nn.likelihood import wide
from zoo.nn.ranks import averaged
from zoo.types import Prepared, Scheduled, can


class VQGAN(nn.Module):
    """An autoencoder and a critic, trained by one loss in which each sees its own terms only.

    loss = rec + w_p perceptual(x, x^) + the quantizer's terms, or KL  the autoencoder's
           + lambda generator(D~(x^)) + critic(D(x), D(sg(x^)))        from step `start` on
    lambda = w |grad rec + w_p perceptual| / (|grad generator| + 1e-4), gradients of the decoder's last layer

    In the generator's term D~ is D with its weights held constant, in the critic's x^ is: so one backward pass
    and one optimizer serve both; optimizer.groups gives the critic a learning rate of its own.

    autoencoder   autoencoder(shape=, levels=) makes the zoo.models.VQVAE, with an error of pixels for distortion, or
                  the KLAutoencoder
    critic        critic((C, H, W)) makes D; game has the losses of both: zoo.nn.Hinge or NonSaturating
    perceptual    a network whose perceptual(a, b) is a distance of pictures (B,), as zoo.pretrained gives it or
                  zoo.nn.LPIPS; None for none. It is never trained. perceptual_weight is w_p
    weight        w; adaptive=False takes lambda = w
    start         the first step whose loss has the critic in it

    Without gradients, as in validation, the loss is the autoencoder's: lambda cannot be had, and images that look
    real to a moving critic are no measure to choose weights by. It has no likelihood, and no pair with it has one.
    Raises ValueError for an autoencoder with a likelihood, or whose decoder does not end in a convolution, and for a
    perceptual network of images with other channels.
    """

    explicit = False

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        autoencoder: Callable[..., VQVAE | KLAutoencoder] = VQVAE,
        critic: Callable[[tuple[int, ...]], nn.Module] = PatchCritic,
        game: Any = None,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        weight: float = 0.8,
        adaptive: bool = True,
        start: int = 10_000,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder(shape=shape, levels=levels)
        self.shape, self.levels = self.autoencoder.shape, self.autoencoder.levels
        self.latent, self.vectors = self.autoencoder.latent, getattr(self.autoencoder, "vectors", None)
        if self.autoencoder.explicit:
            raise ValueError(
                "a VQGAN's decoder makes pictures, and a likelihood has none; take distortion=zoo.nn.Absolute"
            )
        if not isinstance(self.autoencoder.decoder.output[-1], nn.Conv2d):
            raise ValueError("lambda is measured at the decoder's last convolution, and output[-1] is none")
        self.critic = critic(self.shape)
        self.game = game or Hinge()
        seen = getattr(perceptual, "shape", self.shape)[0]
        if seen != self.shape[0]:
            raise ValueError(
                f"the perceptual network sees {seen} channels, and these images have {self.shape[0]}; "
                "scripts/prepare.py features dataset=<this one> trains another"
            )
        self.perceptual = perceptual.requires_grad_(False).eval() if perceptual is not None else None
        self.perceptual_weight, self.weight = perceptual_weight, weight
        self.adaptive, self.start = adaptive, start
        self.step = 0

    @property
    def protocol(self) -> dict[str, Any]:
        """Which perceptual distance it was trained with."""
        return {"perceptual": "none" if self.perceptual is None else self.perceptual.told}

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the decoder's blocks."""
        return self.autoencoder.blocks

    def train(self, mode: bool = True) -> "VQGAN":
        """The perceptual network stays in evaluation mode."""
        super().train(mode)
        if self.perceptual is not None:
            self.perceptual.eval()
        return self

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Both players' loss and its terms, each without its weight but for the autoencoder's; y is not used."""
        picture, _, terms = self.autoencoder.through(x)
        real = self.autoencoder.scaled(x)
        told = {"reconstruction": self.autoencoder.reconstruction(picture, x), **terms}
        alike = told["reconstruction"]
        if self.perceptual is not None:
            told["perceptual"] = wide(self.perceptual(real, picture)).mean()
            alike = alike + self.perceptual_weight * told["perceptual"]
        loss = sum(terms.values(), alike)
        if self.step < self.start:
            # all parameters have a gradient at every step, which data parallel training relies on
            loss = loss + 0.0 * sum(p.sum() for p in self.critic.parameters())
            return {"loss": loss, **told}
        told["generator"] = self.game.generator(wide(held(self.critic, picture)))
        told["critic"] = self.game.critic(wide(self.critic(real)), wide(self.critic(picture.detach())))
        if torch.is_grad_enabled():
            told["lambda"] = self.balance(alike, told["generator"])
            loss = loss + told["lambda"] * told["generator"] + told["critic"]
        return {"loss": loss, **told}

    def balance(self, alike: Tensor, generator: Tensor) -> Tensor:
        """lambda, which gives both terms gradients of the same length at the decoder's last layer, but for w.

        The gradients are those of the whole batch, of all ranks.
        """
        if not self.adaptive:
            return torch.full_like(generator.detach(), self.weight)
        last = self.autoencoder.decoder.output[-1].weight
        one, two = (
            averaged(torch.autograd.grad(term, last, retain_graph=True)[0]).norm()
            for term in (alike, generator)
        )
        return (self.weight * (one / (two + 1e-4)).clamp(0.0, 1e4)).detach()

    def encode(self, x: Tensor, **options: Any) -> Tensor:
        """The codes (B, L, H', W'), integers; or the KL autoencoder's vectors (B, D, H', W'), with its options."""
        return self.autoencoder.encode(x, **options)

    def decode(self, z: Tensor) -> Tensor:
        """The image of codes, or of the KL autoencoder's vectors: -> (B, C, H, W), integers."""
        return self.autoencoder.decode(z)

    def unquantized(self, x: Tensor) -> Tensor:
        """The vectors that are quantized: (B, C, H, W) -> (B, D, H', W')."""
        return self.autoencoder.unquantized(x)

    def picture(self, z: Tensor) -> Tensor:
        """The image of vectors, which are quantized first: (B, D, H', W') -> (B, C, H, W), integers."""
        return self.autoencoder.picture(z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after its latent."""
        return self.autoencoder.reconstruct(x)

    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """What the autoencoder measures; and the perceptual network's weights, where they are files."""
        if hasattr(self.perceptual, "load"):
            self.perceptual.load()
        if can(self.autoencoder, Prepared):
            self.autoencoder.prepare(batches)

    def at(self, step: int) -> None:
        """The number of optimizer steps done."""
        self.step = step
        if can(self.autoencoder, Scheduled):
            self.autoencoder.at(step)

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The autoencoder's, and the perceptual distance of images and their reconstructions."""
        sums = self.autoencoder.statistics(x)
        if self.perceptual is not None:
            real, back = (scaled(image, self.levels) for image in (x, self.reconstruct(x)))
            sums["perceptual"] = wide(self.perceptual(real, back)).double().sum()
        return sums

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The autoencoder's, and the mean perceptual distance."""
        told = self.autoencoder.summarize(sums)
        if self.perceptual is not None:
            told["perceptual"] = float(sums["perceptual"]) / float(sums["count"])
        return told

    def unwell(self, told: dict[str, float]) -> list[str]:
        """What is bad about the autoencoder, in words."""
        return self.autoencoder.unwell(told) if hasattr(self.autoencoder, "unwell") else []
