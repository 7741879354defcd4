"""Differences to a baseline, paired: the same seed on both sides, and how surely they are no accident.

d_i is one pair's difference, n their number, s their standard deviation; t = mean(d) sqrt(n) / s has n - 1 degrees
of freedom under "no difference" (Student 1908).
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from zoo.runs.protocol import Cell, same
from zoo.runs.rows import Row


class Delta(NamedTuple):
    """Mean and unbiased deviation of n paired differences, and p of a two-sided paired t-test (None for one pair)."""

    mean: float
    deviation: float | None
    n: int
    p: float | None


def delta(cell: Cell | None, base: Cell | None) -> Delta | str:
    """How a cell differs from the baseline's, or why that cannot be told.

    Pairs are runs with the same seed, or the same values of all that is averaged over; what has no partner is left
    out, and n says how many were paired. Numbers of different protocols have no difference.
    """
    if cell is None or base is None:
        return "no number"
    if same(cell.protocol) != same(base.protocol):
        return "another protocol"
    mine, theirs = dict(cell.values), dict(base.values)
    if len(mine) < len(cell.values) or len(theirs) < len(base.values):
        return "more than one run in a pair"
    pairs = sorted(mine.keys() & theirs.keys())
    if not pairs:
        return "no run has a partner"
    differences = [mine[pair] - theirs[pair] for pair in pairs]
    if not all(map(math.isfinite, differences)):
        return "a number is not finite"
    mean, n = statistics.fmean(differences), len(pairs)
    if n == 1:
        return Delta(mean, None, 1, None)
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return Delta(mean, 0.0, n, 1.0 if mean == 0 else 0.0)
    return Delta(mean, deviation, n, two_sided(mean * math.sqrt(n) / deviation, n - 1))


def two_sided(t: float, freedom: int) -> float:
    """P(|T| > |t|) of Student's distribution, by the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.

    Raises ValueError for fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"freedom={freedom}: Student's distribution has at least one degree")
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - within)


def find(
    told: str, rows: Sequence[Row], columns: Sequence[Row], keys: Sequence[str], over: Sequence[str]
) -> Row:
    """The row or column that a baseline names: by its label, or as key=label.

    Raises ValueError with the labels that there are.
    """
    key, equal, name = told.partition("=")
    by_key = bool(equal) and key in (*keys, *over)
    for kind, names in ((rows, keys), (columns, over)):
        for one in kind:
            labels = dict(zip(names, one.labels, strict=True))
            if (by_key and labels.get(key) == name) or (
                not by_key and told in (*one.labels, " ".join(one.labels))
            ):
                return one
    known = dict.fromkeys(" ".join(one.labels) for one in (*rows, *columns) if one.labels)
    raise ValueError(f"baseline={told}: no row or column is called so; there are: {', '.join(known)}")
