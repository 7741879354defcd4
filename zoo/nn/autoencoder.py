"""Convolutional networks from an image to a field of vectors, and back.

x (B, C, H, W) is an image, z (B, D, H / 2^n, W / 2^n) a field; n = len(widths) is how often the sides are halved.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from zoo.nn.attention import Attention
from zoo.nn.upsampling import Nearest
from zoo.types import Space, Unfit


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalization over 32 groups of channels, fewer where there are too few: Wu and He 2018."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with two convolutions of 3 x 3: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            norm(channels),
            act(),
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
            act(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class FieldAttention(nn.Module):
    """x + attention(norm(x)), each place looking at all others: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.mix = Attention(channels, 1, causal=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).mT  # (B, H W, C)
        return x + self.mix(tokens).mT.unflatten(2, x.shape[2:])


class FieldEncoder(nn.Module):
    """An image to a field of vectors: (B, C, H, W) -> (B, D, H / 2^n, W / 2^n).

    Each scale is a convolution with a stride of 2 and `depth` residual blocks. Esser et al. 2020, who have blocks
    at the full size too; van den Oord et al. 2017 have them at the lowest only.

    enter, leave    the image's shape (C, H, W), and D
    widths          channels after each halving
    depth           residual blocks at each scale: a number, or a list, as [0, 2]
    attention       whether the lowest scale ends with an attention between two residual blocks
    norm            norm(channels); torch.nn.Identity for none
    blocks          what is between the first and the last layers, for gradient checkpointing

    Unfit if an image cannot be halved so often without a rest.
    """

    def __init__(
        self,
        enter: Sequence[int],
        leave: int,
        *,
        widths: Sequence[int] = (64, 128),
        depth: int | Sequence[int] = 2,
        attention: bool = False,
        norm: Callable[[int], nn.Module] = group_norm,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        lowest(enter, len(widths))
        channels = [enter[0], *widths]
        self.blocks = nn.ModuleList()
        for a, b, n in zip(channels, widths, depths(depth, widths), strict=False):
            self.blocks.append(nn.Conv2d(a, b, 4, stride=2, padding=1))
            self.blocks.extend(ResidualBlock(b, norm, activation) for _ in range(n))
        self.blocks.extend(middle(widths[-1], norm, activation) if attention else [])
        self.output = nn.Sequential(
            norm(widths[-1]), activation(), nn.Conv2d(widths[-1], features(leave), 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.output(x)


class FieldDecoder(nn.Module):
    """The mirror of FieldEncoder: (B, D, H / 2^n, W / 2^n) -> (B, C, H, W).

    enter, leave    D, and the image's shape (C, H, W)
    widths, depth, attention, norm, activation   as the encoder's, from the image inwards
    upsample        upsample(enter, leave) doubles the sides: zoo.nn.Nearest, Bilinear, Transposed or Shuffle
    blocks          all but the last layers, called one after the other, for gradient checkpointing
    output          its last layer is the convolution to C channels, `output[-1]`

    Unfit if an image cannot be halved so often without a rest.
    """

    def __init__(
        self,
        enter: int,
        leave: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128),
        depth: int | Sequence[int] = 2,
        attention: bool = False,
        norm: Callable[[int], nn.Module] = group_norm,
        activation: Callable[[], nn.Module] = nn.SiLU,
        upsample: Callable[[int, int], nn.Module] = Nearest,
    ) -> None:
        super().__init__()
        lowest(leave, len(widths))
        self.blocks = nn.ModuleList([nn.Conv2d(features(enter), widths[-1], 3, padding=1)])
        self.blocks.extend(middle(widths[-1], norm, activation) if attention else [])
        inwards = [widths[0], *widths]  # the full size has as many channels as the scale below it
        for index, n in reversed(list(enumerate(depths(depth, widths)))):
            self.blocks.extend(ResidualBlock(widths[index], norm, activation) for _ in range(n))
            self.blocks.append(upsample(widths[index], inwards[index]))
        self.output = nn.Sequential(
            norm(widths[0]), activation(), nn.Conv2d(widths[0], leave[0], 3, padding=1)
        )

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = block(z)
        return self.output(z)


def middle(
    channels: int, norm: Callable[[int], nn.Module], activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """An attention between two residual blocks."""
    return [
        ResidualBlock(channels, norm, activation),
        FieldAttention(channels, norm),
        ResidualBlock(channels, norm, activation),
    ]


def features(of: int | Sequence[int]) -> int:
    """The features of a field's vectors. ValueError for a shape, which is asked for where an image has one vector."""
    if not isinstance(of, int):
        raise ValueError(
            "this encoder or decoder is of a field of vectors, and the model's latent is one vector for each image; "
            "take encoder=mlp or conv, and the decoder of the same name"
        )
    return of


def depths(depth: int | Sequence[int], widths: Sequence[int]) -> list[int]:
    """Residual blocks at each scale. ValueError for a list of another length than the widths."""
    each = [depth] * len(widths) if isinstance(depth, int) else list(depth)
    if len(each) != len(widths):
        raise ValueError(f"depth={each} is of {len(each)} scales, widths={list(widths)} of {len(widths)}")
    return each


def lowest(shape: Sequence[int], halvings: int) -> tuple[int, int]:
    """(H, W) after so many halvings. Unfit if they are no multiples of 2^halvings."""
    whole = 2**halvings

    def fits(space: Space) -> bool:
        return len(space.shape) == 3 and all(side and side % whole == 0 for side in space.shape[1:])

    if not fits(Space(tuple(shape))):
        raise Unfit(
            f"shape={list(shape)} is halved {halvings} times, so it must be an image (C, H, W) whose sides are "
            f"multiples of {whole}; take fewer widths.",
            fits,
        )
    return shape[1] // whole, shape[2] // whole
