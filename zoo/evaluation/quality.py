"""How alike two sets of images are, by what a network sees in them: distances of features (N, D), all in float64.

x are features of real images (the reference), y of made ones; N and M are how many there are.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

NEAREST = 5  # Naeem et al. 2020
AT_ONCE = 1024  # rows of a matrix of distances that are in memory together


class Features(NamedTuple):
    """What is known of a set: its size, the mean (D,) and covariance (D, D), and the vectors of `rows` of it."""

    count: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor


def gathered(parts: Iterable[Tensor], total: int, *, keep: int = 10_000) -> Features:
    """The features of a set that comes in parts (n, D), `total` in all.

    keep    how many vectors are kept, evenly spread; mean and covariance are of all

    Raises ValueError for fewer than two: they have no covariance.
    """
    if total < 2:
        raise ValueError(f"{total} images have no covariance; at least two are needed")
    wanted = torch.linspace(0, total - 1, min(keep, total)).round().long()
    count, rows, sums, products = 0, [], 0.0, 0.0
    for part in parts:
        part = part.detach()
        part = (part.cpu() if part.device.type == "mps" else part).double()  # MPS has no float64
        products = products + part.mT @ part
        sums = sums + part.sum(0)
        here = wanted[(wanted >= count) & (wanted < count + len(part))] - count
        rows.append(part[here.to(part.device)].float())
        count += len(part)
    mean = sums / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    return Features(count, mean, covariance, torch.cat(rows))


def frechet(x: Features, y: Features) -> float:
    """The squared Fréchet distance of two Gaussians with these moments: Heusel et al. 2017 (1706.08500).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2), which is of symmetric matrices only; its bias falls
    as 1/N: between two samples of one law it is not zero.
    """
    values, vectors = torch.linalg.eigh(x.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    between = torch.linalg.eigvalsh(root @ y.covariance.to(root) @ root).clamp(min=0).sqrt().sum()
    apart = (x.mean - y.mean.to(x.mean)).square().sum()
    return float(apart + x.covariance.trace() + y.covariance.trace().to(apart) - 2 * between)


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000) -> tuple[float, float | None]:
    """The squared maximum mean discrepancy, unbiased, and its standard error: Binkowski et al. 2018 (1801.01401).

    The kernel is (<a, b> / D + 1)^3. It is the mean over random subsets of `size` vectors of each set, which are
    drawn from torch's default generator. Of one law it is zero in the mean, and may be negative. The error is the
    deviation over subsets by the root of how many there are without a vector in common; None for only one.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise ValueError("kid takes at least two images on each side")
    values = []
    for _ in range(subsets):
        a, b = (rows[torch.randperm(len(rows))[:size].to(rows.device)].double() for rows in (x, y))
        own = sum((kernel(c, c).sum() - kernel(c, c).diagonal().sum()) / (size * (size - 1)) for c in (a, b))
        values.append(own - 2 * kernel(a, b).mean())
    told = torch.stack(values)
    apart = min(len(x), len(y)) // size
    error = float(told.std()) / math.sqrt(apart) if apart > 1 and subsets > 1 else None
    return float(told.mean()), error


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """(<a, b> / D + 1)^3 of all pairs: (N, D), (M, D) -> (N, M)."""
    return (a @ b.mT / a.shape[1] + 1) ** 3


def prdc(x: Tensor, y: Tensor, *, nearest: int = NEAREST) -> dict[str, float]:
    """Precision, recall: Kynkäänniemi et al. 2019 (1904.06991); density, coverage: Naeem et al. 2020 (2002.09797).

    A ball around each vector reaches to its `nearest`-th neighbour of the same set.
    precision   how many of y lie in a ball of x            recall     how many of x lie in a ball of y
    density     in how many balls of x a y lies, by nearest   coverage   how many balls of x have a y in them

    Raises ValueError where a set has no so many neighbours.
    """
    if min(len(x), len(y)) <= nearest:
        raise ValueError(
            f"prdc takes more than {nearest} images on each side, and there are {len(x)} and {len(y)}"
        )
    x, y = x.double(), y.double()
    reach_x, reach_y = radii(x, nearest), radii(y, nearest)
    inside = torch.zeros(len(y), dtype=torch.long, device=x.device)  # in how many balls of x each y lies
    recalled, covered = [], []
    for part, reach in zip(x.split(AT_ONCE), reach_x.split(AT_ONCE), strict=True):
        far = torch.cdist(part, y)
        in_x = far < reach[:, None]
        inside += in_x.sum(0)
        covered.append(in_x.any(1))
        recalled.append((far < reach_y).any(1))
    return {
        "precision": float((inside > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(inside.double().mean()) / nearest,
        "coverage": float(torch.cat(covered).double().mean()),
    }


def radii(x: Tensor, nearest: int) -> Tensor:
    """How far each vector's nearest-th neighbour in its own set is: (N, D) -> (N,)."""
    found = []
    for start in range(0, len(x), AT_ONCE):
        part = x[start : start + AT_ONCE]
        far = torch.cdist(part, x)
        far[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf  # itself is none
        found.append(far.kthvalue(nearest, dim=1).values)
    return torch.cat(found)
