"""Upsample guidance: what is coarse is as at the trained size, and where that is so already nothing changes."""

import pytest
import torch
import torch.nn.functional as F
from test_paths import PATHS, close

from zoo.models import Diffusion
from zoo.nn import Noise, UNet, VariancePreserving
from zoo.nn.upsample_guidance import repeated, upsampled


def blocks(path, m):
    """E[x_0 | x_t], E[x_1 | x_t] of images that are constant on blocks, m pixels wide where the image is large."""

    def ends(x, t):
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in path.coefficients(t.double()))
        k = m if x.shape[-1] == 4 * m else 1
        coarse = F.avg_pool2d(x, k)
        x_0 = repeated(alpha * coarse / (alpha**2 + (sigma / k) ** 2), k)  # blocks are N(0, 1)
        return x_0, (x - alpha * x_0) / sigma

    return ends


@pytest.mark.parametrize("name", PATHS)
def test_exact_estimates_of_coarse_images_are_left_as_they_are(name):
    path, m = PATHS[name], 2
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    for part in (0.6, 0.9):
        t = torch.full((3,), part * path.span[1], dtype=torch.float64)
        plain, guided = blocks(path, m)(x, t), upsampled(blocks(path, m), path, m)(x, t)
        close(guided[0], plain[0], 1e-8)
        close(guided[1], plain[1], 1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_the_coarse_part_is_that_of_the_trained_size(name):
    """Of a network that knows only small images: at the noisy end too."""
    path, m = PATHS[name], 2

    def ends(x, t):
        return blocks(path, m)(x, t) if x.shape[-1] == 4 else (torch.zeros_like(x), torch.zeros_like(x))

    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    for part, tolerance in ((0.7, 1e-8), (1.0, 1e-2)):
        t = torch.full((3,), part * path.span[1], dtype=torch.float64)
        exact = blocks(path, m)(x, t)
        x_0, x_1 = upsampled(ends, path, m)(x, t)
        close(F.avg_pool2d(x_0, m), F.avg_pool2d(exact[0], m), tolerance)
        close(F.avg_pool2d(x_1, m), F.avg_pool2d(exact[1], m), tolerance)
    t = torch.full((3,), 0.1 * path.span[1], dtype=torch.float64)
    assert upsampled(ends, path, m)(x, t)[0].abs().max() == 0  # later nothing is changed


def test_images_are_drawn_larger_than_the_data():
    def network(shape, context):
        return UNet(shape, context, dim=8, mult=(1, 2), depth=1, attention=())

    model = Diffusion(
        shape=(1, 8, 8), levels=4, backbone=network, path=VariancePreserving(), target=Noise()
    ).eval()
    assert model.sample(2, steps=3, upsample=2).shape == (2, 1, 16, 16)
    assert model.evaluations == 10
    with pytest.raises(ValueError, match="upsample=0"):
        model.sample(2, upsample=0)
