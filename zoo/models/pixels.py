"""Images of integers as a network takes them, and what it says of maps as what is said of elements.

x is an image of integers, or of codes, (B, C, H, W). Feature i of a map belongs to channel i mod C.
"""

import torch
from torch import Tensor, nn

from zoo.models.fully_visible import FullyVisible
from zoo.nn.masked_conv import Lines


class Pixels(nn.Module):
    """Images of integers as maps: numbers in [0, 1], or vectors.  (B, C, H, W) -> (B, e C, H, W)

    embed   e, the size of a vector for each level: for codes, whose numbers say nothing; None: a number
    """

    def __init__(self, levels: int, embed: int | None) -> None:
        super().__init__()
        self.levels = levels
        self.vectors = nn.Embedding(levels, embed) if embed else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.vectors is None:
            return scaled(x, self.levels, dtype)
        return self.vectors(x.long()).movedim(-1, 1).flatten(1, 2)


def scaled(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Integers as numbers in [0, 1]."""
    return x.to(dtype) / (levels - 1)


def by_element(parameters: Tensor, channels: int) -> Tensor:
    """From maps to elements in order.  (B, F C, H, W) -> (B, F, T, 1)"""
    return parameters.unflatten(1, (-1, channels)).movedim(2, -1).flatten(2).unsqueeze(-1)


def by_pixel(model: FullyVisible, tokens: Tensor, P: int, y: Tensor | None, temperature: float) -> None:
    """Fill tokens (n, T) from the P-th on, each place of the image computed once, from lines that are kept.

    model.step(x, r, c, y, lines) gives the parameters (n, F C, 1, 1) of pixel (r, c) of images x (n, C, H, W);
    model.first is the convolution that sees the pixels themselves, by model.inputs(x). A channel's features know
    no more of their own pixel than the channels before, so that the last channel changes nothing but them.
    """
    C, H, W = model.shape
    x = tokens.view(-1, H, W, C).movedim(-1, 1)
    lines = Lines(W)
    for place in range(H * W):
        r, c = divmod(place, W)
        known = min(max(P - place * C, 0), C)
        for channel in range(min(known, C - 1), C):
            lines.at(r, c)
            parameters = model.step(x, r, c, y, lines)
            if channel >= known:
                here = parameters.unflatten(1, (-1, C))[:, :, channel]
                x[:, channel, r, c] = model.likelihood.sample(here, temperature=temperature).flatten().long()
        lines.write(model.first, model.inputs(x[:, :, r : r + 1, c : c + 1]))
