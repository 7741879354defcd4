"""Networks: tensors to tensors."""

from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone, Block
from zoo.nn.bidirectional import Bidirectional
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.nn.convnet import ConvDecoder, ConvEncoder
from zoo.nn.cross import CrossAttention, CrossBlock
from zoo.nn.delta import GatedDelta
from zoo.nn.feedforward import FeedForward, GatedFeedForward, SquaredReLU, no_mlp
from zoo.nn.flash import MixedChunk
from zoo.nn.gau import GatedAttention
from zoo.nn.hippo import s4d_inv, s4d_legs, s4d_lin
from zoo.nn.likelihood import Bernoulli, Categorical, DiscretizedLogisticMixture
from zoo.nn.linear_attention import EfficientAttention, LinearAttention, elu1, exp, relu, taylor
from zoo.nn.lru import LRU
from zoo.nn.mamba import Mamba
from zoo.nn.mamba2 import Mamba2
from zoo.nn.mlp import MLP
from zoo.nn.nystrom import Nystrom
from zoo.nn.performer import Performer
from zoo.nn.position import (
    KERPLE,
    ALiBi,
    ConvPosition,
    DeBERTa,
    LearnedPosition,
    MultiplicativePosition,
    NoPosition,
    Position,
    RecurrentPosition,
    Rotary,
    Rotary2D,
    Shaw,
    SinusoidalPosition,
    T5Bias,
    TransformerXL,
    XPos,
    auto,
)
from zoo.nn.retention import Retention
from zoo.nn.rnn import GRU, LSTM
from zoo.nn.rwkv import RWKV, RWKVFeedForward
from zoo.nn.s4 import S4
from zoo.nn.s4d import S4D
from zoo.nn.sparse import Strided
from zoo.nn.transnormer import TransNormer
from zoo.nn.window import SlidingWindow

__all__ = [
    "GRU",
    "KERPLE",
    "LRU",
    "LSTM",
    "MLP",
    "RWKV",
    "S4",
    "S4D",
    "ALiBi",
    "Attention",
    "Backbone",
    "Bernoulli",
    "Bidirectional",
    "Block",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "ConvPosition",
    "CrossAttention",
    "CrossBlock",
    "DeBERTa",
    "DiscretizedLogisticMixture",
    "EfficientAttention",
    "FeedForward",
    "GatedAttention",
    "GatedDelta",
    "GatedFeedForward",
    "LearnedPosition",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "MixedChunk",
    "MultiplicativePosition",
    "NoPosition",
    "Nystrom",
    "Performer",
    "Position",
    "RWKVFeedForward",
    "RecurrentPosition",
    "Retention",
    "Rotary",
    "Rotary2D",
    "Shaw",
    "SinusoidalPosition",
    "SlidingWindow",
    "SquaredReLU",
    "Strided",
    "T5Bias",
    "TransNormer",
    "TransformerXL",
    "XPos",
    "auto",
    "checkpoint_blocks",
    "elu1",
    "exp",
    "no_mlp",
    "relu",
    "s4d_inv",
    "s4d_legs",
    "s4d_lin",
    "taylor",
]
