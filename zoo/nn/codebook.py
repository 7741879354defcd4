"""Codebooks: K entries of D numbers that gradients move, or moving averages, or one linear map for all.

z are rows (N, D) of an encoder's output, e the entries (K, D), k the index of the entry nearest to a row.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.ranks import first, summed

AT_ONCE = 2**18  # distances in memory at a time: they stay in a processor's cache
BLOCK = 64  # distances of which the least is found first: a least value costs a tenth of its place


class Codebook(nn.Module):
    """Entries that gradients move: van den Oord et al. 2017. e ~ U(-1/K, 1/K) at first.

    learned   whether the term ||sg(z) - e||^2 moves the entries
    """

    learned: ClassVar[bool] = True

    def __init__(self, levels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(levels, dim).uniform_(-1 / levels, 1 / levels))

    def entries(self) -> Tensor:
        """e, (K, D)."""
        return self.weight

    @torch.no_grad()
    def place(self, entries: Tensor, counts: Tensor) -> None:
        """Begin with these entries (k, D), k <= K, which stand for so many rows each (k,)."""
        self.weight[: len(entries)] = entries.to(self.weight)

    def gather(self, z: Tensor, codes: Tensor) -> None:
        """Take note of one training batch: rows (N, D), and their codes (N,)."""

    def at(self, step: int) -> None:
        """So many optimizer steps are done."""


class EMACodebook(nn.Module):
    """Entries that are the moving mean of the rows nearest to them: van den Oord et al. 2017, appendix A.1.

    n_k <- decay n_k + (1 - decay) N_k,     N_k the number of a step's rows with code k
    m_k <- decay m_k + (1 - decay) sum z,   over the same rows
    e_k  = m_k / n'_k,                      n'_k = (n_k + eps) / (sum n + K eps) sum n

    The sums of a step are gathered over its micro-batches in training, and over all ranks; `at` moves the
    entries once a step.

    decay    0.99: an entry is the mean of about the last hundred steps
    revive   an entry with n_k below it becomes one of the step's rows, with n_k = revive; 0 for never. The
             rows are rank 0's, and which of them follows from the step

    Raises ValueError if decay is outside of [0, 1), and in training if its sums are in half precision: bfloat16
    counts no further than 256.
    """

    learned: ClassVar[bool] = False

    def __init__(
        self, levels: int, dim: int, *, decay: float = 0.99, eps: float = 1e-5, revive: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is outside of [0, 1): a moving mean forgets a little; try 0.99")
        self.decay, self.eps, self.revive = decay, eps, revive
        self.register_buffer("weight", torch.empty(levels, dim).uniform_(-1 / levels, 1 / levels))
        self.register_buffer("count", torch.ones(levels))
        self.register_buffer("total", self.weight.clone())
        self.step: int | None = None
        # not buffers: they are empty between two steps, and DDP would give every rank those of the first
        self.gathered: tuple[Tensor, Tensor] | None = None  # N_k (K,), and the sum of z (K, D)
        self.latest: Tensor | None = None  # rows that a dead entry may become
        self.register_load_state_dict_post_hook(forget)

    def entries(self) -> Tensor:
        """e, (K, D)."""
        return self.weight

    @torch.no_grad()
    def place(self, entries: Tensor, counts: Tensor) -> None:
        """Begin with these entries (k, D), k <= K, which stand for so many rows each (k,)."""
        k = len(entries)
        self.weight[:k], self.count[:k] = entries.to(self.weight), counts.to(self.count)
        self.total.copy_(self.weight * self.count.unsqueeze(1))

    @torch.no_grad()
    def gather(self, z: Tensor, codes: Tensor) -> None:
        """Add one training batch to the sums of this step: rows (N, D), and their codes (N,)."""
        if self.count.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"moving means in {str(self.count.dtype).removeprefix('torch.')} lose most of what they add; train "
                "with trainer.precision=bf16-mixed, or take quantizer=vq"
            )
        if self.gathered is None:
            self.gathered = torch.zeros_like(self.count), torch.zeros_like(self.total)
        counts, sums = self.gathered
        counts.index_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))
        sums.index_add_(0, codes, z.detach().to(sums))
        self.latest = z.detach() if self.revive else None

    def at(self, step: int) -> None:
        """So many optimizer steps are done: if they are others than before, what was gathered moves the entries."""
        if step != self.step and self.gathered is not None:
            self._move(*map(summed, self.gathered), step)
            self.gathered = self.latest = None
        self.step = step

    @torch.no_grad()
    def _move(self, counts: Tensor, sums: Tensor, step: int) -> None:
        K = len(self.count)
        self.count.lerp_(counts, 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        n = self.count.sum()
        smooth = (self.count + self.eps) / (n + K * self.eps) * n
        self.weight.copy_(self.total / smooth.unsqueeze(1))
        if self.revive and self.latest is not None:
            choice = torch.Generator().manual_seed(step)
            some = torch.randint(len(self.latest), (K,), generator=choice)
            rows = first(self.latest[some.to(self.latest.device)].to(self.weight))
            dead = self.count < self.revive
            self.count.masked_fill_(dead, self.revive)
            self.weight.copy_(torch.where(dead.unsqueeze(1), rows, self.weight))
            # both sums, else the mean would draw the entry back at the next step
            self.total.copy_(torch.where(dead.unsqueeze(1), rows * self.revive, self.total))


def forget(codebook: EMACodebook, _: object) -> None:
    """Drop what was gathered: it belongs to other entries than those just loaded."""
    codebook.gathered = codebook.latest = None


class LinearCodebook(nn.Module):
    """Frozen random entries through one learned linear map, so that each step moves all of them: e = C W.

    SimVQ, Zhu et al. 2024; C ~ N(0, 1/D) is never changed.
    """

    learned: ClassVar[bool] = True

    def __init__(self, levels: int, dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(levels, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=bias)

    def entries(self) -> Tensor:
        """e, (K, D), in the weights' precision whatever the network computes in, as entries that are stored."""
        with torch.autocast(self.frozen.device.type, enabled=False):
            return self.map(self.frozen)

    def gather(self, z: Tensor, codes: Tensor) -> None:
        """Gradients need no sums."""

    def at(self, step: int) -> None:
        """Nothing depends on the step."""


@torch.no_grad()
def nearest(z: Tensor, entries: Tensor) -> Tensor:
    """The entry with the least |z - e|^2 = |z|^2 - 2 z e + |e|^2: (N, D), (K, D) -> (N,).

    Some rows at a time, so that no more than 2M distances are kept.
    """
    squares = entries.square().sum(1)
    return torch.cat(
        [
            least(torch.addmm(squares, part, entries.T, alpha=-2))
            for part in z.split(max(1, AT_ONCE // len(entries)))
        ]
    )


def least(distances: Tensor) -> Tensor:
    """argmin over the last dimension, the first where several are least: (N, K) -> (N,)."""
    if distances.shape[1] % BLOCK:
        return distances.argmin(1)
    blocks = distances.unflatten(1, (-1, BLOCK))
    best = blocks.amin(2).argmin(1, keepdim=True)
    inside = blocks.gather(1, best.unsqueeze(2).expand(-1, -1, BLOCK)).argmin(2)
    return (best * BLOCK + inside).squeeze(1)


@torch.no_grad()
def kmeans(z: Tensor, levels: int, iterations: int = 10, *, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: means (k, D) of the rows nearest to them, and how many those are (k,).

    It begins with k = min(levels, N) of the rows. A mean without rows stays where it is. With cosine the means
    are brought to length 1. Raises ValueError if there are no rows.
    """
    if not len(z):
        raise ValueError("k-means needs at least one row to begin with; there is none")
    means = z[torch.randperm(len(z), device=z.device)[:levels]].clone()
    counts = torch.ones(len(means), device=z.device)
    for _ in range(iterations):
        codes = nearest(z, means)
        counts = torch.bincount(codes, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, codes, z)
        means = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), means)
        if cosine:
            means = F.normalize(means, dim=1)
    return means, counts
