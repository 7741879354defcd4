"""Softmax attention over whole sequences by FlexAttention: scores are changed and keys left out inside the kernel.

So what depends on distance costs no T x T matrix: a bias (ALiBi, KERPLE, T5), a window; nor does a cap. Dong et al.
2024. H heads of d features, those of keys and values shared as in zoo.nn.Attention; n = i - j is a distance.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.nn.kernels import installed
from zoo.nn.position import Position

KERNELS = ("auto", "sdpa", "flex")
UNSERVED = frozenset({"scores", "values"})  # places of an encoding that need content, or the weights


def check_flex(kernel: str, position: Position, dropout: float) -> None:
    """Raise ValueError for a kernel that is not there, and for flex where it cannot do what is asked."""
    if kernel not in KERNELS:
        raise ValueError(
            f"kernel={kernel} is none of {', '.join(KERNELS)}; auto takes the fastest that is there"
        )
    if kernel == "flex" and dropout:
        raise ValueError(
            f"kernel=flex drops no weights, and dropout={dropout}; set dropout=0, or take kernel=sdpa"
        )
    if kernel == "flex" and position.places & UNSERVED:
        raise ValueError(
            f"kernel=flex adds what depends on distance alone, and {type(position).__name__} is more than that; "
            "take kernel=sdpa, or auto"
        )


def takes_flex(
    kernel: str,
    q: Tensor,
    position: Position,
    *,
    dropout: float = 0.0,
    cap: float | None = None,
    window: int | None = None,
) -> bool:
    """Whether flex computes a sequence: where it is asked for, and in auto on GPUs where it saves a T x T matrix.

    auto leaves learned encodings to sdpa.
    """
    if kernel != "auto" or not q.is_cuda or not q.shape[2]:
        return kernel == "flex" and q.shape[2] > 0
    saves = "bias" in position.places or cap is not None or window is not None
    # the kernel multiplies widths from 16 on; slopes of a learned bias are added up one by one, in any order
    saves = saves and not any(True for _ in position.parameters())
    able = not dropout and not position.places & UNSERVED and q.shape[-1] >= 16 and q.dtype != torch.float64
    return saves and able and installed("triton") and not torch.are_deterministic_algorithms_enabled()


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Position,
    *,
    causal: bool,
    cap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """The heads' outputs of tokens 0 ... T - 1.  q (B, H, T, d), k and v (B, H_kv, T, d) -> (B, H, T, d)

    window      i sees j if |i - j| < window

    Raises ValueError on a CPU where a gradient is asked for: there is no backward pass.
    """
    if not q.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(f"kernel=flex has no backward pass on {q.device.type}; take kernel=auto, or sdpa")
    T = q.shape[2]
    q, k = q.type_as(v), k.type_as(v)  # a norm of queries and keys may have left them in float32
    score = score_of(position, q, cap)
    mask = mask_of(T, causal, window, q.device) if causal or window is not None else None
    attention = compiled() if q.is_cuda else eager()
    return attention(q, k, v, score_mod=score, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])


def score_of(position: Position, q: Tensor, cap: float | None) -> Callable[..., Tensor] | None:
    """What becomes of a scaled score: cap tanh((score + bias_h(i - j)) / cap); None if nothing does."""
    if cap is not None:
        # a tensor: the second number that is met would be compiled as a symbol, which flex does not take
        cap = torch.full((), cap, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
    if "bias" not in position.places:
        return None if cap is None else lambda score, b, h, i, j: cap * torch.tanh(score / cap)
    T = q.shape[2]
    t = torch.arange(2 * T - 1, device=q.device)
    now = t[T - 1]
    curve = position.bias(t, now[None]).squeeze(-1)  # (H, 2T - 1), from distance 1 - T to T - 1

    def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score + curve[h, i - j + now]
        return score if cap is None else cap * torch.tanh(score / cap)

    return score


@lru_cache(32)
def mask_of(T: int, causal: bool, window: int | None, device: torch.device) -> Any:
    """Which keys a query sees, in blocks: a BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        n = i - j
        seen = n >= 0 if causal else n == n
        return seen if window is None else seen & (n.abs() < window)

    with torch.inference_mode(False):  # it is kept, and serves training later
        return create_block_mask(sees, None, None, T, T, device=device)


def eager() -> Callable[..., Any]:
    """flex_attention as it is: all scores written out."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def compiled() -> Callable[..., Any]:
    """flex_attention as one kernel, compiled when it is first called."""
    return torch.compile(eager())
