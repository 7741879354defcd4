"""PixelCNN: van den Oord, Kalchbrenner and Kavukcuoglu 2016, Pixel Recurrent Neural Networks.

x is an image of integers, or of codes, (B, C, H, W), read by row, column and channel, T elements. Features belong to
channels as in zoo.nn.masked_conv.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible
from zoo.models.pixels import Pixels, by_element, by_pixel
from zoo.nn.likelihood import Likelihood
from zoo.nn.masked_conv import Lines, channels_of, masked_conv, reach_of


class PixelCNN(FullyVisible):
    """Residual convolutions over what was read before: a mask A first, masks B after it.

    p(x_t | x_<t) = softmax(head(blocks(first(x)))_t). A stack of such windows has a blind spot: what lies above and
    far to the right is not seen, though it was read before (GatedPixelCNN has none).

    dim         h, the features inside of a block; 2 h around it
    depth       blocks
    first       side of the first window, odd and at least 3
    kernel      side of the others, as well
    head        features of the two layers before the output
    embed       size of a vector for each level, for codes, whose numbers say nothing; None: levels are amounts
    likelihood  as zoo.models.fully_visible has it, which also says what data are Unfit

    The defaults are those for CIFAR-10.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        dim: int = 128,
        depth: int = 15,
        first: int = 7,
        kernel: int = 3,
        head: int = 1024,
        embed: int | None = None,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__(shape, levels, likelihood=likelihood)
        C = self.shape[0]
        self.pixels = Pixels(levels, embed)
        enter = channels_of((embed or 1) * C, C)
        wide, last = channels_of(2 * dim, C), channels_of(head, C)
        leave = channels_of(C * self.likelihood.features((1, 1, 1)), C)
        reach = reach_of(first)
        self.first = masked_conv(enter, wide, up=reach, left=reach, right=reach, own=False)
        self.blocks = nn.ModuleList(Residual(dim, kernel, C) for _ in range(depth))
        self.head = nn.ModuleList(
            [masked_conv(wide, last), masked_conv(last, last), masked_conv(last, leave)]
        )

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What is said of each element: (B, C, H, W) -> (B, F, T, 1)."""
        return by_element(self._maps(self.inputs(x)), self.shape[0])

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each pixel computed once."""
        by_pixel(self, tokens, P, y, temperature)

    def step(self, x: Tensor, r: int, c: int, y: Tensor | None, lines: Lines) -> Tensor:
        """What is said of pixel (r, c) of x (n, C, H, W), all before it having been seen: (n, F C, 1, 1)."""
        return self._maps(self.inputs(x[:, :, r : r + 1, c : c + 1]), lines)

    def inputs(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) as what convolutions take."""
        return self.pixels(x, self.first.weight.dtype)

    def _maps(self, x: Tensor, lines: Lines | None = None) -> Tensor:
        """(B, C, H, W) -> (B, F C, H, W)."""
        h = self.first(x, lines)
        for block in self.blocks:
            h = block(h, lines)
        for layer in self.head:
            h = layer(F.relu(h), lines)
        return h


class Residual(nn.Module):
    """x + 1x1(relu(window(relu(1x1(relu(x)))))), 2 h features outside, h inside.  (B, 2 h, H, W), the same."""

    def __init__(self, dim: int, kernel: int, channels: int) -> None:
        super().__init__()
        wide, narrow = channels_of(2 * dim, channels), channels_of(dim, channels)
        reach = reach_of(kernel)
        self.layers = nn.ModuleList(
            [
                masked_conv(wide, narrow),
                masked_conv(narrow, narrow, up=reach, left=reach, right=reach),
                masked_conv(narrow, wide),
            ]
        )

    def forward(self, x: Tensor, lines: Lines | None = None) -> Tensor:
        h = x
        for layer in self.layers:
            h = layer(F.relu(h), lines)
        return x + h
