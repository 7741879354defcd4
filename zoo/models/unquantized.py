"""A codec of codes as one of real vectors: those that its quantizer is given. Rombach et al. 2021 (2112.10752), 3.1.

x is an image of integers (B, C, H, W), z the field of its encoder's vectors (B, D, H', W').
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.types import Space


class Unquantized(nn.Module):
    """A VQ-VAE or a VQGAN whose quantizer belongs to the decoder: encode ends before it, decode begins with it.

    ValueError for a codec without such vectors (`unquantized`, `picture`, `vectors`).
    """

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        space: Space | None = getattr(codec, "vectors", None)
        if space is None:
            raise ValueError(
                f"{type(codec).__name__} has codes, and no vectors before them, for a model of real latents; take a "
                "vqvae or a vqgan, or a first stage whose latents are real: kl_autoencoder or vae"
            )
        self.codec = codec
        self.shape, self.levels, self.latent = codec.shape, codec.levels, space
        if hasattr(codec, "origin"):
            self.origin = f"{codec.origin}, before quantization"

    @property
    def protocol(self) -> dict[str, Any]:
        """What the codec says of itself."""
        return dict(getattr(self.codec, "protocol", {}))

    def encode(self, x: Tensor) -> Tensor:
        """The vectors before they are quantized: (B, C, H, W) -> (B, D, H', W')."""
        return self.codec.unquantized(x)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The image of vectors, which are quantized first: (B, D, H', W') -> (B, C, H, W), integers."""
        return self.codec.picture(z)
