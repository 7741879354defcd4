"""ListOps (Nangia & Bowman 2018): lists within lists of digits, each to be reduced to one digit.

Trees are grown, written down and evaluated level by level, all of them at once. A node is a digit or an operator;
a level is the nodes of one depth, in the order of their parents, so that siblings are neighbours.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.cache import digest, home, keep
from zoo.data.sequential import Sequences
from zoo.data.synthetic import Chance, Whole, fit
from zoo.types import PAD

TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
MIN, MAX, MED, SUM, END = range(10, 15)
NESTED = 0.25  # how often a node is an operator: Nangia & Bowman's code
BATCH = 4096  # trees that are grown at once
VERSION = 1  # raised when the same settings come to other lists


class Level(NamedTuple):
    """The nodes of one depth: digit or operator, which tree, and how many children each has (0 for a digit)."""

    symbol: Whole
    tree: Whole
    children: Whole


class ListOps(Sequences):
    """Nested lists as tokens x (length,), PAD after the end, and the digit y that they come to.

    Tokens are 0-9, "[MIN", "[MAX", "[MED" (the middle, or the mean of the two middles rounded down), "[SM" (the
    sum modulo 10) and "]": levels 15. A list has 2 to `arguments` elements; an element is a list with
    probability 1/4, while it is less than `depth` deep. Only trees of more than `longer` and fewer than
    `length` + 1 tokens are taken. The settings of Long Range Arena (Tay et al. 2020), without its parentheses,
    which its models never see: longer 500, length 1999, arguments 10, depth 10; 96,000 / 2,000 / 2,000 trees.
    Nangia & Bowman: arguments 5, depth 20. Lists are drawn once and then kept as a file (zoo.data.cache).

    ValueError for settings that no tree can meet.
    """

    def __init__(
        self,
        split: str,
        *,
        sizes: Mapping[str, int],
        length: int = 1999,
        longer: int = 500,
        arguments: int = 10,
        depth: int = 10,
    ) -> None:
        fit(
            f"length={length} longer={longer} arguments={arguments} depth={depth}",
            {
                "a list has two arguments at least and is two deep at least": arguments >= 2 and depth >= 2,
                "the shortest list has four tokens; longer is below length": 3 <= longer < length,
            },
        )
        settings = {"length": length, "longer": longer, "arguments": arguments, "depth": depth}
        key = json.dumps([VERSION, split, sizes[split], settings]).encode()
        path = home() / f"listops-{digest(key)[:16]}.npy"
        try:
            x, y = read(path, length)
        except (OSError, ValueError, EOFError):  # not there, or damaged
            x, y = drawn(split, sizes[split], **settings)
            keep(path, lambda file: write(file, x, y))
        super().__init__(torch.from_numpy(x), torch.from_numpy(y))

    @staticmethod
    def decode(x: torch.Tensor) -> str:
        """The list as its authors write it, without parentheses; PAD is left out."""
        return " ".join(TOKENS[token] for token in x[x != PAD].tolist())


def drawn(
    split: str, n: int, *, length: int, longer: int, arguments: int, depth: int
) -> tuple[NDArray[np.int8], Whole]:
    """n trees of a split as tokens (n, length), and what they come to (n,): 20 s for 96,000 of Long Range Arena."""
    chance = Chance("listops", split)
    x, y = np.full((n, length), PAD, np.int8), np.empty(n, np.int64)
    done, grown = 0, 0
    while done < n:
        levels, size = grow(chance, BATCH, arguments, depth, length)
        there = (size > longer) & (size <= length)
        there &= there.cumsum() <= n - done
        count = int(there.sum())
        if count:
            y[done : done + count] = written(chosen(levels, there), x[done : done + count])
        done, grown = done + count, grown + BATCH
        if grown > 100_000 * max(done, 1):
            raise ValueError(
                f"length={length} longer={longer} arguments={arguments} depth={depth}: fewer than one "
                "tree in 100,000 is of this length; allow for more arguments, more depth or fewer tokens"
            )
    return x, y


def write(file: IO[bytes], x: NDArray[np.int8], y: Whole) -> None:
    """Lists one after the other, without PAD; how many tokens each has; what each comes to."""
    there = x != PAD
    for part in (x[there], there.sum(1), y):
        np.save(file, part)


def read(path: Path, length: int) -> tuple[NDArray[np.int8], Whole]:
    """What was written, as tokens (n, length) and values (n,). OSError, ValueError or EOFError where it is not."""
    with open(path, "rb") as file:
        tokens, size, y = (np.load(file) for _ in range(3))
    x = np.full((len(y), length), PAD, np.int8)
    x[np.arange(length) < size[:, None]] = tokens
    return x, y


def grow(chance: Chance, n: int, arguments: int, depth: int, most: int) -> tuple[list[Level], Whole]:
    """n trees whose roots are operators, and how many tokens each has; beyond `most` one grows no further."""
    levels, tree, size = [], np.arange(n), np.zeros(n, np.int64)
    for deep in range(1, depth + 1):
        nested = np.full(len(tree), deep == 1)
        if 1 < deep < depth:
            nested = chance.part(len(tree)) < NESTED
        symbol = np.where(nested, MIN + chance.below(4, len(tree)), chance.below(10, len(tree)))
        size += np.bincount(tree[nested], minlength=n) + np.bincount(tree, minlength=n)  # "]", and the symbol
        children = np.where(nested & (size[tree] <= most), 2 + chance.below(arguments - 1, len(tree)), 0)
        levels.append(Level(symbol, tree, children))
        tree = np.repeat(tree, children)
    return levels, size


def chosen(levels: list[Level], there: NDArray[np.bool_]) -> list[Level]:
    """Only the trees that are to be there, numbered anew."""
    number = there.cumsum() - 1
    kept = [Level(*(part[there[level.tree]] for part in level)) for level in levels]
    return [level._replace(tree=number[level.tree]) for level in kept if len(level.tree)]


def written(levels: list[Level], x: NDArray[np.int8]) -> Whole:
    """Write each tree into a row of x, and return what it comes to."""
    sizes = [np.ones(len(level.symbol), np.int64) for level in levels]
    values = [level.symbol.copy() for level in levels]
    firsts = [level.children.cumsum() - level.children for level in levels]  # each one's first child
    for above in reversed(range(len(levels) - 1)):
        (lists,) = np.nonzero(levels[above].children)
        first = firsts[above][lists]
        sizes[above][lists] = 2 + np.add.reduceat(sizes[above + 1], first)
        values[above][lists] = reduced(levels[above].symbol[lists], values[above + 1], first)
    place = np.zeros(len(levels[0].tree), np.int64)
    for above, level in enumerate(levels):
        x[level.tree, place] = level.symbol
        ended = level.symbol >= MIN
        x[level.tree[ended], (place + sizes[above] - 1)[ended]] = END
        if above + 1 < len(levels):
            before = sizes[above + 1].cumsum() - sizes[above + 1]  # tokens of the level's nodes to the left
            parent = np.repeat(np.arange(len(place)), level.children)
            place = place[parent] + 1 + before - before[firsts[above][parent]]
    return values[0]


def reduced(symbol: Whole, values: Whole, first: Whole) -> Whole:
    """What lists (L,) of operators come to; list l is values[first[l]:first[l + 1]]."""
    count = np.diff(first, append=len(values))
    ordered = np.sort(10 * np.repeat(np.arange(len(first)), count) + values) % 10
    middle = (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) // 2
    least, most = ordered[first], ordered[first + count - 1]
    return np.choose(symbol - MIN, [least, most, middle, np.add.reduceat(values, first) % 10])
