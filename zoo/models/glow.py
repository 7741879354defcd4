"""Glow: Kingma and Dhariwal 2018, Glow: Generative Flow with Invertible 1x1 Convolutions (1807.03039)."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from zoo.models.flow import Flow
from zoo.nn.bijections import Chain, Flatten, Split, Squeeze
from zoo.nn.coupling_nets import GlowNet, ZeroConv
from zoo.nn.couplings import Affine, Coupling, FreeScale, SigmoidScale
from zoo.nn.dequantization import UniformDequantization, padded
from zoo.nn.mixing import Dense, NormedInvertible1x1
from zoo.nn.preprocessing import Rescale
from zoo.nn.scalings import ActNorm
from zoo.types import Space, Unfit

GATED = partial(Affine, log_scale=SigmoidScale)  # the coupling of the paper's code


class Glow(Flow):
    """Steps of ActNorm, invertible 1 x 1 convolution and coupling, on scales of halved sides.

    A scale is a squeeze, the steps, and a split, whose leaving half has a Gaussian prior given the one that goes on;
    the last one ends in an ActNorm: a mean and a scale by channel, the paper's learned top. As published for CIFAR-10.
    Images whose sides cannot be halved so often are padded, as the paper's code pads MNIST to 32 x 32.

    hidden    channels of the couplings' networks
    steps     of each scale
    scales    as many as there are squeezes
    coupling  how the moved half moves: zoo.nn.Affine by its SigmoidScale, as the paper's code has it, or Additive
    matrix    of the 1 x 1 convolution: zoo.nn.Dense or LU
    learned_prior   of the half that leaves; otherwise it is N(0, 1)
    dequantization, classes, conditional   as those of Flow

    Unfit for anything but images of integers, or of real numbers with sides that can be halved so often.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        hidden: int = 512,
        steps: int = 32,
        scales: int = 3,
        coupling: Callable[..., nn.Module] = GATED,
        matrix: Callable[[int], nn.Module] = Dense,
        learned_prior: bool = True,
        dequantization: Callable[..., nn.Module] = UniformDequantization,
    ) -> None:
        multiple = 2**scales

        def fits(space: Space) -> bool:
            even = all(side % multiple == 0 for side in space.shape[1:])
            return len(space.shape) == 3 and (space.levels is not None or even)

        if not fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"Glow models images (C, H, W), those of real numbers with sides that {multiple} divides, "
                f"not shape={list(shape)} with levels={levels}.",
                fits,
            )

        def step(shape: tuple[int, ...]) -> Chain:
            network = partial(GlowNet, hidden=hidden)
            mixing = NormedInvertible1x1(shape[0], matrix=matrix)
            return Chain(mixing, Coupling(shape, network=network, transform=coupling))

        def scale(shape: tuple[int, int, int], left: int) -> Chain:
            C, H, W = shape
            inner = 4 * C, H // 2, W // 2
            layers = [Squeeze(), *(step(inner) for _ in range(steps))]
            if left == 1:
                return Chain(*layers, ActNorm(4 * C), Flatten(inner))
            if learned_prior:
                normal = partial(Affine, log_scale=FreeScale)
                layers.append(Coupling(inner, network=ZeroConv, transform=normal))
            return Chain(*layers, Split(inner, scale((2 * C, H // 2, W // 2), left - 1)))

        super().__init__(
            scale(padded(shape, multiple), scales),
            shape=shape,
            levels=levels,
            classes=classes,
            conditional=conditional,
            preprocess=[] if levels is None else [Rescale(levels, -0.5, 0.5)],
            dequantization=dequantization,
            multiple=multiple,
        )
