"""Group norm and SiLU in one, which keeps one field for the backward pass, not two.

x (B, C, H, W).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


class NormSiLU(nn.Module):
    """silu(norm(x)), for a torch.nn.GroupNorm.  (B, C, H, W) -> the same

    While training, the normalised field is computed again in the backward pass, from x, which is kept anyway. It is
    then of x's own type, under autocast too; sums are in float32.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return F.silu(self.norm(x), inplace=not torch.is_grad_enabled())
        x = x.contiguous(memory_format=layout(x))
        weight, bias = self.norm.weight.type_as(x), self.norm.bias.type_as(x)
        return Recomputed.apply(x, weight, bias, self.norm.num_groups, self.norm.eps)


class Recomputed(torch.autograd.Function):
    """silu(group_norm(x)), of which x and the groups' statistics are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        (B, C), places = x.shape[:2], x[0, 0].numel()
        y, mean, rstd = aten.native_group_norm(x, weight, bias, B, C, places, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.sizes = (B, C, places, groups, eps)
        return F.silu(y, inplace=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        B, C, places, groups, eps = ctx.sizes
        grad = grads[0].contiguous(memory_format=layout(x))
        if layout(x) is torch.contiguous_format:
            y = aten.native_group_norm(x, weight, bias, B, C, places, groups, eps)[0]
            grad = aten.silu_backward(grad, y)
            dx, dweight, dbias = aten.native_group_norm_backward(
                grad, x, mean, rstd, weight, B, C, places, groups, [True, True, True]
            )
            return dx, dweight, dbias, None, None
        mean, rstd = (
            s.view(B, groups, 1).expand(-1, -1, C // groups).reshape(B, C, 1, 1) for s in (mean, rstd)
        )
        scale = rstd * weight.view(C, 1, 1)
        y = torch.addcmul(bias.view(C, 1, 1) - mean * scale, x, scale)
        grad = aten.silu_backward(grad, y)
        return *norm_backward(grad, x, mean, rstd, weight, groups), None, None


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of group norm by x, weight and bias.  grad, x (B, C, H, W); mean, rstd (B, C, 1, 1)

    dx = rstd w dy + b x - b mean - rstd sum(w dy) / n,  b = rstd^3 (mean sum(w dy) - sum(w dy x)) / n, sums over the
    n numbers of a group. PyTorch's kernel for channels last takes up to ten times as long for groups of few channels.
    """
    B, C, H, W = x.shape
    n = H * W * C // groups
    dbias, dweight = grad.sum((2, 3)), (grad * x).sum((2, 3))  # (B, C)
    of_group = lambda s: (  # noqa: E731
        (s * weight).view(B, groups, -1).sum(2, keepdim=True).expand(-1, -1, C // groups).reshape(B, C, 1, 1)
    )
    total, product = of_group(dbias), of_group(dweight)
    slope = rstd**3 * (mean * total - product) / n
    dx = torch.addcmul(-slope * mean - rstd * total / n, x, slope)
    dx = torch.addcmul(dx, grad, rstd * weight.view(C, 1, 1))
    dweight = ((dweight - mean[..., 0, 0] * dbias) * rstd[..., 0, 0]).sum(0)
    return dx, dweight, dbias.sum(0)


def layout(x: Tensor) -> torch.memory_format:
    """How a field lies in memory while it is normalised: only CPUs have a kernel for channels last."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
