"""Convolutional networks from an image to a vector and back.

Each stage halves (or doubles) the sides with a kernel of 4 and a stride of 2: a kernel that is a multiple of
the stride leaves no checkerboard. A side n becomes n // 2; on the way back an odd side gets its last row.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.mlp import whole
from zoo.nn.upsampling import Transposed
from zoo.types import Space, Unfit


def sides(shape: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """(height, width) before each halving and after the last: (1, 28, 28) and 3 stages give 28, 14, 7, 3.

    Unfit if the shape is not an image (C, H, W) or too small to be halved so often.
    """

    def fits(space: Space) -> bool:
        return len(space.shape) == 3 and min(space.shape[1:]) >= 2**stages

    if not fits(Space(tuple(shape))):
        raise Unfit(
            f"shape={list(shape)} cannot be halved {stages} times: convolutional networks of {stages} widths "
            f"need images (C, H, W) with sides of at least {2**stages}; take fewer widths.",
            fits,
        )
    return [(shape[1] >> stage, shape[2] >> stage) for stage in range(stages + 1)]


class ConvEncoder(nn.Module):
    """Strided convolutions from an image to a vector: (B, C, H, W) -> (B, *leave).

    widths      channels after each halving, from the image inwards
    activation  makes the activation of each stage
    blocks      the stages, for gradient checkpointing; `output` is the linear map at the end

    Unfit if an image is too small for so many stages.
    """

    def __init__(
        self,
        enter: Sequence[int],
        leave: Sequence[int],
        *,
        widths: Sequence[int] = (32, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        H, W = sides(enter, len(widths))[-1]
        channels = [enter[0], *widths]
        self.leave = whole(leave)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), activation())
            for a, b in pairwise(channels)
        )
        self.output = nn.Linear(channels[-1] * H * W, math.prod(leave))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.output(x.flatten(1)).unflatten(1, self.leave)


class ConvDecoder(nn.Module):
    """The mirror of ConvEncoder, from a vector to an image: (B, *enter) -> (B, *leave), leave = (C, H, W).

    widths      channels before each doubling, from the image inwards: the same list as the encoder's
    activation  makes the activation of each stage
    upsample    upsample(enter, leave) doubles the sides: zoo.nn.Transposed, Nearest, Bilinear or Shuffle
    blocks      the stages but the last, for gradient checkpointing; `output` is the last doubling

    Unfit if an image is too small for so many stages.
    """

    def __init__(
        self,
        enter: Sequence[int],
        leave: Sequence[int],
        *,
        widths: Sequence[int] = (32, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        upsample: Callable[[int, int], nn.Module] = Transposed,
    ) -> None:
        super().__init__()
        *self.sizes, (H, W) = sides(leave, len(widths))
        channels = [*reversed(widths), leave[0]]
        *doublings, self.output = [upsample(a, b) for a, b in pairwise(channels)]
        start = nn.Linear(math.prod(whole(enter)), channels[0] * H * W)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Flatten(), start, nn.Unflatten(1, (channels[0], H, W)), activation())]
            + [nn.Sequential(doubling, activation()) for doubling in doublings]
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *stages = self.blocks
        x = first(x)
        for stage, (H, W) in zip([*stages, self.output], reversed(self.sizes), strict=True):
            x = stage(x)
            if x.shape[2:] != (H, W):  # an odd side, halved downwards: its last row is there twice
                x = F.pad(x, (0, W - x.shape[3], 0, H - x.shape[2]), mode="replicate")
        return x
