"""Distributions made of networks: loss, samples, likelihood; one paper, one file."""

from zoo.models.autoregressive import Autoregressive
from zoo.models.vae import VAE

__all__ = [
    "VAE",
    "Autoregressive",
]
