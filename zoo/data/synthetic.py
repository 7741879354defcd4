"""Tasks of copying: sequences made here by a rule, equal on every machine.

N examples of T tokens. x (T,) is what is read, y (T,) the target at each token, told from x up to and with it;
PAD where nothing is asked, which nobody counts. Sorting and reversal turn one sequence y into another, x.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.sequential import Sequences
from zoo.types import PAD

SPLITS = ("train", "val", "test")

Whole = NDArray[np.int64]


class Chance:
    """Random numbers of a task's split: the raw stream of PCG64, which NumPy never changes.

    Every task and split has a stream of its own, so that no split knows another.
    """

    def __init__(self, task: str, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; there are train, val and test")
        self.stream = np.random.PCG64([*task.encode(), SPLITS.index(split)])

    def raw(self, *shape: int) -> NDArray[np.uint64]:
        """Even over all 64-bit numbers."""
        return self.stream.random_raw(math.prod(shape)).reshape(shape)

    def below(self, stop: int, *shape: int) -> Whole:
        """Even over 0 ... stop - 1: the upper 32 bits, scaled."""
        return ((self.raw(*shape) >> np.uint64(32)) * np.uint64(stop) >> np.uint64(32)).astype(np.int64)

    def part(self, *shape: int) -> NDArray[np.float64]:
        """Even over (0, 1), in steps of 2^-53."""
        return ((self.raw(*shape) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def distinct(self, n: int, count: int, stop: int) -> Whole:
        """n rows of `count` different numbers of 0 ... stop - 1, in any order, all equally likely (Floyd)."""
        rows = np.empty((n, count), np.int64)
        for i, last in enumerate(range(stop - count, stop)):
            one = self.below(last + 1, n)
            taken = (rows[:, :i] == one[:, None]).any(1)
            rows[:, i] = np.where(taken, last, one)
        return np.take_along_axis(rows, self.raw(n, count).argsort(1, kind="stable"), 1)


def fit(task: str, rules: Mapping[str, bool]) -> None:
    """Raise ValueError with the first rule that does not hold: {"length=4 is below 6; try length=6": False}."""
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"{task}: {rule}")


class Task(Sequences):
    """A task as a dataset: x (N, T) read, y (N, T) targets or (N, S) what x follows from; all below `levels`."""

    def __init__(self, x: NDArray[np.integer], y: NDArray[np.integer], **protocol: Any) -> None:
        super().__init__(torch.from_numpy(x), torch.from_numpy(y), protocol=protocol)


class SelectiveCopying(Task):
    """Tokens strewn among noise, to be told in their order: the place does not tell what counts, content does.

    x is `length` tokens: noise (0) with `copied` tokens of 1 ... levels - 2 at random places, then `copied`
    question marks (levels - 1). y has the strewn tokens, in order, at the question marks. Jing et al. 2019 in
    the form of Gu & Dao 2023, section 4.1: length 4096, copied 16, levels 16. There new examples are drawn at
    every step; here `sizes["train"]` are drawn once.

    ValueError where the strewn tokens don't fit before the question marks, or levels leave fewer than two.
    """

    def __init__(
        self, split: str, *, sizes: Mapping[str, int], length: int = 4096, copied: int = 16, levels: int = 16
    ) -> None:
        fit(
            f"length={length} copied={copied} levels={levels}",
            {
                "as many question marks follow as tokens are strewn; length is at least twice copied": (
                    1 <= copied <= length // 2
                ),
                "noise, the question mark and two tokens are four levels at least": levels >= 4,
            },
        )
        n, chance = sizes[split], Chance("selective copying", split)
        tokens = 1 + chance.below(levels - 2, n, copied)
        places = np.sort(chance.distinct(n, copied, length - copied), 1)
        x = np.zeros((n, length), np.int16)
        np.put_along_axis(x, places, tokens.astype(np.int16), 1)
        x[:, -copied:] = levels - 1
        y = np.full((n, length), PAD, np.int16)
        y[:, -copied:] = tokens
        super().__init__(x, y, scored=f"the {copied} question marks")


class InductionHeads(Task):
    """What followed the special token before? Told at its second place, the end.

    x is `length` tokens of 0 ... levels - 2, evenly drawn, but for the special token (levels - 1), which stands
    at a random place and at the end; y has, at the end, the token that followed it. Gu & Dao 2023, section
    4.1: length 256, levels 16, tested at lengths from 64 to 2^20. That the special token is one of the levels
    is our reading. There new examples are drawn at every step; here `sizes["train"]` are drawn once.

    ValueError for a length below 3 or levels below 3.
    """

    def __init__(self, split: str, *, sizes: Mapping[str, int], length: int = 256, levels: int = 16) -> None:
        fit(
            f"length={length} levels={levels}",
            {
                "special, answer and special again are three tokens at least": length >= 3,
                "the special token and two others are three levels at least": levels >= 3,
            },
        )
        n, chance = sizes[split], Chance("induction heads", split)
        x = chance.below(levels - 1, n, length)
        place = chance.below(length - 2, n, 1)
        np.put_along_axis(x, place, levels - 1, 1)
        x[:, -1] = levels - 1
        y = np.full((n, length), PAD)
        y[:, -1:] = np.take_along_axis(x, place + 1, 1)
        super().__init__(x, y, scored="the last token")


class Reversal(Task):
    """A sequence read from its end: y (length,) as given, x (length,) the same backwards.

    Sequences have `shortest` to `length` symbols of 0 ... levels - 1, all numbers equally likely, and PAD after
    them. ValueError unless 1 <= shortest <= length.
    """

    def __init__(
        self, split: str, *, sizes: Mapping[str, int], length: int = 32, shortest: int = 8, levels: int = 16
    ) -> None:
        y, there = given("reversal", split, sizes[split], length, shortest, levels)
        last = there.sum(1, keepdims=True) - 1
        x = np.take_along_axis(y, np.maximum(last - np.arange(length), 0), 1)
        super().__init__(np.where(there, x, PAD), y)


class Sorting(Task):
    """A sequence in order: y (length,) as given, x (length,) its symbols from the lowest to the highest.

    Sequences are as in Reversal. ValueError unless 1 <= shortest <= length.
    """

    def __init__(
        self, split: str, *, sizes: Mapping[str, int], length: int = 32, shortest: int = 8, levels: int = 16
    ) -> None:
        y, there = given("sorting", split, sizes[split], length, shortest, levels)
        x = np.sort(np.where(there, y, levels), 1)  # what is not there comes last
        super().__init__(np.where(there, x, PAD), y)


def given(
    task: str, split: str, n: int, length: int, shortest: int, levels: int
) -> tuple[Whole, NDArray[np.bool_]]:
    """Sequences (n, length) with PAD after each one's end, and where they have symbols."""
    fit(
        f"length={length} shortest={shortest} levels={levels}",
        {
            "shortest is from 1 to length": 1 <= shortest <= length,
            "there are two symbols at least": levels >= 2,
        },
    )
    chance = Chance(task, split)
    lengths = shortest + chance.below(length - shortest + 1, n, 1)
    there = np.arange(length) < lengths
    return np.where(there, chance.below(levels, n, length), PAD), there
