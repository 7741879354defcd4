"""Which examples a batch has: each once per epoch, in an order that depends on the seed and the epoch only.

n is the number of examples, `batch_size` the number of examples per optimizer step over all devices and all
accumulated micro-batches. `world` is the number of devices, `rank` the number of one.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from zoo import chance


class Place(NamedTuple):
    """Where a batch stands, for chance.dealt: its places, the rows of each over all ranks, and whose share it is."""

    places: list[tuple[int | str, ...]]
    rows: list[int]
    rank: int
    world: int

    def chance(self) -> contextlib.AbstractContextManager:
        """The context in which to read or use this share."""
        return chance.dealt(*self.places, rows=self.rows, rank=self.rank, world=self.world)


class Batches(Sampler):
    """The micro-batches of one rank in training, as (place, indices).

    The order of an epoch is a permutation f(seed, epoch). Each `batch_size` of it are one optimizer step and
    are dealt out to accumulate x world micro-batches, so a step has the same examples on any devices, and those of
    one micro-batch of all ranks together are those of one device's.
    An incomplete last step is dropped.
    Raises ValueError where a step cannot be dealt out evenly, or where no step is left.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        accumulate: int = 1,
        world: int = 1,
        rank: int = 0,
        split: str = "train",
    ) -> None:
        self.pieces = pieces(batch_size, accumulate, world)
        if batch_size > n:
            raise ValueError(
                f"batch_size={batch_size} is more than the {n} examples of {split}: no step could be taken; "
                f"try batch_size={max(1, n // self.pieces * self.pieces)}"
            )
        self.n, self.batch_size, self.seed, self.split = n, batch_size, seed, split
        self.accumulate, self.world, self.rank = accumulate, world, rank
        self.epoch = 0
        self.begin = (0, 0)

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, also of a resumed one: Lightning counts from its start."""
        return self.n // self.batch_size * self.accumulate

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; Lightning calls it."""
        self.epoch = epoch

    def start(self, epoch: int, batch: int) -> None:
        """Go on in an epoch whose first `batch` micro-batches were done: in the next one if that was all."""
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        self.epoch, self.begin = epoch, (epoch, batch)

    def __iter__(self) -> Iterator[tuple[Place, Tensor]]:
        epoch = self.epoch
        order = torch.Generator().manual_seed(chance.key("order", self.seed, epoch))
        order = torch.randperm(self.n, generator=order)
        skipped = self.begin[1] if self.begin[0] == epoch else 0
        for batch in range(skipped, len(self)):
            step, piece = divmod(batch, self.accumulate)
            first = step * self.batch_size + piece + self.rank * self.accumulate
            place = ("data", self.seed, self.split, epoch, batch)
            rows = self.batch_size // self.accumulate
            yield (
                Place([place], [rows], self.rank, self.world),
                order[first : (step + 1) * self.batch_size : self.pieces],
            )


class Once(Sampler):
    """Each example of a split exactly once over all ranks, in order, as (place, indices); place has no epoch.

    All ranks get equally many batches, none of them empty: what is too little for all joins the batch before. It
    keeps the chance of the batch that it is on one device.
    size    examples per batch and rank
    some    only so many examples, evenly spread over the split; None: all
    Raises ValueError where there are fewer examples than ranks.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        seed: int,
        split: str,
        world: int = 1,
        rank: int = 0,
        some: int | None = None,
    ) -> None:
        self.all, self.n = n, n if some is None else min(n, some)
        if self.n < world:
            raise ValueError(
                f"{split} has {self.n} examples for {world} devices; try trainer.devices={max(1, n)}"
            )
        self.size, self.seed, self.split, self.world, self.rank = size * world, seed, split, world, rank

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.size)
        return whole + (rest >= self.world or whole == 0)

    def __iter__(self) -> Iterator[tuple[Place, Tensor]]:
        for batch in range(len(self)):
            rows = self.rows(batch)
            end = batch * self.size + sum(rows)
            places = [("data", self.seed, self.split, batch + i) for i in range(len(rows))]
            yield (
                Place(places, rows, self.rank, self.world),
                torch.arange(batch * self.size + self.rank, end, self.world) * self.all // self.n,
            )

    def rows(self, batch: int) -> list[int]:
        """How many examples a batch has over all ranks; of the last one, those that joined it apart."""
        left = self.n - batch * self.size
        if batch + 1 < len(self) or left <= self.size:
            return [min(left, self.size)]
        return [self.size, left - self.size]


def pieces(batch_size: int, accumulate: int, world: int) -> int:
    """How many micro-batches one optimizer step is cut into; ValueError where that leaves unequal ones."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    count = accumulate * world
    if batch_size % count:
        raise ValueError(
            f"batch_size={batch_size} cannot be cut evenly over {world} devices x {accumulate} accumulated "
            f"batches; try batch_size={-(-batch_size // count) * count}"
        )
    return count
