"""Bijections that keep their output only: activations are computed again in the backward pass, by inverting.

Memory does not grow with the number of layers, but for their parameters' gradients: Gomez et al. 2017 (RevNet).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.nn.bijections import leaves


class Inverted(torch.autograd.Function):
    """apply(blocks, x, *parameters) -> (z, log|det dz/dx|) of bijections that are called one after the other.

    parameters are those of the blocks that need gradients, in their order: given as inputs, so that who hooks
    them (DistributedDataParallel) is told. The blocks must give the same in the backward pass: no chance.
    """

    @staticmethod
    def forward(
        ctx: Any, blocks: Sequence[nn.Module], x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.blocks, device = blocks, x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        total = x.new_zeros(len(x))
        for block in blocks:
            x, log_det = type(block).forward(block, x)
            total = total + log_det
        ctx.save_for_backward(x)
        return x, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, dlog_det: Tensor) -> tuple[Any, ...]:
        (z,) = ctx.saved_tensors
        gradients: dict[int, Tensor | None] = {}
        with torch.autocast(*ctx.autocast):
            for layer in reversed([leaf for block in ctx.blocks for _, leaf in leaves(block)]):
                z, dz, found = backward(layer, z, dz, dlog_det)
                gradients |= found
        own = [p for block in ctx.blocks for p in block.parameters() if p.requires_grad]
        return None, dz, *(gradients[id(p)] for p in own)


def backward(
    layer: nn.Module, z: Tensor, dz: Tensor, dlog_det: Tensor
) -> tuple[Tensor, Tensor, dict[int, Tensor | None]]:
    """One layer back: x from z, the gradient of x from that of z, and those of its parameters by their id."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    with torch.enable_grad():
        if hasattr(layer, "again"):
            parts, out = layer.again(z)
        else:
            with torch.no_grad():
                x = layer.inverse(z)
            parts = (x.requires_grad_(),)
            out = type(layer).forward(layer, x)
    wanted = [(o, g) for o, g in zip(out, (dz, dlog_det)) if o.requires_grad]
    outputs, weights = zip(*wanted)
    found = torch.autograd.grad(outputs, (*parts, *parameters), weights, allow_unused=True)
    of_x, of_parameters = found[: len(parts)], found[len(parts) :]
    x, dx = (layer.mask.join(*pair) if len(pair) == 2 else pair[0] for pair in (parts, of_x))
    return x.detach(), dx, {id(p): g for p, g in zip(parameters, of_parameters)}
