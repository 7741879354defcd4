"""RealNVP: Dinh, Sohl-Dickstein and Bengio 2016, Density estimation using Real NVP (1605.08803)."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from zoo.models.flow import Flow
from zoo.nn.bijections import Chain, Flatten, Split, Squeeze
from zoo.nn.coupling_nets import ResidualNet
from zoo.nn.couplings import Affine, Coupling
from zoo.nn.dequantization import UniformDequantization, padded
from zoo.nn.masks import Checkerboard, Half, Mask
from zoo.nn.preprocessing import Logit, Rescale
from zoo.nn.scalings import RunningNorm
from zoo.types import Space, Unfit


class RealNVP(Flow):
    """Affine couplings of residual networks, on checkerboards, then on channels; half leaves after each scale.

    A scale is 3 couplings on checkerboards, a squeeze, 3 on channels, and a split; the last one 4 on checkerboards.
    As published for CIFAR-10, with one squeeze. Images whose sides cannot be halved so often are padded.

    hidden    channels of the networks on the first scale, twice as many after each squeeze
    depth     residual blocks of each network
    scales    one more than there are squeezes
    coupling  how the moved half moves: zoo.nn.Affine, Additive, Spline
    norm      norm(channels), after each coupling: zoo.nn.RunningNorm, or ActNorm
    alpha     data become logit(alpha + (1 - 2 alpha) x), x in [0, 1)
    dequantization, classes, conditional   as those of Flow

    Unfit for anything but images of integers.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        classes: int | None = None,
        conditional: bool = False,
        hidden: int = 64,
        depth: int = 8,
        scales: int = 2,
        coupling: Callable[..., nn.Module] = Affine,
        norm: Callable[[int], nn.Module] = RunningNorm,
        alpha: float = 0.05,
        dequantization: Callable[..., nn.Module] = UniformDequantization,
    ) -> None:
        if not _fits(Space(tuple(shape), levels)):
            raise Unfit(
                f"RealNVP models images of integers (C, H, W), not shape={list(shape)} with levels={levels}.",
                _fits,
            )

        def step(shape: tuple[int, ...], mask: Mask, hidden: int) -> Chain:
            network = partial(ResidualNet, hidden=hidden, depth=depth)
            return Chain(Coupling(shape, mask=mask, network=network, transform=coupling), norm(shape[0]))

        def scale(shape: tuple[int, int, int], left: int, hidden: int) -> Chain:
            C, H, W = shape
            checkers = [step(shape, Checkerboard(swap=i % 2 == 1), hidden) for i in range(3 if left else 4)]
            if not left:
                return Chain(*checkers, Flatten(shape))
            inner = 4 * C, H // 2, W // 2
            channels = [step(inner, Half(swap=i % 2 == 1), 2 * hidden) for i in range(3)]
            rest = scale((2 * C, H // 2, W // 2), left - 1, 2 * hidden)
            return Chain(*checkers, Squeeze(), *channels, Split(inner, rest))

        multiple = 2 ** (scales - 1)
        super().__init__(
            scale(padded(shape, multiple), scales - 1, hidden),
            shape=shape,
            levels=levels,
            classes=classes,
            conditional=conditional,
            preprocess=[Rescale(levels, 0.0, 1.0), Logit(alpha)],
            dequantization=dequantization,
            multiple=multiple,
        )


def _fits(space: Space) -> bool:
    return len(space.shape) == 3 and space.levels is not None
