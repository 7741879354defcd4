"""Dense networks between two shapes."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Multilayer perceptron from one shape to another: linear maps with an activation after all but the last.

    (B, *enter) -> (B, *leave). `MLP((1, 28, 28), (80,))` is an encoder, `MLP((40,), (1, 28, 28))` a decoder.

    hidden      widths of the hidden layers, in the order in which they are passed; [] leaves one linear map
    activation  makes the activation of each hidden layer: torch.nn.ReLU, torch.nn.Tanh ...
    blocks      the hidden layers, for gradient checkpointing; `output` is the last linear map

    ValueError for a number of features, by which a field of vectors is asked for.
    """

    def __init__(
        self,
        enter: Sequence[int],
        leave: Sequence[int],
        *,
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        enter, self.leave = whole(enter), whole(leave)
        widths = [math.prod(enter), *hidden]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), activation()) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], math.prod(leave))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.output(x).unflatten(1, self.leave)


def whole(shape: Sequence[int] | int) -> tuple[int, ...]:
    """The shape of all that a dense map takes or makes. ValueError for a number, the features of a field's vectors."""
    if isinstance(shape, int):
        raise ValueError(
            "this encoder or decoder is of one vector for each image, and the model's latent is a field of vectors; "
            "take encoder=residual or attentive, and the decoder of the same name"
        )
    return tuple(shape)
