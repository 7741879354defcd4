"""Dequantization: integers x become real numbers v in [x, x + 1), for densities to be bounds on probabilities.

P(x) = integral of p(v) over the bin of x, so log P(x) >= E_q [log p(v) - log q(v | x)] for any q on the bin: Theis et
al. 2016 for the uniform one, Ho et al. 2019 (Flow++) for one that is learned. Both are in integer units.
A dequantization is made as `dequantization(shape, levels)`; forward(x) -> v like x, and log q(v | x) in nats (B,).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.bases import Gaussian
from zoo.nn.bijections import Chain
from zoo.nn.coupling_nets import ResidualNet
from zoo.nn.couplings import Coupling
from zoo.nn.masks import Checkerboard, Given

SMALL = partial(ResidualNet, hidden=32, depth=2)


class UniformDequantization(nn.Module):
    """v = x + u, u uniform on [0, 1): log q = 0."""

    name = "uniform"

    def __init__(self, shape: Sequence[int], levels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.rand_like(x), x.new_zeros(len(x))


class VariationalDequantization(nn.Module):
    """v = x + sigmoid(h), where a flow that sees x makes h of Gaussian noise: it learns where in a bin to put v.

    log q(v | x) = log N(noise; 0, 1) - log|det dh/dnoise| - sum log sigmoid'(h). Ho et al. 2019, section 3.1: affine
    couplings on checkerboards, x being a condition of each.

    couplings   how many: 4 in the paper
    network     of each coupling
    """

    name = "variational"

    def __init__(
        self,
        shape: Sequence[int],
        levels: int,
        *,
        couplings: int = 4,
        network: Callable[..., nn.Module] = SMALL,
    ) -> None:
        super().__init__()
        C, H, W = shape
        self.levels, self.base = levels, Gaussian()
        masks = [Given(C, Checkerboard(swap=i % 2 == 1)) for i in range(couplings)]
        self.flow = Chain(*(Coupling((2 * C, H, W), mask=mask, network=network) for mask in masks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(x)
        seen = 2 * x / max(self.levels - 1, 1) - 1
        h, log_det = self.flow(torch.cat([seen, noise], 1))
        h = h[:, x.shape[1] :]
        log_det = log_det - (F.softplus(h) + F.softplus(-h)).flatten(1).sum(1)
        return x + h.sigmoid(), self.base.log_prob(noise.flatten(1)) - log_det


def real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Data as numbers of a model's type.

    ValueError for half precision: above 128 bfloat16 holds whole numbers only, so that no noise is left between them,
    and a density could grow without end.
    """
    if dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"a density in {str(dtype).removeprefix('torch.')} has no digits for the noise between levels; train with "
            "trainer.precision=bf16-mixed, or 32-true"
        )
    return x.to(dtype)


def padded(shape: Sequence[int], multiple: int) -> tuple[int, int, int]:
    """The shape of an image (C, H, W) whose sides are brought up to multiples: (1, 28, 28) and 8 give 32 x 32."""
    C, H, W = shape
    return C, math.ceil(H / multiple) * multiple, math.ceil(W / multiple) * multiple
