"""Codes without a codebook: every channel is rounded by itself, and the digits together are the code."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.likelihood import wide
from zoo.nn.quantizers import Quantizer, field, flat, projection, straight_through


class FSQ(Quantizer):
    """Finite scalar quantization: channel i takes L_i values, evenly in [-1, 1]. Mentzer et al. 2023.

    f(z) = tanh(z + shift) half - offset,  half = (L - 1)(1 - eps) / 2,  offset = 1/2 for even L, else 0
    z_q = round(f(z)) / floor(L / 2), straight through;  shift = atanh(offset / half), so that f(0) = 0
    code = sum_i (round(f(z))_i + floor(L_i / 2)) prod_{j < i} L_j

    sizes   the L_i; the paper's for so many codes: 2^8 [8, 6, 5], 2^10 [8, 5, 5, 5], 2^12 [7, 5, 5, 5, 5],
            2^14 [8, 8, 8, 6, 5], 2^16 [8, 8, 8, 5, 5, 5]
    dim     a linear map leads from dim to len(sizes) channels and back, if they differ

    There are no terms: nothing can collapse. Its paper has tan for atanh in the shift, which is nearly the same.
    Raises ValueError for a size below 3.
    """

    def __init__(self, dim: int, *, sizes: Sequence[int] = (8, 5, 5, 5), eps: float = 1e-3) -> None:
        super().__init__()
        if not sizes or min(sizes) < 3:
            raise ValueError(
                f"sizes={list(sizes)}: a channel takes at least 3 values; try [8, 5, 5, 5], or LFQ for signs"
            )
        self.levels = math.prod(sizes)
        self.enter, self.leave = projection(dim, len(sizes)), projection(len(sizes), dim)
        size = torch.tensor(sizes)
        half = (size - 1) * (1 - eps) / 2
        offset = torch.where(size % 2 == 0, 0.5, 0.0)
        for name, value in {
            "size": size,
            "place": torch.tensor([math.prod(sizes[:i]) for i in range(len(sizes))]),
            "reach": half,
            "offset": offset,
            "shift": (offset / half).atanh(),
        }.items():
            self.register_buffer(name, value, persistent=False)  # they follow from sizes

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = wide(self.enter(flat(z)))
        with torch.autocast(z.device.type, enabled=False):
            bounded = (rows + self.shift).tanh() * self.reach - self.offset
            digits = bounded.round()
            codes = self.code(digits)
            values = straight_through(bounded, digits) / (self.size // 2)
        z_q = field(self.leave(values.to(flat(z).dtype)), z)
        return z_q.type_as(z), codes.view(len(z), *z.shape[2:]), {}

    def decode(self, codes: Tensor) -> Tensor:
        """(B, H, W) -> (B, D, H, W)."""
        return self.leave(self.values(codes)).movedim(-1, 1)

    def values(self, codes: Tensor) -> Tensor:
        """The point of the grid in [-1, 1]^d that a code stands for: (...) -> (..., d)."""
        digits = codes.long().unsqueeze(-1) // self.place % self.size - self.size // 2
        return digits.to(self.reach) / (self.size // 2)

    def code(self, digits: Tensor) -> Tensor:
        """Digits round(f(z)) as one number: (..., d) -> (...)."""
        return ((digits.long() + self.size // 2) * self.place).sum(-1)


class LFQ(Quantizer):
    """Lookup-free quantization: a code is the signs of d channels, K = 2^d. Yu et al. 2023 (MAGVIT-v2).

    z_q = sign(z), straight through;  p(c | z) = softmax over all codes c in {-1, 1}^d of 2 s z.c
    terms: "entropy" weight (E[H(p(c|z))] - gamma H(E[p(c|z)])), "commitment" beta |z - sg(z_q)|^2

    The second entropy makes all codes be used. Its mean is over the batch, and over whole codes: those of
    the bits, taken one by one, would add up to more wherever bits depend on each other. As p factorises for one
    z, the mean over all 2^d codes is one product of two matrices of 2^(d/2) columns. Each rank has its own.

    bits        d;  a linear map leads from dim to d channels and back, if they differ
    entropy     weight of that term; gamma weighs the part that wants all codes used
    sharpness   s, 100 in the authors' code
    """

    def __init__(
        self,
        dim: int,
        *,
        bits: int = 10,
        entropy: float = 0.1,
        gamma: float = 1.0,
        sharpness: float = 100.0,
        beta: float = 0.25,
    ) -> None:
        super().__init__()
        self.bits, self.levels = bits, 2**bits
        self.entropy, self.gamma, self.sharpness, self.beta = entropy, gamma, sharpness, beta
        self.enter, self.leave = projection(dim, bits), projection(bits, dim)
        self.register_buffer("place", 2 ** torch.arange(bits), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)  # in the type of the network

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = wide(self.enter(flat(z)))
        with torch.autocast(z.device.type, enabled=False):
            bits = rows >= 0  # zero has a sign too
            signs = torch.where(bits, 1.0, -1.0).to(rows)
            values = straight_through(rows, signs)
            each, all_ = self.entropies(rows)
            terms = {
                "entropy": self.entropy * (each - self.gamma * all_),
                "commitment": self.beta * (rows - signs).square().mean(),
            }
        z_q = field(self.leave(values.to(flat(z).dtype)), z)
        return z_q.type_as(z), (bits * self.place).sum(-1).view(len(z), *z.shape[2:]), terms

    def decode(self, codes: Tensor) -> Tensor:
        """(B, H, W) -> (B, D, H, W)."""
        return self.leave(self.values(codes)).movedim(-1, 1)

    def values(self, codes: Tensor) -> Tensor:
        """The signs that a code stands for: (...) -> (..., d)."""
        return torch.where(codes.long().unsqueeze(-1) // self.place % 2 > 0, self.one, -self.one)

    def entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over rows (N, d) of H(p(c|z)), and H of the mean of p(c|z), in nats."""
        logits = 4 * self.sharpness * rows  # of a bit: those of +1 less those of -1
        p = logits.sigmoid()
        each = (p * F.softplus(-logits) + (1 - p) * F.softplus(logits)).sum(1).mean()
        halves = [self._codes(part) for part in p.split([self.bits // 2, self.bits - self.bits // 2], 1)]
        mean = halves[0].T @ halves[1] / len(rows)  # (2^(d/2), 2^(d/2)): each whole code once
        return each, torch.special.entr(mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()

    @staticmethod
    def _codes(p: Tensor) -> Tensor:
        """Probabilities of all combinations of independent bits: (N, d) -> (N, 2^d)."""
        codes = p.new_ones(len(p), 1)
        for bit in p.unbind(1):
            both = torch.stack([1 - bit, bit], 1)  # (N, 2)
            codes = (codes.unsqueeze(2) * both.unsqueeze(1)).flatten(1)
        return codes
