"""Networks: tensors to tensors."""

from zoo.nn.absolute_position import (
    ConvPosition,
    LearnedPosition,
    MultiplicativePosition,
    RecurrentPosition,
    SinusoidalPosition,
)
from zoo.nn.adversarial import Hinge, NonSaturating, PatchCritic
from zoo.nn.attention import Attention
from zoo.nn.autoencoder import FieldDecoder, FieldEncoder, group_norm
from zoo.nn.backbone import Backbone
from zoo.nn.bases import ByClass, Gaussian, Logistic
from zoo.nn.bidirectional import Bidirectional
from zoo.nn.bijections import Chain, Flatten, Split, Squeeze
from zoo.nn.block import Block
from zoo.nn.bounds import DoublyReparameterized, ImportanceWeighted
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.nn.codebook import Codebook, EMACodebook, LinearCodebook
from zoo.nn.conditions import CaptionCondition, ClassCondition, Condition, no_condition
from zoo.nn.convnet import ConvDecoder, ConvEncoder
from zoo.nn.coupling_nets import GlowNet, ResidualNet, ZeroConv
from zoo.nn.couplings import Additive, Affine, Coupling, FreeScale, SigmoidScale, Spline, TanhScale
from zoo.nn.cross import CrossAttention, CrossBlock
from zoo.nn.delta import GatedDelta
from zoo.nn.dequantization import UniformDequantization, VariationalDequantization
from zoo.nn.distortion import Absolute, Squared
from zoo.nn.dit import DiT
from zoo.nn.estimators import GumbelSoftmax, ScoreFunction
from zoo.nn.feedforward import FeedForward, GatedFeedForward, SquaredReLU, no_mlp
from zoo.nn.flash import MixedChunk
from zoo.nn.fsq import FSQ, LFQ
from zoo.nn.gau import GatedAttention
from zoo.nn.gaussian_likelihood import DiscretizedGaussian
from zoo.nn.grid_position import Sinusoidal2D
from zoo.nn.gumbel_codes import GumbelCodes
from zoo.nn.head import Logistics, Logits
from zoo.nn.hippo import s4d_inv, s4d_legs, s4d_lin
from zoo.nn.likelihood import Bernoulli, Categorical, DiscretizedLogisticMixture, likelihood_for
from zoo.nn.linear_attention import EfficientAttention, LinearAttention, elu1, exp, relu, taylor
from zoo.nn.lru import LRU
from zoo.nn.mamba import Mamba
from zoo.nn.mamba2 import Mamba2
from zoo.nn.masked_conv import Lines, WindowConv, masked_conv
from zoo.nn.masked_linear import MaskedLinear
from zoo.nn.masks import Checkerboard, Given, Half, OddEven
from zoo.nn.mixing import LU, Dense, Invertible1x1, NormedInvertible1x1
from zoo.nn.mlp import MLP
from zoo.nn.mmdit import MMDiT
from zoo.nn.nystrom import Nystrom
from zoo.nn.paths import CosineBetas, EDMPath, LinearBetas, Straight, VariancePreserving
from zoo.nn.perceptual import LPIPS, FeatureNet, no_perceptual
from zoo.nn.performer import Performer
from zoo.nn.position import NoPosition, Position, auto
from zoo.nn.preprocessing import Logit, Rescale, Whitening
from zoo.nn.priors import GaussianMixture, StandardNormal, VampPrior
from zoo.nn.quantizers import Quantizer, VectorQuantizer, rotated, straight_through
from zoo.nn.relative_position import KERPLE, ALiBi, DeBERTa, Shaw, T5Bias, TransformerXL
from zoo.nn.residual_vq import ResidualVQ
from zoo.nn.retention import Retention
from zoo.nn.rnn import GRU, LSTM
from zoo.nn.rotary_position import Rotary, Rotary2D, XPos
from zoo.nn.rwkv import RWKV, RWKVFeedForward
from zoo.nn.s4 import S4
from zoo.nn.s4d import S4D
from zoo.nn.scalings import ActNorm, RunningNorm, Scaling
from zoo.nn.sparse import Strided
from zoo.nn.splines import rational_quadratic
from zoo.nn.stochastic_layer import StochasticLayer
from zoo.nn.targets import Data, EDMWeight, MinSNR, Noise, PlainWeight, Preconditioned, Score, Velocity
from zoo.nn.time_embedding import TimeEmbedding
from zoo.nn.time_mlp import TimeMLP
from zoo.nn.times import At, LogitNormal, LogNormal, Uniform
from zoo.nn.transnormer import TransNormer
from zoo.nn.transport import EightGaussians, Independent, MinibatchOT
from zoo.nn.unet import UNet
from zoo.nn.upsampling import Bilinear, Nearest, Shuffle, Transposed
from zoo.nn.window import SlidingWindow

__all__ = [
    "FSQ",
    "GRU",
    "KERPLE",
    "LFQ",
    "LPIPS",
    "LRU",
    "LSTM",
    "LU",
    "MLP",
    "RWKV",
    "S4",
    "S4D",
    "ALiBi",
    "Absolute",
    "ActNorm",
    "Additive",
    "Affine",
    "At",
    "Attention",
    "Backbone",
    "Bernoulli",
    "Bidirectional",
    "Bilinear",
    "Block",
    "ByClass",
    "CaptionCondition",
    "Categorical",
    "Chain",
    "Checkerboard",
    "ClassCondition",
    "Codebook",
    "Condition",
    "ConvDecoder",
    "ConvEncoder",
    "ConvPosition",
    "CosineBetas",
    "Coupling",
    "CrossAttention",
    "CrossBlock",
    "Data",
    "DeBERTa",
    "Dense",
    "DiT",
    "DiscretizedGaussian",
    "DiscretizedLogisticMixture",
    "DoublyReparameterized",
    "EDMPath",
    "EDMWeight",
    "EMACodebook",
    "EfficientAttention",
    "EightGaussians",
    "FeatureNet",
    "FeedForward",
    "FieldDecoder",
    "FieldEncoder",
    "Flatten",
    "FreeScale",
    "GatedAttention",
    "GatedDelta",
    "GatedFeedForward",
    "Gaussian",
    "GaussianMixture",
    "Given",
    "GlowNet",
    "GumbelCodes",
    "GumbelSoftmax",
    "Half",
    "Hinge",
    "ImportanceWeighted",
    "Independent",
    "Invertible1x1",
    "LearnedPosition",
    "LinearAttention",
    "LinearBetas",
    "LinearCodebook",
    "Lines",
    "LogNormal",
    "Logistic",
    "Logistics",
    "Logit",
    "LogitNormal",
    "Logits",
    "MMDiT",
    "Mamba",
    "Mamba2",
    "MaskedLinear",
    "MinSNR",
    "MinibatchOT",
    "MixedChunk",
    "MultiplicativePosition",
    "Nearest",
    "NoPosition",
    "Noise",
    "NonSaturating",
    "NormedInvertible1x1",
    "Nystrom",
    "OddEven",
    "PatchCritic",
    "Performer",
    "PlainWeight",
    "Position",
    "Preconditioned",
    "Quantizer",
    "RWKVFeedForward",
    "RecurrentPosition",
    "Rescale",
    "ResidualNet",
    "ResidualVQ",
    "Retention",
    "Rotary",
    "Rotary2D",
    "RunningNorm",
    "Scaling",
    "Score",
    "ScoreFunction",
    "Shaw",
    "Shuffle",
    "SigmoidScale",
    "Sinusoidal2D",
    "SinusoidalPosition",
    "SlidingWindow",
    "Spline",
    "Split",
    "Squared",
    "SquaredReLU",
    "Squeeze",
    "StandardNormal",
    "StochasticLayer",
    "Straight",
    "Strided",
    "T5Bias",
    "TanhScale",
    "TimeEmbedding",
    "TimeMLP",
    "TransNormer",
    "TransformerXL",
    "Transposed",
    "UNet",
    "Uniform",
    "UniformDequantization",
    "VampPrior",
    "VariancePreserving",
    "VariationalDequantization",
    "VectorQuantizer",
    "Velocity",
    "Whitening",
    "WindowConv",
    "XPos",
    "ZeroConv",
    "auto",
    "checkpoint_blocks",
    "elu1",
    "exp",
    "group_norm",
    "likelihood_for",
    "masked_conv",
    "no_condition",
    "no_mlp",
    "no_perceptual",
    "rational_quadratic",
    "relu",
    "rotated",
    "s4d_inv",
    "s4d_legs",
    "s4d_lin",
    "straight_through",
    "taylor",
]
