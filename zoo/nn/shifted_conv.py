"""Two streams of convolutions at several scales, for images that are read row by row: the network of PixelCNN++.

u are features that know the rows above, h those that know what is to the left too, each (B, D, H, W), both of them
(B, 2 D, H, W); y (B,) are labels.
Salimans, Karpathy, Chen and Kingma 2017, figure 2. Ours has plain weights, not normalised ones, and the kernel of
its doublings is 2 x 2 for both streams.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.masked_conv import Lines, WindowConv


class GatedResidual(nn.Module):
    """x + a sigmoid(b), (a, b) = conv(e(conv(e(x)) + 1x1(e(aside)))) + embedding of y, e(x) = elu((x, -x)).

    (B, D, H, W), the same. aside (B, k D, H, W): what another part of the network says of the same places.

    window    the reach of the convolutions: up, left, right
    aside     k; 0: nothing is said
    """

    def __init__(self, dim: int, window: dict[str, int], aside: int, dropout: float, classes: int | None):
        super().__init__()
        self.before = WindowConv(2 * dim, dim, **window)
        self.aside = WindowConv(2 * aside * dim, dim) if aside else None
        self.dropout = nn.Dropout(dropout)
        self.after = WindowConv(2 * dim, 2 * dim, **window)
        self.label = nn.Embedding(classes, 2 * dim) if classes else None
        with torch.no_grad():
            self.after.weight.mul_(0.1)  # at first a block is close to what comes in

    def forward(
        self, x: Tensor, aside: Tensor | None, y: Tensor | None, lines: Lines | None = None
    ) -> Tensor:
        h = self.before(concat_elu(x), lines)
        if self.aside is not None:
            h = h + self.aside(concat_elu(aside), lines)
        h = self.after(self.dropout(concat_elu(h)), lines)
        if self.label is not None:
            h = h + self.label(y)[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a * b.sigmoid()


class Pair(nn.Module):
    """A block of each stream; u speaks to h, and both hear what was said on the way down, if this is the way up."""

    def __init__(self, dim: int, dropout: float, classes: int | None, *, skip: bool) -> None:
        super().__init__()
        self.u = GatedResidual(dim, {"up": 1, "left": 1, "right": 1}, int(skip), dropout, classes)
        self.h = GatedResidual(dim, {"up": 1, "left": 1}, 1 + skip, dropout, classes)

    def forward(self, both: Tensor, skip: Tensor | None, y: Tensor | None) -> Tensor:
        u, h = both.chunk(2, 1)
        past, beside = (None, None) if skip is None else skip.chunk(2, 1)
        u = self.u(u, past, y)
        return torch.cat([u, self.h(h, heard(u, beside), y)], 1)


class Scale(nn.Module):
    """Blocks down, the next scale at half the sides, and blocks up that hear those on the way down.

    (B, 2 D, H, W), y -> the same. `rows` and `place` do the same for one row of u, and then for each place of h.

    scales    this one and those inside
    """

    def __init__(self, dim: int, depth: int, scales: int, dropout: float, classes: int | None) -> None:
        super().__init__()
        inside = scales > 1
        self.down = nn.ModuleList(Pair(dim, dropout, classes, skip=False) for _ in range(depth))
        self.up = nn.ModuleList(Pair(dim, dropout, classes, skip=True) for _ in range(depth + inside))
        self.inner = Scale(dim, depth, scales - 1, dropout, classes) if inside else None
        if inside:
            self.halve_u = WindowConv(dim, dim, up=1, left=1, right=1, stride=2)
            self.halve_h = WindowConv(dim, dim, up=1, left=1, stride=2)
            self.double_u = nn.ConvTranspose2d(dim, dim, 2, stride=2)
            self.double_h = nn.ConvTranspose2d(dim, dim, 2, stride=2)

    def pairs(self) -> list[nn.Module]:
        """All blocks, in the order in which they are called."""
        return [*self.down, *(self.inner.pairs() if self.inner else []), *self.up]

    def forward(self, both: Tensor, y: Tensor | None) -> Tensor:
        said = [both]
        for pair in self.down:
            said.append(pair(said[-1], None, y))
        if self.inner is None:
            both = said.pop()
        else:
            u, h = said[-1].chunk(2, 1)
            u, h = self.inner(torch.cat([self.halve_u(u), self.halve_h(h)], 1), y).chunk(2, 1)
            both = torch.cat([self.double_u(u), self.double_h(h)], 1)
        for pair in self.up:
            both = pair(both, said.pop(), y)
        return both

    def seen(self, width: int) -> "Seen":
        """Nothing yet, of images of this width."""
        return Seen(Lines(width), inner=self.inner.seen(width // 2) if self.inner else None)

    def rows(self, u: Tensor, r: int, y: Tensor | None, seen: "Seen") -> Tensor:
        """What u becomes in row r: (B, D, 1, W), the same; kept for the places of h."""
        lines = seen.lines
        lines.at(r, 0)
        said = [u]
        for pair in self.down:
            said.append(pair.u(said[-1], None, y, lines))
        seen.down = said[1:]
        if self.inner is None:
            u = said.pop()
        else:
            if r % 2:
                lines.write(self.halve_u, said[-1])
            else:
                seen.u = self.double_u(self.inner.rows(lines(self.halve_u, said[-1]), r // 2, y, seen.inner))
                seen.h = torch.zeros_like(seen.u)
            u = seen.u[:, :, r % 2 : r % 2 + 1]
        seen.up = []
        for pair in self.up:
            u = pair.u(u, said.pop(), y, lines)
            seen.up.append(u)
        return u

    def place(self, h: Tensor, r: int, c: int, y: Tensor | None, seen: "Seen") -> Tensor:
        """What h becomes at (r, c), its row of u being known: (B, D, 1, 1), the same."""
        lines, here = seen.lines, slice(c, c + 1)
        lines.at(r, c)
        said = [h]
        for pair, u in zip(self.down, seen.down):
            said.append(pair.h(said[-1], u[..., here], y, lines))
        if self.inner is None:
            h = said.pop()
        else:
            if r % 2 or c % 2:
                lines.write(self.halve_h, said[-1])
            else:
                half = self.inner.place(lines(self.halve_h, said[-1]), r // 2, c // 2, y, seen.inner)
                seen.h[..., c : c + 2] = self.double_h(half)
            h = seen.h[:, :, r % 2 : r % 2 + 1, here]
        for pair, u in zip(self.up, seen.up):
            h = pair.h(h, heard(u[..., here], said.pop()), y, lines)
        return h


@dataclass
class Seen:
    """What a scale has computed of the last rows.

    down, up   u after each block, in this row
    u, h       what the next scale says of this row and the one it is doubled with: (B, D, 2, W)
    """

    lines: Lines
    inner: "Seen | None"
    down: list[Tensor] = field(default_factory=list)
    up: list[Tensor] = field(default_factory=list)
    u: Tensor | None = None
    h: Tensor | None = None


def heard(u: Tensor, skip: Tensor | None) -> Tensor:
    """What a block of h hears: (B, D, H, W), or twice as many features."""
    return u if skip is None else torch.cat([u, skip], 1)


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of -x: (B, D, H, W) -> (B, 2 D, H, W)."""
    return F.elu(torch.cat([x, -x], 1))
