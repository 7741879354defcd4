"""Mamba-2's recurrence as Dao & Gu 2024 print it in their section 6: the least code, all chunks at once.

Their X, A, B, C are v, g, k, q of zoo.nn.chunked, where n counts chunks and i, j are tokens of one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd(q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, chunk: int = 64) -> Tensor:
    """S_t = exp(g_t) S_{t-1} + k_t v_t', o_t = S_t'q_t.  q, k (B, G, T, d), v (B, H, T, e), g (B, H, T)

    T is a multiple of chunk.
    """
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    q, k, v, g = (x.unflatten(2, (-1, chunk)) for x in (q, k, v, g))
    G = g.cumsum(-1)
    inside = torch.einsum("bhnid,bhnjd,bhnij,bhnje->bhnie", q, k, between(g).exp(), v)
    gains = torch.einsum("bhnjd,bhnj,bhnje->bhnde", k, (G[..., -1:] - G).exp(), v)
    gains = F.pad(gains, (0, 0, 0, 0, 1, 0))  # the state before the first is 0
    decays = between(F.pad(G[..., -1], (1, 0))).exp()
    states = torch.einsum("bhmn,bhnde->bhmde", decays, gains)[:, :, :-1]
    before = torch.einsum("bhnid,bhnde,bhni->bhnie", q, states, G.exp())
    return (inside + before).flatten(2, 3)


def between(g: Tensor) -> Tensor:
    """g_{j+1} + ... + g_i for j <= i, else -inf: the paper's segsum.  (..., T) -> (..., T, T)"""
    T = g.shape[-1]
    past = torch.ones(T, T, dtype=torch.bool, device=g.device).tril()
    sums = g.unsqueeze(-1).expand(*g.shape, T).masked_fill(~past.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~past, -math.inf)
