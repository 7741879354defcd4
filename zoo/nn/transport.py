"""Where noise comes from, and which noise goes with which data.

x_0 is data and x_1 a draw of the source, (B, *shape) both. A source is a base distribution of zoo.nn.bases, as Gaussian
or EightGaussians: sample(like) and log_prob(x (B, D)) in nats, (B,). A coupling puts a batch of x_1 in another order.
"""

import math

import torch
from torch import Tensor

from zoo.nn.likelihood import wide


class EightGaussians:
    """Eight equal Gaussians on a circle of radius 5 in the plane, each of covariance sqrt(0.1) I.

    The source and the data of Tong et al. 2023 and Cheng & Schwing 2025, whose code passes the square root of the
    variance 0.1 where a covariance is asked for; so the deviation is 0.1^(1/4) = 0.56.
    Raises ValueError for draws like anything but points of the plane.
    """

    def __init__(self, radius: float = 5.0, covariance: float = math.sqrt(0.1)) -> None:
        self.radius, self.covariance = radius, covariance

    def sample(self, like: Tensor, y: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Points of the type and device of like (n, 2); y is not used. Temperature scales the deviation of each."""
        if like.shape[1:] != (2,):
            raise ValueError(
                f"source=EightGaussians is of points of the plane, and the data have shape={list(like.shape[1:])}; "
                "try zoo.nn.Gaussian"
            )
        which = torch.randint(8, (len(like),), device=like.device)
        noise = temperature * math.sqrt(self.covariance) * torch.randn_like(like)
        return self.centres(like)[which] + noise

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """log 1/8 sum_k N(z; c_k, covariance), z (B, 2) -> nats (B,); y is not used."""
        z = wide(z)
        square = (z.unsqueeze(1) - self.centres(z)).square().sum(-1) / self.covariance
        return (-0.5 * square).logsumexp(1) - math.log(8 * 2 * math.pi * self.covariance)

    def centres(self, like: Tensor) -> Tensor:
        """(8, 2)."""
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return (self.radius * torch.stack([angle.cos(), angle.sin()], 1)).to(like)


class Independent:
    """Any noise with any data."""

    def __call__(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        return x_1


class MinibatchOT:
    """The order of the noise that brings it nearest to the data: the permutation of least sum |x_0 - x_1|^2.

    Exact, over the batch: Tong et al. 2023, Pooladian et al. 2023. Paths of a batch then do not cross. Each batch is
    matched by itself; where batches are accumulated, or shared by devices, each part.
    """

    def __call__(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        return x_1[assignment(squared_distances(x_0, x_1))]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, (N, M), in float64 or wider than the data's own type where sums of squares would lose digits."""
    a, b = a.detach().flatten(1).double(), b.detach().flatten(1).double()
    return torch.cdist(a, b).square()


def assignment(cost: Tensor) -> Tensor:
    """For each row the column that it is given, each column once, the sum being least: (N, N) -> (N,).

    Jonker and Volgenant's algorithm, as scipy has it; it grows with N^3, 1,024 rows take some tens of milliseconds.
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).to(cost.device)
