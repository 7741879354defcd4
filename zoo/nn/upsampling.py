"""Four ways to double the sides of an image: (B, C, H, W) -> (B, C', 2 H, 2 W). Each has its convolution's `bias`."""

from torch import Tensor, nn


class Nearest(nn.Sequential):
    """Each pixel four times, then a convolution: no checkerboard. Odena et al. 2016."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2), nn.Conv2d(enter, leave, 3, padding=1))

    @property
    def bias(self) -> Tensor:
        """(C',)"""
        return self[1].bias


class Bilinear(nn.Module):
    """Between neighbouring pixels, then a convolution."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.conv = nn.Conv2d(enter, leave, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))

    @property
    def bias(self) -> Tensor:
        """(C',)"""
        return self.conv.bias


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution; its kernel of 4 is a multiple of its stride of 2, which leaves no checkerboard."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__(enter, leave, 4, stride=2, padding=1)


class Shuffle(nn.Sequential):
    """A convolution to four times the channels, which become pixels: Shi et al. 2016."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__(nn.Conv2d(enter, 4 * leave, 3, padding=1), nn.PixelShuffle(2))

    @property
    def bias(self) -> Tensor:
        """(4 C',), four for each channel."""
        return self[0].bias
