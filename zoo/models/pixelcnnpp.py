"""PixelCNN++: Salimans, Karpathy, Chen and Kingma 2017.

x is an image of integers (B, C, H, W), seen as numbers in [-1, 1]; pixels are read by row and column, the channels of
a pixel are told together. y (B,) are labels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.pixels import ORDER, begun, drawn, given, known_classes, labels, scaled, terms
from zoo.models.tokens import arranged
from zoo.nn.likelihood import DiscretizedLogisticMixture
from zoo.nn.masked_conv import WindowConv
from zoo.nn.shifted_conv import Scale
from zoo.types import Kind, Space, Unfit

SCALES = 3


class PixelCNNPP(nn.Module):
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

    kind: ClassVar[Kind] = "exact"

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
        super().__init__()
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"PixelCNN++ models images of integers (C, H, W) whose sides are multiples of {2 ** (SCALES - 1)}, "
                f"not shape={list(shape)} with levels={levels}",
                _fits,
            )
        C, H, W = shape
        self.shape = C, H, W
        self.levels, self.together = levels, C
        self.classes, self.conditional = classes, conditional
        self.protocol = {"order": ORDER}
        self.likelihood = DiscretizedLogisticMixture(levels, components=components)
        self.above = WindowConv(C + 1, dim, up=1, left=1, right=1)
        self.beside = WindowConv(C + 1, dim, left=1, right=1)
        self.before = WindowConv(C + 1, dim, up=1)
        self.scales = Scale(dim, depth, SCALES, dropout, known_classes(classes, conditional))
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
        h = self.scales(both, given(self, y)).chunk(2, 1)[1]
        return self.output(F.elu(h)).flatten(2).unsqueeze(-1)

    def loss(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """loss: nats per element; nats: per example; y is used if conditional."""
        return terms(self.log_prob(x, y), x[0].numel())

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | y) if conditional, in nats, (B,)."""
        return self.likelihood.log_prob(self(x, y), x.flatten(2).unsqueeze(-1))

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, temperature: float = 1.0, prompt: Tensor | None = None
    ) -> Tensor:
        """n images, (n, C, H, W), each place of each scale computed once; zoo.models.pixels.recomputed is the slow way.

        y             (n,) labels; where they are missing and needed, drawn evenly
        temperature   divides the mixture's logits and multiplies its scales; 0 takes the heaviest centre
        prompt        (n, P) first elements, which are kept: whole pixels

        ValueError for a temperature below 0 and a prompt that does not fit.
        """
        tokens, P = begun(self, n, prompt, temperature)
        self._fill(tokens, P, labels(self, y, n), temperature)
        return self.image(tokens)

    def inputs(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) in [-1, 1], and a channel of ones, which tells where the image is: (B, C + 1, H, W)."""
        x = 2 * scaled(x, self.levels, self.output.weight.dtype) - 1
        return torch.cat([x, torch.ones_like(x[:, :1])], 1)

    def image(self, tokens: Tensor) -> Tensor:
        """Elements in order as data: (n, T) -> (n, C, H, W)."""
        return arranged(tokens, self.shape, self.levels)

    @torch.inference_mode()
    def _fill(self, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
        """Draw tokens (n, T) from the P-th on."""
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
                    x[:, :, r, c] = drawn(self.likelihood, told, temperature, C)[:, :, 0, 0].long()


def _fits(space: Space) -> bool:
    halved = 2 ** (SCALES - 1)
    return (
        len(space.shape) == 3
        and space.levels is not None
        and all(side % halved == 0 and side > 0 for side in space.shape[1:])
    )
