"""Distributions made of networks: loss, samples, likelihood; one paper, one file."""

from zoo.models.autoregressive import Autoregressive
from zoo.models.categorical_vae import CategoricalVAE
from zoo.models.classifier import SequenceClassifier
from zoo.models.cnf import CNF
from zoo.models.diffusion import Diffusion
from zoo.models.f_vae import FVAE
from zoo.models.flow import Flow
from zoo.models.fvsbn import FVSBN
from zoo.models.gated_pixelcnn import GatedPixelCNN
from zoo.models.glow import Glow
from zoo.models.image_classifier import ImageClassifier
from zoo.models.kl_autoencoder import KLAutoencoder
from zoo.models.latent import Latent
from zoo.models.made import MADE
from zoo.models.masked import Masked
from zoo.models.nade import NADE
from zoo.models.nice import NICE
from zoo.models.pixelcnn import PixelCNN
from zoo.models.pixelcnnpp import PixelCNNPP
from zoo.models.realnvp import RealNVP
from zoo.models.seq2seq import Seq2Seq
from zoo.models.vae import VAE
from zoo.models.vqgan import VQGAN
from zoo.models.vqvae import VQVAE

__all__ = [
    "CNF",
    "FVAE",
    "FVSBN",
    "MADE",
    "NADE",
    "NICE",
    "VAE",
    "VQGAN",
    "VQVAE",
    "Autoregressive",
    "CategoricalVAE",
    "Diffusion",
    "Flow",
    "GatedPixelCNN",
    "Glow",
    "ImageClassifier",
    "KLAutoencoder",
    "Latent",
    "Masked",
    "PixelCNN",
    "PixelCNNPP",
    "RealNVP",
    "Seq2Seq",
    "SequenceClassifier",
]
