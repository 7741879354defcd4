"""PixelCNN++: Salimans, Karpathy, Chen and Kingma 2017.

x is an image of integers (B, C, H, W), seen as numbers in [-1, 1]; pixels are read by row and column, the channels of
a pixel are told together. y (B,) are labels.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible
from zoo.models.pixels import scaled
from zoo.nn.likelihood import DiscretizedLogisticMixture
from zoo.nn.masked_conv import WindowConv
from zoo.nn.shifted_conv import Scale

SCALES = 3


class PixelCNNPP(FullyVisible):
    """A mixture of discretized logistics for each pixel, from those before it, by a network of three scales.

    p(x) = prod over pixels of sum_k pi_k prod_c logistic_k(x_c | x_<c), whose means depend on the channels before by
    a linear map: zoo.nn.DiscretizedLogisticMixture. All that was read before is in sight.

    classes      how many there are in y, if any
    conditional  whether to model p(x | y)
    dim          features of each of the two streams
    depth        blocks of each scale, down and up
    components   of the mixture
    dropout      inside of blocks

    Unfit if the data are not images of integers with sides that can be halved twice; ValueError for
    conditional=True without classes.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        dim: int = 192,
        depth: int = 5,
        components: int = 10,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            shape,
            levels,
            likelihood=partial(DiscretizedLogisticMixture, components=components),
            classes=classes,
            conditional=conditional,
            sides=2 ** (SCALES - 1),
        )
        self.together = C = self.shape[0]
        self.above = WindowConv(C + 1, dim, up=1, left=1, right=1)
        self.beside = WindowConv(C + 1, dim, left=1, right=1)
        self.before = WindowConv(C + 1, dim, up=1)
        self.scales = Scale(dim, depth, SCALES, dropout, classes if conditional else None)
        self.output = WindowConv(dim, self.likelihood.features(self.shape))

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may recompute."""
        return self.scales.pairs()

    @property
    def runs(self) -> list[list[nn.Module]]:
        """Blocks that may be recomputed together: none, for what each says is heard by a later one too."""
        return [[block] for block in self.blocks]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What is said of each pixel: (B, C, H, W) -> (B, F, H W, 1)."""
        x = self.inputs(x)
        lower, right = F.pad(x, (0, 0, 1, 0))[:, :, :-1], F.pad(x, (1, 0))[..., :-1]
        both = torch.cat([self.above(lower), self.beside(lower) + self.before(right)], 1)
        h = self.scales(both, self.given(y)).chunk(2, 1)[1]
        return self.output(F.elu(h)).flatten(2).unsqueeze(-1)

    def inputs(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) in [-1, 1], and a channel of ones, which tells where the image is: (B, C + 1, H, W)."""
        x = 2 * scaled(x, self.levels, self.output.weight.dtype) - 1
        return torch.cat([x, torch.ones_like(x[:, :1])], 1)

    def fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Each place of each scale computed once."""
        C, H, W = self.shape
        x = tokens.view(-1, H, W, C).movedim(-1, 1)
        outside = torch.zeros_like(self.inputs(x[:, :, :1]))
        seen = self.scales.seen(W)
        lines = seen.lines
        for r in range(H):
            lower = self.inputs(x[:, :, r - 1 : r]) if r else outside
            lines.at(r, 0)
            beside = self.beside(lower, lines)
            self.scales.rows(self.above(lower, lines), r, y, seen)
            for c in range(W):
                lines.at(r, c)
                last = self.inputs(x[:, :, r : r + 1, c - 1 : c]) if c else outside[..., :1]
                h = beside[..., c : c + 1] + self.before(last, lines)
                h = self.scales.place(h, r, c, y, seen)
                if (r * W + c) * C >= P:
                    told = self.output(F.elu(h), lines)
                    x[:, :, r, c] = self.likelihood.sample(told, temperature=temperature)[:, :, 0, 0].long()
