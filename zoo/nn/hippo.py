"""HiPPO: the matrices of a state that remembers all of its past, and the diagonal ones that come close.

A state space is h'(t) = A h(t) + B u(t), with N numbers in h. Complex modes come in conjugate pairs, of which
one is kept: N/2 of them, (N/2,).
"""

import math

import torch
from torch import Tensor


def legs(state: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of HiPPO-LegS: h holds the coefficients of the past's Legendre polynomials.

    A_nk = -sqrt((2n + 1)(2k + 1)) for n > k, -(n + 1) for n = k, 0 above; B_n = sqrt(2n + 1). Gu et al. 2020,
    eq. 3.
    """
    n = torch.arange(state, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    return -torch.outer(root, root).tril(-1) - torch.diag(n + 1), root


def legs_dplr(state: int) -> tuple[Tensor, Tensor, Tensor]:
    """LegS in a basis where it is diagonal plus low rank: Lambda, P, B, each (N/2,) complex.

    A = V (diag(Lambda) - P P^*) V^*, one of each conjugate pair. A + P P^T with P_n = sqrt(n + 1/2) is -1/2
    plus a skew-symmetric matrix, whose eigenvectors are orthogonal. Gu et al. 2021, appendix C.1.
    """
    A, B = legs(state)
    P = (torch.arange(state, dtype=torch.float64) + 0.5).sqrt()
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(state, dtype=torch.float64)
    # eigh and not eig: it keeps the eigenvectors orthogonal
    frequencies, V = torch.linalg.eigh(-1j * skew)
    keep = frequencies > 0
    frequencies, basis = frequencies[keep], V[:, keep].conj()
    Lambda = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return Lambda, P.to(basis) @ basis, B.to(basis) @ basis


def s4d_legs(state: int) -> Tensor:
    """Lambda (N/2,) of LegS without its low rank part: Gupta et al. 2022."""
    return legs_dplr(state)[0]


def s4d_lin(state: int) -> Tensor:
    """Lambda_n = -1/2 + i pi n, (N/2,): the Fourier series of a window. Gu et al. 2022, eq. 9."""
    n = torch.arange(state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), math.pi * n)


def s4d_inv(state: int) -> Tensor:
    """Lambda_n = -1/2 + i N/pi (N/(2n + 1) - 1), (N/2,): close to s4d_legs. Gu et al. 2022, eq. 8.

    N counts the modes of both halves, as in the paper's listing.
    """
    n = torch.arange(state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), state / math.pi * (state / (2 * n + 1) - 1))


def log_uniform(n: int, low: float, high: float) -> Tensor:
    """n step sizes between low and high, even in their logarithm, (n,)."""
    return torch.empty(n).uniform_(math.log(low), math.log(high)).exp()
