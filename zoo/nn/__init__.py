"""Networks: tensors to tensors."""

from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone, Block
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.nn.convnet import ConvDecoder, ConvEncoder
from zoo.nn.feedforward import FeedForward
from zoo.nn.likelihood import Bernoulli, Categorical, DiscretizedLogisticMixture
from zoo.nn.mlp import MLP
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

__all__ = [
    "KERPLE",
    "MLP",
    "ALiBi",
    "Attention",
    "Backbone",
    "Bernoulli",
    "Block",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "ConvPosition",
    "DeBERTa",
    "DiscretizedLogisticMixture",
    "FeedForward",
    "LearnedPosition",
    "MultiplicativePosition",
    "NoPosition",
    "Position",
    "RecurrentPosition",
    "Rotary",
    "Rotary2D",
    "Shaw",
    "SinusoidalPosition",
    "T5Bias",
    "TransformerXL",
    "XPos",
    "auto",
    "checkpoint_blocks",
]
