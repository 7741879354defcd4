"""Upsample guidance: what is coarse is as at the trained size, and where that is so already nothing changes."""

import pytest
import torch
import torch.nn.functional as F
from test_paths import PATHS, close

from zoo.models import Diffusion
from zoo.nn import Noise, Straight, UNet, VariancePreserving
from zoo.nn.paths import spread
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
    for part in (0.8, 0.9):
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
    for part, tolerance in ((0.8, 1e-8), (1.0, 1e-2)):
        t = torch.full((3,), part * path.span[1], dtype=torch.float64)
        exact = blocks(path, m)(x, t)
        x_0, x_1 = upsampled(ends, path, m)(x, t)
        close(F.avg_pool2d(x_0, m), F.avg_pool2d(exact[0], m), tolerance)
        close(F.avg_pool2d(x_1, m), F.avg_pool2d(exact[1], m), tolerance)
    # as much noise as data, wherever on its path: nothing is changed any more
    t = path.at_ratio(torch.ones(3, dtype=torch.float64))
    assert upsampled(ends, path, m)(x, t)[0].abs().max() == 0
    assert upsampled(ends, path, m, ratio=0.9)(x, t)[0].abs().max() > 0


def wrong(x, t):
    """Estimates of x_0 and x_1 by no network that knows anything."""
    return torch.sin(3 * x) * spread(t, x), torch.cos(x) + spread(t, x)


def test_of_the_noise_it_is_the_papers():
    path, m, w = VariancePreserving(), 2, 0.7
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 4, 4).double(), torch.tensor([0.5, 0.8]).double()
    alpha, sigma = (a[:, None, None, None] for a in path.coefficients(t))
    power = alpha**2 + sigma**2 / m**2
    tau = path.at_ratio((sigma / m / alpha).flatten())
    low = wrong(F.avg_pool2d(x, m) / power.sqrt(), tau)[1]
    noise = wrong(x, t)[1]
    paper = noise + w * repeated(low / m - F.avg_pool2d(noise, m), m)
    torch.testing.assert_close(upsampled(wrong, path, m, weight=w, ratio=0.0)(x, t)[1], paper)


def test_of_the_velocity_it_is_that_of_both_ends():
    path, m, w = Straight(), 2, 0.7
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 4, 4).double(), torch.tensor([0.6, 0.9]).double()
    a, s = 1 - t, t / m
    tau, scale = s / (a + s), 1 / (a + s)
    low_0, low_1 = wrong(scale[:, None, None, None] * F.avg_pool2d(x, m), tau)
    x_0, x_1 = wrong(x, t)
    velocity = x_1 - x_0
    plain = velocity + w * repeated(low_1 / m - low_0 - F.avg_pool2d(velocity, m), m)
    x_0, x_1 = upsampled(wrong, path, m, weight=w, ratio=0.0)(x, t)
    torch.testing.assert_close(x_1 - x_0, plain, rtol=1e-9, atol=1e-9)


def test_images_are_drawn_larger_than_the_data():
    def network(shape, context):
        return UNet(shape, context, dim=8, mult=(1, 2), depth=1, attention=())

    model = Diffusion(
        shape=(1, 8, 8), levels=4, backbone=network, path=VariancePreserving(), target=Noise()
    ).eval()
    seen = []
    model.backbone.register_forward_hook(lambda net, args, out: seen.append(args[0].shape[-1]))
    assert model.sample(2, steps=3, upsample=2).shape == (2, 1, 16, 16)
    assert seen == [16, 8] * 3 + [16, 16]  # the small ones while there is much noise
    assert model.evaluations == 8
    with pytest.raises(ValueError, match="upsample=0"):
        model.sample(2, upsample=0)
