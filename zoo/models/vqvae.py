"""The VQ-VAE: an autoencoder through a field of codes. van den Oord et al. 2017 (1711.00937).

x is an image of integers (B, C, H, W), codes a field of integers (B, L, H', W') with L codes at each place (one,
but for residual quantizers). The encoder sees x scaled to [-1, 1].
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn import fidelity
from zoo.nn.autoencoder import FieldDecoder, FieldEncoder
from zoo.nn.distortion import Squared, scaled
from zoo.nn.quantizers import Quantizer, VectorQuantizer, flat
from zoo.types import Space, Unfit

ENOUGH = 10_000  # examples that the spread of the data is measured from


class VQVAE(nn.Module):
    """Images to fields of codes and back; how probable codes are is a prior's to say (zoo.models.Latent).

    loss = distortion(decoder(z_q), x) + the quantizer's terms,  z_q = quantizer(encoder(x))

    dim          D, the size of the vectors that are quantized
    encoder      encoder((C, H, W), D) makes the network (B, C, H, W) -> (B, D, H', W')
    decoder      decoder(D, (F, H, W)) makes the network back, to the distortion's F channels
    quantizer    quantizer(D), a zoo.nn.Quantizer
    distortion   distortion(levels): zoo.nn.Squared or Absolute errors of pixels; or a likelihood of zoo.nn, whose
                 nats per element it then is, and with which the model and a prior have a bound on log p(x)
    normalize    divide errors of pixels by that of one grey for all pixels of the training data, which `prepare`
                 measures: the squared error then is that of Sonnet's example, over the data's variance

    Unfit if the data are not images of integers.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        dim: int = 64,
        encoder: Callable[..., nn.Module] = FieldEncoder,
        decoder: Callable[..., nn.Module] = FieldDecoder,
        quantizer: Callable[[int], Quantizer] = VectorQuantizer,
        distortion: Callable[[int], Any] = Squared,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if levels is None or len(shape) != 3:
            raise Unfit(
                f"A VQ-VAE codes images of integers (C, H, W), not shape={list(shape)} with levels={levels}.",
                lambda space: len(space.shape) == 3 and space.levels is not None,
            )
        C, H, W = shape
        self.shape, self.levels, self.normalize = (C, H, W), levels, normalize
        self.distortion = distortion(levels)
        self.explicit = hasattr(self.distortion, "log_prob")  # whether there is a p(x | codes)
        self.encoder = encoder(self.shape, dim)
        self.quantizer = quantizer(dim)
        self.decoder = decoder(dim, (self.distortion.features(self.shape), H, W))
        self.register_buffer("spread", torch.ones(()))
        with torch.no_grad():
            _, _, h, w = self.encoder(torch.zeros(2, C, H, W)).shape  # GroupNorm takes no single number
        self.latent = Space((self.quantizer.depth, h, w), self.quantizer.levels)
        self.vectors = Space((dim, h, w))  # that are quantized

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may wrap: the blocks of the decoder, called one after the other."""
        return list(getattr(self.decoder, "blocks", [self.decoder]))

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The distortion, the quantizer's terms with their weights, and their sum; y is not used."""
        parameters, _, terms = self.through(x)
        reconstruction = self.reconstruction(parameters, x)
        return {"loss": sum(terms.values(), reconstruction), "reconstruction": reconstruction, **terms}

    def through(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The decoder's output (B, F, H, W), the codes on the way, and the quantizer's terms."""
        z_q, codes, terms = self.quantizer(self.encoder(self.scaled(x)))
        return self.decoder(z_q), codes, terms

    def reconstruction(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The distortion of images (B, C, H, W) by a decoder's output: a mean over all elements."""
        if self.explicit:
            return -self.distortion.log_prob(parameters, x).mean() / x[0].numel()
        return self.distortion.distance(parameters, x) / self.spread

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes: (B, C, H, W) -> (B, L, H', W'), integers."""
        codes = self.quantizer(self.encoder(self.scaled(x)))[1]
        return codes.view(len(x), *self.latent.shape)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most probable image: codes (B, L, H', W') -> (B, C, H, W), integers."""
        return self.distortion.mode(self.decoded(z))

    @torch.no_grad()
    def unquantized(self, x: Tensor) -> Tensor:
        """The vectors that are quantized: (B, C, H, W) -> (B, D, H', W')."""
        return self.encoder(self.scaled(x))

    @torch.no_grad()
    def picture(self, z: Tensor) -> Tensor:
        """The most probable image of vectors, which are quantized first: (B, D, H', W') -> (B, C, H, W), integers."""
        z_q = self.quantizer(z.to(next(self.decoder.parameters()).dtype))[0]
        return self.distortion.mode(self.decoder(z_q))

    def decoded(self, z: Tensor) -> Tensor:
        """The decoder's output for codes: (B, L, H', W') -> (B, F, H, W)."""
        z_q = self.quantizer.decode(z if self.quantizer.depth > 1 else z.squeeze(1))
        return self.decoder(z_q.to(next(self.decoder.parameters()).dtype))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of an image after its codes: (B, C, H, W) -> (B, C, H, W), integers."""
        return self.decode(self.encode(x))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | codes) in nats, (B,). ValueError where the distortion is no likelihood."""
        if not self.explicit:
            name = type(self.distortion).__name__
            raise ValueError(
                f"distortion={name} is no likelihood; try one of zoo.nn, as DiscretizedLogisticMixture"
            )
        return self.distortion.log_prob(self.decoded(z), x)

    @torch.no_grad()
    def prepare(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """The spread of the data, from 10,000 examples, and what the quantizer begins with."""
        training = self.training
        self.eval()
        images, rows, count, wanted = [], [], 0, 0
        for batch in batches:
            x = batch["x"]
            if count < ENOUGH:
                images.append(x)
                count += len(x)
            if wanted < self.quantizer.wants:
                rows.append(flat(self.encoder(self.scaled(x))))
                wanted += len(rows[-1])
            if count >= ENOUGH and wanted >= self.quantizer.wants:
                break
        if rows:
            self.quantizer.prepare(torch.cat(rows))
        if self.normalize and not self.explicit:
            x = torch.cat(images)
            grey = self.scaled(x).mean().expand(x.shape)
            self.spread.copy_(self.distortion.distance(grey, x).clamp(min=1e-8))
        self.train(training)

    def at(self, step: int) -> None:
        """The number of optimizer steps done."""
        self.quantizer.at(step)

    @torch.no_grad()
    def statistics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over the batch of what tells images from their reconstructions, and of the codes that occur."""
        codes = self.encode(x)
        return {
            **fidelity.sums(x, self.decode(codes), self.levels),
            **self.quantizer.statistics(codes if self.quantizer.depth > 1 else codes.squeeze(1)),
        }

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Errors of the reconstructions as images of integers (zoo.nn.fidelity), and the use of the codes."""
        return fidelity.means(sums) | self.quantizer.summarize({"codes": sums["codes"]})

    def unwell(self, told: dict[str, float]) -> list[str]:
        """What is bad about the use of the codes, in words."""
        return self.quantizer.unwell(told)

    def scaled(self, x: Tensor) -> Tensor:
        """x as the encoder sees it, in [-1, 1]."""
        return scaled(x, self.levels).to(next(self.parameters()).dtype)
