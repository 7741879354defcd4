"""The position encodings in networks small enough for tests."""

from functools import partial

import torch
from torch import Tensor, nn

from zoo.nn import (
    KERPLE,
    ALiBi,
    Attention,
    Backbone,
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
    Sinusoidal2D,
    SinusoidalPosition,
    T5Bias,
    TransformerXL,
    XPos,
)

ENCODINGS = {
    "none": NoPosition,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "sinusoidal2d": Sinusoidal2D,
    "multiplicative": MultiplicativePosition,
    "recurrent": partial(RecurrentPosition, delta=0.3),
    "conv": ConvPosition,
    "rope": Rotary,
    "rope, longer": partial(Rotary, interpolation=2.0, ntk=4.0),
    "rope2d": Rotary2D,
    "xpos": partial(XPos, scale=10.0),
    "alibi": ALiBi,
    "kerple": KERPLE,
    "kerple, power": partial(KERPLE, power=True),
    "t5": partial(T5Bias, buckets=8, max_distance=12),
    "transformer_xl": TransformerXL,
    "deberta": partial(DeBERTa, span=4),
    "shaw": partial(Shaw, clip=3),
}
RELATIVE = [
    "rope",
    "rope, longer",
    "xpos",
    "alibi",
    "kerple",
    "kerple, power",
    "t5",
    "transformer_xl",
    "deberta",
    "shaw",
]
BOTH_SIDES = [name for name in ENCODINGS if name not in ("none", "xpos")]
T, WIDTH = 20, 4
grouped = partial(Attention, heads=4, kv_heads=2)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def backbone(name: str, *, causal: bool = True, mixer: object = grouped, depth: int = 2) -> Backbone:
    torch.manual_seed(0)
    network = Backbone(
        16, depth, mixer, position=ENCODINGS[name], causal=causal, grid=(T // WIDTH, WIDTH)
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def attention(position: Position, *, causal: bool = False) -> Attention:
    torch.manual_seed(0)
    module = Attention(16, 4, causal=causal, position=position).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def heads_of(module: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (B, H, T, d), before any position."""
    return module.qkv(x).unflatten(-1, (3, 4, 4)).movedim(2, 0).transpose(2, 3).unbind()
