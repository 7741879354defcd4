"""Two players: a critic that tells real images from made ones, and what each of both wants.

A critic's output is a map of logits (B, 1, h, w), high where a patch looks real.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.autoencoder import group_norm


class PatchCritic(nn.Sequential):
    """A logit for each patch of an image, the same wherever the patch is: (B, C, H, W) -> (B, 1, h, w).

    Isola et al. 2016 (PatchGAN), with GroupNorm, which does not depend on the other images of a batch, and with
    kernels of 3 x 3 in the last two layers, so that images of any size have patches.

    width    channels of the first layer, doubled by the next ones up to eightfold
    layers   how often the sides are halved: 3 for patches of about 50 x 50

    Raises ValueError if an image is too small to be halved so often.
    """

    def __init__(self, shape: tuple[int, int, int], *, width: int = 64, layers: int = 3) -> None:
        C, H, W = shape
        if min(H, W) < 2**layers:
            raise ValueError(f"layers={layers}: a critic cannot halve {H} x {W} so often; take fewer layers")
        parts: list[nn.Module] = [nn.Conv2d(C, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        for layer, (a, b) in enumerate(pairwise(widths), 1):
            halve = layer < layers
            conv = nn.Conv2d(a, b, 4, 2, 1, bias=False) if halve else nn.Conv2d(a, b, 3, 1, 1, bias=False)
            parts += [conv, group_norm(b), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 3, padding=1))
        for part in self:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)


class Hinge:
    """critic: 1/2 (E relu(1 - D(x)) + E relu(1 + D(x^))),  generator: -E D(x^). Lim and Ye 2017."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises, of its logits for real and made images."""
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def generator(self, fake: Tensor) -> Tensor:
        """What the generator minimises."""
        return -fake.mean()


class NonSaturating:
    """critic: 1/2 (-E log s(D(x)) - E log(1 - s(D(x^)))),  generator: -E log s(D(x^)). Goodfellow et al. 2014."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises, of its logits for real and made images."""
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())

    def generator(self, fake: Tensor) -> Tensor:
        """What the generator minimises."""
        return F.softplus(-fake).mean()


def held(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output whose gradient goes to x and not to the module's parameters."""
    constant = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, constant, (x,))
