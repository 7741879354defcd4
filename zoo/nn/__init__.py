"""Networks: tensors to tensors."""

from zoo.nn.attention import Attention
from zoo.nn.backbone import Backbone, Block
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.nn.convnet import ConvDecoder, ConvEncoder
from zoo.nn.feedforward import FeedForward
from zoo.nn.likelihood import Bernoulli, Categorical, DiscretizedLogisticMixture
from zoo.nn.mlp import MLP
from zoo.nn.position import NoPosition, Position, Rotary, auto

__all__ = [
    "MLP",
    "Attention",
    "Backbone",
    "Bernoulli",
    "Block",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogisticMixture",
    "FeedForward",
    "NoPosition",
    "Position",
    "Rotary",
    "auto",
    "checkpoint_blocks",
]
