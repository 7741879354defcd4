"""Quantizers: from a field of vectors to a field of codes, and back.

z (B, D, H, W) is an encoder's output, codes (B, H, W) integers in [0, K), z_q (B, D, H, W) what the codes
stand for. Rows are the vectors of all places, (N, D) with N = B H W. sg is the gradient's stop.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.codebook import Codebook, kmeans, nearest
from zoo.nn.likelihood import wide

USED = 0.1  # with a smaller part of its codes in use a codebook has collapsed


class Quantizer(nn.Module):
    """What an autoencoder asks of its quantizer; made as quantizer(dim), dim = D.

    forward(z) -> z_q, codes, terms: each term is a scalar with its weight in it, to be added to the loss
    decode(codes) -> z_q

    levels   K, the number of codes
    depth    codes at each place; if more than 1, codes are (B, depth, H, W)
    wants    how many rows `prepare` would like to see, 0 for none
    """

    levels: int
    depth: int = 1
    wants: int = 0

    def prepare(self, z: Tensor) -> None:
        """Measure what is not learned from rows (N, D) of training data."""

    def at(self, step: int) -> None:
        """So many optimizer steps are done."""

    @torch.no_grad()
    def statistics(self, codes: Tensor) -> dict[str, Tensor]:
        """How often each code occurs: (depth, K)."""
        layers = codes.unbind(1) if self.depth > 1 else [codes]
        counts = [torch.bincount(layer.flatten().long(), minlength=self.levels) for layer in layers]
        return {"codes": torch.stack(counts)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The share of the codes that occur, and exp of the entropy of their frequencies; means over depth."""
        counts = sums["codes"].double()
        p = counts / counts.sum(1, keepdim=True)
        entropy = torch.special.entr(p).sum(1).mean()
        return {
            "codebook_use": float((counts > 0).double().mean()),
            "codebook_perplexity": float(entropy.exp()),
        }

    def unwell(self, told: dict[str, float]) -> list[str]:
        """A sentence where nine codes of ten never occur."""
        if told["codebook_use"] >= USED:
            return []
        return [
            f"codebook_use={told['codebook_use']:.3f} of {self.levels}: most codes never occur; try fewer levels, or "
            "quantizer=revived, simvq or fsq"
        ]


class VectorQuantizer(Quantizer):
    """Every vector becomes the nearest entry of a codebook: VQ-VAE, van den Oord et al. 2017.

    k = argmin |z - e_k|,  z_q = e_k
    terms: "commitment" beta |z - sg(e_k)|^2 and, if the codebook is learned, "codebook" |sg(z) - e_k|^2, means
    over all elements. beta weighs what draws the encoder; in some published code it is on the other term.

    codebook   codebook(levels, dim): zoo.nn.Codebook, EMACodebook or LinearCodebook
    through    through(z, e) has the value of e and hands a gradient to z: straight_through or rotated
    cosine     vectors and entries have length 1, so that the nearest has the largest cosine: Yu et al. 2021
    kmeans     iterations of k-means over training data that the codebook begins with; 0 for a random one

    Distances and terms are computed in float32 whatever the network computes in: bfloat16 takes wrong codes.
    Raises ValueError for kmeans with a codebook that cannot begin with given entries.
    """

    def __init__(
        self,
        dim: int,
        *,
        levels: int = 512,
        beta: float = 0.25,
        codebook: Callable[[int, int], nn.Module] = Codebook,
        through: Callable[[Tensor, Tensor], Tensor] | None = None,
        cosine: bool = False,
        kmeans: int = 0,
    ) -> None:
        super().__init__()
        self.levels, self.beta, self.cosine, self.kmeans = levels, beta, cosine, kmeans
        self.codebook = codebook(levels, dim)
        self.through = through or straight_through
        if kmeans and not hasattr(self.codebook, "place"):
            raise ValueError(
                f"kmeans={kmeans}: a {type(self.codebook).__name__} cannot begin with means; set kmeans=0"
            )
        self.wants = 16 * levels if kmeans else 0

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.autocast(z.device.type, enabled=False):
            rows = self.rows(z)
            e, codes, terms = self.quantize(rows)
            z_q = field(self.through(rows, e), z)
        return z_q.type_as(z), codes.view(len(z), *z.shape[2:]), terms

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Entries (N, D) and codes (N,) of rows (N, D), and the terms of the loss."""
        entries = self.entries()
        codes = nearest(rows.detach(), entries.detach())
        e = F.embedding(codes, entries)
        terms = {"commitment": self.beta * F.mse_loss(rows, e.detach())}
        if self.codebook.learned:
            terms["codebook"] = F.mse_loss(e, rows.detach())
        if seen_in_training(self):
            self.codebook.gather(rows.detach(), codes)
        return e, codes, terms

    def decode(self, codes: Tensor) -> Tensor:
        """(B, H, W) -> (B, D, H, W)."""
        return F.embedding(codes.long(), self.entries()).movedim(-1, 1)

    def rows(self, z: Tensor) -> Tensor:
        """(B, D, H, W) -> (N, D), of length 1 with cosine."""
        rows = wide(flat(z))
        return F.normalize(rows, dim=1) if self.cosine else rows

    def entries(self) -> Tensor:
        """e, (K, D), of length 1 with cosine."""
        entries = wide(self.codebook.entries())
        return F.normalize(entries, dim=1) if self.cosine else entries

    def prepare(self, z: Tensor) -> None:
        """k-means; of fewer rows than codes the other entries stay random."""
        if self.kmeans:
            z = F.normalize(z, dim=1) if self.cosine else z
            self.codebook.place(*kmeans(z, self.levels, self.kmeans, cosine=self.cosine))

    def at(self, step: int) -> None:
        self.codebook.at(step)


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """e, whose gradient goes to z as it is: z + sg(e - z), without its rounding. Bengio et al. 2013; (N, D)."""
    return StraightThrough.apply(z, e)


class StraightThrough(torch.autograd.Function):
    """Two operations and two copies less than the formula."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, e: Tensor) -> Tensor:
        # a program of torch.compile that returned a view of e would drop the gradient of z
        return e.clone() if torch.compiler.is_compiling() else e.view_as(e)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """e, as the rotation and stretching of z that gives it, both held constant: Fifty et al. 2024, section 4.

    q = |e| / |z| R z,  R = I - 2 r r' + 2 e^ z^',  r = (z^ + e^) / |z^ + e^|,  ^ of length 1; (N, D)

    So the angle between a gradient and its vector is kept. Where the rotation is not defined, at z = 0 or
    e = -z, the gradient goes straight through.
    """
    with torch.no_grad():
        length_z, length_e = z.norm(dim=1, keepdim=True), e.norm(dim=1, keepdim=True)
        unit_z, unit_e = z / length_z.clamp(min=1e-12), e / length_e.clamp(min=1e-12)
        r = unit_z + unit_e
        length_r = r.norm(dim=1, keepdim=True)
        defined = (length_z > 1e-6) & (length_e > 1e-6) & (length_r > 1e-6)
        r = r / length_r.clamp(min=1e-12)
        stretch = length_e / length_z.clamp(min=1e-12)

    def along(a: Tensor) -> Tensor:
        return (z * a).sum(1, keepdim=True)

    turned = stretch * (z - 2 * along(r) * r + 2 * along(unit_z) * unit_e)
    return torch.where(defined, turned, straight_through(z, e))


def seen_in_training(module: nn.Module) -> bool:
    """Whether this is a forward pass of training: not validation, and not a repetition by gradient checkpointing."""
    repeated = torch._C._current_graph_task_id() != -1  # a backward pass is running
    return module.training and torch.is_grad_enabled() and not repeated


def flat(z: Tensor) -> Tensor:
    """(B, D, H, W) -> (N, D)."""
    return z.movedim(1, -1).flatten(0, -2)


def field(rows: Tensor, z: Tensor) -> Tensor:
    """Rows (N, D') as a field over the places of z: (B, D', H, W)."""
    return rows.view(len(z), *z.shape[2:], -1).movedim(-1, 1)


def projection(enter: int, leave: int) -> Any:
    """A linear map of rows, none where nothing changes."""
    return nn.Identity() if enter == leave else nn.Linear(enter, leave)
