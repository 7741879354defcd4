"""Convolutions that look back only, over images that are read by row and column, and in a pixel by channel.

A window reaches some rows up and some columns to the left and right of its own place, never below. In a pixel of C
channels feature i belongs to channel i mod C and may know its own and earlier channels, or only the earlier ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowConv(nn.Module):
    """A convolution whose window ends in its own row.  (B, I, H, W) -> (B, O, H, W)

    y[r, c] = bias + sum_ij weight[i, j] x[r - up + i, c - left + j], zeros outside of the image.

    up, left, right   how far the window reaches
    stride            every how many rows and columns there is an output: (H / stride, W / stride)
    mask              (O, I, up + 1, left + 1 + right), booleans: which weights there are; None: all

    With `lines` it sees one place, or one row, at a time: x (B, I, 1, w) -> (B, O, 1, w).
    """

    mask: Tensor | None

    def __init__(
        self,
        enter: int,
        leave: int,
        *,
        up: int = 0,
        left: int = 0,
        right: int = 0,
        stride: int = 1,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.up, self.left, self.right, self.stride = up, left, right, stride
        shape = (leave, enter, up + 1, left + 1 + right)
        self.register_buffer("mask", mask, persistent=False)
        seen = math.prod(shape[1:]) if mask is None else int(mask.flatten(1).sum(1).max())
        bound = max(seen, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(leave).uniform_(-bound, bound))

    def forward(self, x: Tensor, lines: "Lines | None" = None) -> Tensor:
        if lines is not None:
            return lines(self, x)
        return F.conv2d(
            F.pad(x, (self.left, self.right, self.up, 0)), self.kernel(), self.bias, stride=self.stride
        )

    def kernel(self) -> Tensor:
        """The weights that there are; the others are 0."""
        return self.weight if self.mask is None else self.weight * self.mask


def reach_of(side: int) -> int:
    """How far a window of this side reaches from its middle. ValueError for a side without a middle, and for 1."""
    if side < 3 or side % 2 == 0:
        raise ValueError(
            f"a window of side {side} has nothing around a middle; try {max(3, side + 1 - side % 2)}"
        )
    return side // 2


def channels_of(dim: int, channels: int) -> Tensor:
    """The channel that each of so many features belongs to: (dim,)."""
    return torch.arange(dim) % channels


def masked_conv(
    enter: Tensor, leave: Tensor, *, up: int = 0, left: int = 0, right: int = 0, own: bool = True
) -> WindowConv:
    """A convolution that sees all rows above in its window, what is to its left, and of its own pixel the channels
    before a feature's own; that one too if `own` (mask B of van den Oord et al. 2016), else not (mask A).

    enter, leave   the channels that features belong to: (I,), (O,)
    """
    mask = torch.ones(len(leave), len(enter), up + 1, left + 1 + right, dtype=torch.bool)
    mask[:, :, up, left + 1 :] = False
    mask[:, :, up, left] = leave.unsqueeze(1) >= enter if own else leave.unsqueeze(1) > enter
    return WindowConv(len(enter), len(leave), up=up, left=left, right=right, mask=mask)


class Lines:
    """What convolutions have seen of the last rows, so that an image is computed place by place, each place once.

    Each convolution holds as many lines as its window is high. `at(r, c)` says which place is next; places are
    visited in order, and each convolution is called once for each row or place, or again for the same one.

    width   of the lines, W
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.row, self.column = 0, 0
        self.held: dict[WindowConv, tuple[int, Tensor]] = {}  # the row that is last, lines (B, up + 1, W', I)
        self.above: list[Tensor] = []  # what a network has computed of the whole row, for its places
        self.flat: dict[WindowConv, Tensor] = {}  # weights (O, (up + 1) (left + 1 + right) I)

    def at(self, row: int, column: int) -> None:
        """The place of what comes next; of a whole row, its first column."""
        self.row, self.column = row, column

    def __call__(self, conv: WindowConv, x: Tensor) -> Tensor:
        """x (B, I, 1, w), w places from this one on, -> (B, O, 1, w), or every stride-th of them."""
        w = x.shape[3]
        if conv.up + conv.left + conv.right == 0:
            window = x.permute(0, 2, 3, 1)
        else:
            lines = self.write(conv, x)
            window = lines[:, :, self.column : self.column + conv.left + w + conv.right]
        if w > 1:
            return F.conv2d(window.permute(0, 3, 1, 2), conv.kernel(), conv.bias, stride=(1, conv.stride))
        if conv not in self.flat:
            self.flat[conv] = conv.kernel().permute(0, 2, 3, 1).flatten(1)
        return F.linear(window.flatten(1), self.flat[conv], conv.bias)[:, :, None, None]

    def write(self, conv: WindowConv, x: Tensor) -> Tensor:
        """Set what a convolution holds from this place on, x (B, I, 1, w); returns all that it holds."""
        B, features, _, w = x.shape
        if conv not in self.held:
            wide = conv.left + self.width + conv.right
            self.held[conv] = self.row, x.new_zeros(B, conv.up + 1, wide, features)
        row, lines = self.held[conv]
        if row != self.row:
            lines = torch.cat([lines[:, 1:], torch.zeros_like(lines[:, :1])], 1)
            self.held[conv] = self.row, lines
        start = conv.left + self.column
        lines[:, conv.up, start : start + w] = x.squeeze(2).transpose(1, 2)
        return lines
