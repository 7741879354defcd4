"""Gated PixelCNN: van den Oord, Kalchbrenner, Vinyals et al. 2016, Conditional Image Generation with PixelCNN Decoders.

x is an image of integers, or of codes, (B, C, H, W), read by row, column and channel, T elements; y (B,) are labels.
v are features that know rows above, h those that know what is to the left too. Features of h belong to channels as in
zoo.nn.masked_conv; those of v know all channels of the rows above.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible
from zoo.models.pixels import Pixels, by_element, by_pixel
from zoo.nn.likelihood import Likelihood
from zoo.nn.masked_conv import Lines, WindowConv, channels_of, masked_conv, reach_of


class GatedPixelCNN(FullyVisible):
    """A vertical and a horizontal stack of gated convolutions, which leave no blind spot.

    gate(a, b) = tanh(a) sigmoid(b): eq. 2; with labels, a and b have an embedding of y added in each layer: eq. 4.

    classes      how many there are in y, if any
    conditional  whether to model p(x | y)
    dim          features of each stack
    depth        layers
    first        side of the first window, odd and at least 3
    kernel       side of the others, as well
    head         features of the layer before the output
    embed        size of a vector for each level, for codes, whose numbers say nothing; None: levels are amounts
    likelihood   as zoo.models.fully_visible has it, which also says what is refused

    The defaults are those for ImageNet.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        dim: int = 384,
        depth: int = 20,
        first: int = 7,
        kernel: int = 3,
        head: int = 1024,
        embed: int | None = None,
        likelihood: Callable[[int], Likelihood] | None = None,
    ) -> None:
        super().__init__(shape, levels, likelihood=likelihood, classes=classes, conditional=conditional)
        C = self.shape[0]
        self.pixels = Pixels(levels, embed)
        enter = channels_of((embed or 1) * C, C)
        inside, last = channels_of(dim, C), channels_of(head, C)
        leave = channels_of(C * self.likelihood.features((1, 1, 1)), C)
        known = classes if conditional else None
        begin = GatedLayer(enter, inside, first, known, first=True)
        self.blocks = nn.ModuleList(
            [begin, *(GatedLayer(inside, inside, kernel, known) for _ in range(depth - 1))]
        )
        self.head = nn.ModuleList([masked_conv(inside, last), masked_conv(last, leave)])

    @property
    def first(self) -> WindowConv:
        """The convolution that sees the pixels themselves."""
        return self.blocks[0].horizontal

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What is said of each element: (B, C, H, W) -> (B, F, T, 1)."""
        h = self.inputs(x)
        both = torch.cat([F.pad(h, (0, 0, 1, 0))[:, :, :-1], h], 1)  # a row lower, v knows only what is above
        y = self.given(y)
        for block in self.blocks:
            both = block(both, y)
        return by_element(self._told(both.chunk(2, 1)[1]), self.shape[0])

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each pixel computed once."""
        by_pixel(self, tokens, P, y, temperature)

    def step(self, x: Tensor, r: int, c: int, y: Tensor | None, lines: Lines) -> Tensor:
        """What is said of pixel (r, c) of x (n, C, H, W), all before it having been seen: (n, F C, 1, 1).

        At the first pixel of a row, v is computed for the whole of it.
        """
        if c == 0:
            above = self.inputs(x[:, :, max(r - 1, 0) : max(r, 1)])
            v = above if r else torch.zeros_like(above)
            lines.above = []
            for block in self.blocks:
                told = block.rows(v, y, lines)
                lines.above.append(block.link(told))
                v = gate(told)
        h = self.inputs(x[:, :, r : r + 1, c : c + 1])
        for block, link in zip(self.blocks, lines.above):
            h = block.along(h, link[:, :, :, c : c + 1], y, lines)
        return self._told(h, lines)

    def inputs(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) as what convolutions take."""
        return self.pixels(x, self.first.weight.dtype)

    def _told(self, h: Tensor, lines: Lines | None = None) -> Tensor:
        for layer in self.head:
            h = layer(F.relu(h), lines)
        return h


class GatedLayer(nn.Module):
    """One layer of both stacks, figure 2 of the paper: v goes on into v and into h, h into h only.

    (B, 2 dim, H, W), v and then h, y -> the same; in the first layer from the pixels themselves. There v reaches one
    row less, for its rows begin above, h sees no pixel's own channel, and nothing is added to what comes in.

    enter, leave   the channels that features of h belong to
    """

    def __init__(
        self, enter: Tensor, leave: Tensor, kernel: int, classes: int | None, *, first: bool = False
    ) -> None:
        super().__init__()
        reach, both = reach_of(kernel), leave.repeat(2)
        self.vertical = WindowConv(len(enter), len(both), up=reach - first, left=reach, right=reach)
        self.horizontal = masked_conv(enter, both, left=reach, own=not first)
        self.link = WindowConv(len(both), len(both))
        self.out = masked_conv(leave, leave)
        self.residual = not first
        self.label = nn.Embedding(classes, 2 * len(both)) if classes else None

    def forward(self, both: Tensor, y: Tensor | None = None) -> Tensor:
        v, h = both.chunk(2, 1)
        told = self.rows(v, y)
        return torch.cat([gate(told), self.along(h, self.link(told), y)], 1)

    def rows(self, v: Tensor, y: Tensor | None, lines: Lines | None = None) -> Tensor:
        """What v becomes, before its gate, for whole rows: (B, 2 dim, H, W)."""
        return self.vertical(v, lines) + self._of(y, 0)

    def along(self, h: Tensor, link: Tensor, y: Tensor | None, lines: Lines | None = None) -> Tensor:
        """What h becomes, given what v says of the same places."""
        told = gate(self.horizontal(h, lines) + link + self._of(y, 1))
        told = self.out(told, lines)
        return h + told if self.residual else told

    def _of(self, y: Tensor | None, stack: int) -> Tensor | float:
        """What a label adds in a stack: (B, 2 dim, 1, 1)."""
        if self.label is None:
            return 0.0
        return self.label(y).chunk(2, 1)[stack][:, :, None, None]


def gate(x: Tensor) -> Tensor:
    """tanh(a) sigmoid(b), x = (a, b) by features."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()
