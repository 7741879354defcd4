"""Images in fewer shades than they were published in: of each number its upper bits, as in Glow's pictures of faces."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from zoo.data.arrays import Arrays
from zoo.data.cifar import CIFAR10


class CoarseCIFAR10(Arrays):
    """CIFAR-10 in 2^bits levels: x (3, 32, 32) uint8, the upper `bits` of each of its 8, y the kind of thing.

    Its bits/dim are of other data than those of CIFAR-10: at most `bits`, where those are at most 8. Splits, augment
    and errors are those of zoo.data.CIFAR10. ValueError unless bits is 1 to 8.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        holdout: int = 5_000,
        augment: Callable[[Tensor], Tensor] | None = None,
        bits: int = 5,
    ) -> None:
        if not 1 <= bits <= 8:
            raise ValueError(f"bits={bits}: of 8 bits 1 to 8 can be kept")
        data = CIFAR10(split, root=root, holdout=holdout, augment=augment)
        super().__init__(
            data.x >> (8 - bits), data.y, levels=2**bits, augment=data.augment, protocol=data.protocol
        )
