"""NICE: Dinh, Krueger and Bengio 2014, Non-linear Independent Components Estimation (1410.8516)."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from zoo.models.flow import Flow
from zoo.nn.bases import Logistic
from zoo.nn.bijections import Chain, Flatten
from zoo.nn.couplings import Additive, Coupling
from zoo.nn.dequantization import UniformDequantization
from zoo.nn.masks import OddEven
from zoo.nn.mlp import MLP
from zoo.nn.preprocessing import Rescale, Whitening
from zoo.nn.scalings import Scaling
from zoo.types import Space, Unfit


class NICE(Flow):
    """Additive couplings of odd and even pixels in turn, then a scale for every dimension.

    Fits images of integers and real numbers of any shape. As published for MNIST; on CIFAR-10 data are in [-1, 1],
    whitened, with couplings of 4 x 2000.

    hidden      widths of each coupling's network
    couplings   at least 3, for every pixel to depend on every other
    coupling    how the moved half moves: zoo.nn.Additive, Affine, Spline
    interval    integers become numbers in [low, high)
    whitening   zero-phase whitening by the covariance of the training split
    base, dequantization, classes, conditional   as those of Flow

    Unfit for integers that are no image.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000),
        couplings: int = 4,
        coupling: Callable[..., nn.Module] = Additive,
        interval: tuple[float, float] = (0.0, 1.0),
        whitening: bool = False,
        base: Callable[[], nn.Module] = Logistic,
        dequantization: Callable[..., nn.Module] = UniformDequantization,
    ) -> None:
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"NICE models images of integers (C, H, W), or real numbers, more than one, not shape={list(shape)} "
                f"with levels={levels}.",
                _fits,
            )
        D = math.prod(shape)
        network = partial(MLP, hidden=hidden)
        layers = [
            Coupling((D,), mask=OddEven(swap=i % 2 == 1), network=network, transform=coupling)
            for i in range(couplings)
        ]
        preprocess = [] if levels is None else [Rescale(levels, *interval)]
        if whitening:
            preprocess.append(Whitening(shape))
        super().__init__(
            Chain(Flatten(shape), *layers, Scaling(D)),
            shape=shape,
            levels=levels,
            classes=classes,
            conditional=conditional,
            preprocess=preprocess,
            base=base,
            dequantization=dequantization,
        )


def _fits(space: Space) -> bool:
    return math.prod(space.shape) > 1 and (space.levels is None or len(space.shape) == 3)
