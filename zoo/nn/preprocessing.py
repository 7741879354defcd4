"""What data go through before a flow sees them, each with its exact log-determinant.

v is data in integer units, spread over [0, levels): an integer and what its dequantization added. The density of v
in these units is what bounds the probability of the integer, so that no constant is left to be remembered.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rescale(nn.Module):
    """[0, levels) onto [low, high), by one straight line: log|det| = D log((high - low) / levels).

    With D dimensions and 256 levels that is -8 bits a dimension onto [0, 1), and -7 onto [-1, 1).
    ValueError unless low < high.
    """

    def __init__(self, levels: int, low: float, high: float) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"interval=[{low}, {high}] must go from a smaller number to a larger one")
        self.low, self.scale = low, (high - low) / levels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x[0].numel() * math.log(self.scale)
        return self.low + self.scale * x, x.new_full((len(x),), log_det)

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.low) / self.scale


class Logit(nn.Module):
    """[0, 1) onto the line: z = logit(alpha + (1 - 2 alpha) x).

    log|det| = sum(softplus(z) + softplus(-z) + log(1 - 2 alpha)). Dinh et al. 2016, section 4.1, whose interval is
    [alpha, 1); ours is symmetric, [alpha, 1 - alpha), so that white is as far from infinity as black.
    ValueError unless 0 < alpha < 1/2.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha={alpha}: the logit needs a number between 0 and 1/2, as 0.05")
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        stretch = F.softplus(z) + F.softplus(-z) + math.log(1 - 2 * self.alpha)
        return z, stretch.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


class Whitening(nn.Module):
    """Zero-phase whitening: z = W (x - mean), W = C^(-1/2), the covariance C being that of a whole split.

    W = U diag(1 / sqrt(l + epsilon)) U^T with C = U diag(l) U^T, log|det| = -1/2 sum(log(l + epsilon)). Of all
    maps that whiten, the one that leaves images as near to what they were as can be. NICE on CIFAR-10 and SVHN.
    Measured over all that `measure` is given: fewer examples than dimensions leave a singular covariance.
    """

    def __init__(self, shape: Sequence[int], *, epsilon: float = 1e-6) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.shape, self.epsilon = tuple(shape), epsilon
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.eye(dim))
        self.register_buffer("unweight", torch.eye(dim))
        self.register_buffer("log_det", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            z = (x.flatten(1) - self.mean) @ self.weight
        return z.unflatten(1, self.shape), self.log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return (z.flatten(1) @ self.unweight + self.mean).unflatten(1, self.shape)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Mean and covariance over all batches of x (B, *shape); sums and the eigenvectors are in float64."""
        count, total, products = 0, 0.0, 0.0
        for x in batches:
            rows = x.flatten(1).double()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        values = values.clamp(min=0) + self.epsilon
        self.mean.copy_(mean)
        self.weight.copy_(vectors * values.rsqrt() @ vectors.T)
        self.unweight.copy_(vectors * values.sqrt() @ vectors.T)
        self.log_det.copy_(-0.5 * values.log().sum())
