"""Distributions made of networks: loss, samples, likelihood; one paper, one file."""

from zoo.models.autoregressive import Autoregressive
from zoo.models.classifier import SequenceClassifier
from zoo.models.masked import Masked
from zoo.models.seq2seq import Seq2Seq
from zoo.models.vae import VAE

__all__ = [
    "VAE",
    "Autoregressive",
    "Masked",
    "Seq2Seq",
    "SequenceClassifier",
]
